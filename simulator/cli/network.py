"""shardwise network: what a cluster's links do to collectives and to the axes of a strategy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simulator.cli.fabric import fabric_of, fabric_options
from simulator.cli.options import draw, json_option, plot_option, print_json
from simulator.cli.quantities import Quantity

if TYPE_CHECKING:
    from simulator.cluster.placement import Group
    from simulator.spec.hardware import Cluster

AXES = ("tp", "cp", "ep", "etp", "dp", "pp")
DEFAULT_BYTES = 2.0**28
_POSITIVE = click.IntRange(1, 10**7)


@click.command("network")
@click.argument("cluster")
@click.option("--nodes", type=int, help="Nodes of the cluster (its own number otherwise).")
@click.option("--collective", metavar="KIND", help="all_reduce (default), reduce_scatter, all_gather, all_to_all, "
              "broadcast, reduce, send.")  # fmt: skip
@click.option("--bytes", "sizes", type=Quantity("bytes"), multiple=True, metavar="SIZE",
              help='Buffer, as in "256 MiB" (repeatable; default: 1 KiB to 8 GiB).')  # fmt: skip
@click.option("--group", type=_POSITIVE, help="Ranks that communicate (default: all devices).")
@click.option("--stride", type=_POSITIVE, default=1, show_default=True, help="Devices between neighbouring ranks.")
@click.option("--algorithm", metavar="NAME", help="Force one, as ring, tree or ring/ll128 (default: the quickest).")
@click.option("--tp", type=_POSITIVE, help="Tensor-parallel degree: show what the axes of a strategy cross.")
@click.option("--cp", type=_POSITIVE, help="Context-parallel degree.")
@click.option("--ep", type=_POSITIVE, help="Expert-parallel degree.")
@click.option("--etp", type=_POSITIVE, help="Tensor-parallel degree inside experts.")
@click.option("--dp", type=_POSITIVE, help="Data-parallel degree (default: what the devices leave).")
@click.option("--pp", type=_POSITIVE, help="Pipeline-parallel degree.")
@click.option("--order", metavar="AXES", default="tp-cp-ep-dp-pp", show_default=True,
              help="Placement, innermost first.")  # fmt: skip
@fabric_options
@plot_option("Draw the topology and what the axes put on it.")
@json_option
def command(as_json: bool, plot: Path | None, **options: Any) -> None:
    """Time collectives on CLUSTER by size and algorithm, and show what each axis of a strategy crosses.

    \b
    Examples:
      shardwise network dgx-h100 --nodes 4 --collective all_gather --group 32
      shardwise network llama3-24k-roce --tp 8 --pp 16 --order tp-cp-ep-pp-dp --plot axes.svg
    """
    from simulator.cluster.members import uniform
    from simulator.cluster.placement import Group
    from simulator.cluster.survey import (
        SIZES_BYTES,
        axis_document,
        collective_document,
        survey_axes,
        survey_collective,
    )
    from simulator.report.network import network_text
    from simulator.report.plot_network import network_figure

    cluster, said = _cluster(options)
    groups = _groups(cluster, options, said)
    sizes = options["sizes"] or SIZES_BYTES
    collective = None
    if not groups or options["collective"] or options["group"]:
        group = Group(options["group"] or cluster.devices // options["stride"], options["stride"])
        kind = options["collective"] or "all_reduce"
        collective = survey_collective(cluster, kind, group, sizes, algorithm=options["algorithm"])
    axes = survey_axes(cluster, groups, options["sizes"][0] if options["sizes"] else DEFAULT_BYTES)
    draw(plot, lambda: network_figure(uniform(cluster), axes))
    if as_json:
        print_json({
            "cluster": cluster.name, "devices": cluster.devices, "nodes": cluster.nodes,
            "collective": collective_document(collective) if collective else None,
            "axes": [axis_document(axis) for axis in axes], "notes": said,
        })  # fmt: skip
    else:
        click.echo(network_text(cluster, collective, axes, said))


def _cluster(options: Mapping[str, Any]) -> tuple[Cluster, list[str]]:
    """The cluster with its faults and its placement, and what was said about them."""
    from simulator import catalog
    from simulator.cluster.members import plain_if_equal

    return fabric_of(plain_if_equal(catalog.load_cluster(options["cluster"], nodes=options["nodes"])), options)


def _groups(cluster: Cluster, options: Mapping[str, Any], said: list[str]) -> Mapping[str, Group]:
    """The axes of the strategy that the options give; none where they give none."""
    from simulator.cluster.placement import axis_groups
    from simulator.errors import InputError, Problem

    degrees = {axis: options[axis] for axis in AXES if options[axis]}
    if not degrees:
        return {}
    if "dp" not in degrees:
        taken = degrees.get("tp", 1) * degrees.get("cp", 1) * degrees.get("pp", 1)
        degrees["dp"] = max(cluster.devices // taken, 1)
        said.append(f"dp = {degrees['dp']}: what tp, cp and pp leave of {cluster.devices} devices.")
    ranks = degrees.get("tp", 1) * degrees.get("cp", 1) * degrees["dp"]
    folded = degrees.get("ep", 1) * degrees.get("etp", 1)
    if ranks % folded:
        message = f"ep({degrees.get('ep', 1)}) * etp({degrees.get('etp', 1)}) does not divide tp * cp * dp = {ranks}."
        raise InputError([Problem(message, "--ep")])
    groups = axis_groups(cluster, order=tuple(options["order"].split("-")), **degrees)
    return {axis: groups[axis] for axis in ("tp", "cp", "ep", "etp", "dp", "edp", "pp")
            if axis not in ("ep", "etp", "edp") or folded > 1}  # fmt: skip
