"""Options that change the fabric of a cluster: where ranks stand, hash collisions, traffic off its rail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from simulator.cli.quantities import FiniteRange

if TYPE_CHECKING:
    from simulator.spec.hardware import Cluster

Command = TypeVar("Command", bound=Callable[..., Any])
_OPTIONS = (
    click.option("--rank-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                 help="Device of each rank, one number a line (default: rank r is device r)."),
    click.option("--ecmp-paths", type=click.IntRange(1, 10**4),
                 help="Hash the outermost tier's flows onto this many equal paths."),
    click.option("--flows-per-device", type=click.IntRange(1, 10**4), default=1, show_default=True,
                 help="Connections that a device spreads its traffic over, for --ecmp-paths."),
    click.option("--off-rail", type=FiniteRange(0, 1), help="Share of traffic between unequal rails (0 to 1)."),
)  # fmt: skip
NAMES = ("rank_file", "ecmp_paths", "flows_per_device", "off_rail")


def fabric_options(function: Command) -> Command:
    """--rank-file, --ecmp-paths, --flows-per-device and --off-rail."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def fabric_of(cluster: Cluster, options: Mapping[str, Any]) -> tuple[Cluster, list[str]]:
    """The cluster as these options make it, and what they did, in words.

    Raises InputError where the cluster has no such tier, and for a bad rank file.
    """
    from simulator.cluster.degrade import ecmp_slowdown, off_rail, with_collisions
    from simulator.cluster.placement import with_rank_file

    said = []
    paths, flows, share = options["ecmp_paths"], options["flows_per_device"], options["off_rail"]
    if paths:
        cluster = with_collisions(cluster, flows_per_device=flows, paths=paths)
        slow = ecmp_slowdown(flows * min(cluster.tiers[-2].size, paths), paths)
        said.append(f"Hash collisions on {paths} paths: the fullest carries {slow:.3g} times the mean, which slows "
                    f"{cluster.tiers[-1].name}.")  # fmt: skip
    if share is not None:
        cluster = off_rail(cluster, share)
        said.append(f"{share:.0%} of the traffic leaves its rail.")
    if options["rank_file"]:
        cluster = with_rank_file(cluster, options["rank_file"])
        said.append(f"Ranks are placed by {options['rank_file']}.")
    return cluster, said
