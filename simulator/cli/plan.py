"""shardwise plan: the best strategy of the whole legal space, with its proof and reasons; and how many devices."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simulator.cli.options import draw, json_option, plot_option, print_json
from simulator.cli.quantities import FiniteRange, Quantity
from simulator.cli.waiting import waiting

if TYPE_CHECKING:
    from simulator.spec.model import ModelSpec
    from simulator.spec.run import Run

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("plan")
@click.argument("model")
@click.argument("cluster")
@click.option("--nodes", type=int, help="Nodes of the cluster (its own number otherwise).")
@click.option("--devices", metavar="COUNTS", help="Plan every count: 256..16384 doubles, 512..1024:64 steps, commas "
              "join.")  # fmt: skip
@click.option("--scaling", type=click.Choice(("both", "strong", "weak")), default="both", show_default=True,
              help="With --devices: hold the batch (strong), or the batch per device (weak).")  # fmt: skip
@click.option("--pareto", is_flag=True, help="Also the Pareto front: time against memory, with --devices also against "
              "devices and dollars.")  # fmt: skip
@click.option("--global-batch", type=int, help="Sequences per step.")
@click.option("--seq-len", type=int, help="Tokens per sequence (default: the model's).")
@click.option("--target-seq-len", type=int, help="Decoder tokens of an encoder-decoder.")
@click.option("--precision", metavar="NAME", help="fp16, bf16, fp8, ... (default: bf16).")
@click.option("--optimizer", metavar="NAME", help="adamw, adam-bf16, ... (default: adamw).")
@click.option("--framework", metavar="NAME", help="Framework profile; it decides what is searched by default.")
@click.option("--attention", metavar="KIND", help="fused or unfused (default: the framework's).")
@click.option("--run", "run_file", type=_FILE, help="Run TOML; options override it.")
@click.option("--objective", metavar="NAME", default="tokens_per_s", show_default=True,
              help="tokens_per_s, step_time, tokens_per_s_per_device, memory (most left free), days, dollars, or "
              "devices (the fewest that meet --deadline).")  # fmt: skip
@click.option("--tokens", type=Quantity("count"), help='Tokens to train on, as in "300B" (default: 20 per parameter).')
@click.option("--price", type=Quantity("price"), help='Price of a device hour, as in "2.50 USD/h" (default: the '
              "catalogue's).")  # fmt: skip
@click.option("--deadline", type=Quantity("time"), help='For the objective devices: time to train, as in "30 d".')
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Strategies to show.")
@click.option("--fix", multiple=True, metavar="NAME=VALUE", help="Give a field one value, as tp=8 (repeatable).")
@click.option("--allow", multiple=True, metavar="NAME=VALUES",
              help="Values or a range, as tp=1..8, schedule=1f1b,zbv or schedule=all (repeatable).")  # fmt: skip
@click.option("--forbid", multiple=True, metavar="NAME=VALUES", help="Values to leave out, as recompute=full.")
@click.option("--time-limit", type=FiniteRange(0, 1e9), metavar="SECONDS",
              help="Stop then: the best so far, and the gap.")  # fmt: skip
@plot_option("Draw the answers: step time against memory, or what --devices, --deadline or --pareto asks about.")
@json_option
def command(as_json: bool, plot: Path | None, **options: Any) -> None:
    """Find the best strategy for MODEL on all devices of CLUSTER, and prove it.

    \b
    Examples:
      shardwise plan gpt3-175b dgx-a100 --nodes 128 --global-batch 1536
      shardwise plan gpt3-175b dgx-a100 --devices 256..16384 --global-batch 1536 --tokens 300B --plot scaling.png
      shardwise plan gpt3-175b dgx-a100 --objective devices --deadline "30 d" --tokens 300B --global-batch 1536
    """
    from simulator import catalog
    from simulator.errors import all_of
    from simulator.plan.counts import counts_of
    from simulator.plan.words import limits_of
    from simulator.report.front import front_text
    from simulator.spec.run import Run

    _check_together(options)
    model, _, fields, limits, counts = all_of(
        lambda: catalog.load_model(options["model"]),
        lambda: catalog.load_cluster(options["cluster"], nodes=options["nodes"]),
        lambda: _run_fields(options),
        lambda: limits_of(options["fix"], options["allow"], options["forbid"]),
        lambda: None if options["devices"] is None else counts_of(options["devices"]),
    )
    wanted = {"limit": options["top"], "fix": limits.fix, "allow": limits.allow, "within": limits.within,
              "forbid": limits.forbid, "tokens": options["tokens"], "conditions": _conditions(options["price"]),
              **({} if options["time_limit"] is None else {"time_limit_s": options["time_limit"]})}  # fmt: skip
    answer = _deadline if options["objective"] == "devices" else _one if counts is None else _curves
    if options["pareto"] and "time_limit_s" in wanted:
        wanted["time_limit_s"] /= 2.0
    with waiting("planning (--time-limit gives the best found until then)"):
        document, text, picture = answer(model, Run(**fields), counts, options, wanted)
        found = _front(model, Run(**fields), counts, options, wanted) if options["pareto"] else None
    if found is not None:
        document["pareto"], picture = found.to_dict(), found.plot
        text = f"{text}\n\n{front_text(found)}"
    draw(plot, picture)
    if as_json:
        print_json(document)
    else:
        click.echo(text)


def _check_together(options: Mapping[str, Any]) -> None:
    """Options that exclude or need each other."""
    counted = options["objective"] == "devices"
    if options["nodes"] is not None and (options["devices"] is not None or counted):
        raise click.UsageError("--nodes gives one number of devices and --devices, or the objective devices, asks for "
                               "others: leave --nodes out.")  # fmt: skip
    if options["pareto"] and counted:
        raise click.UsageError("--pareto goes with given numbers of devices, not with the objective devices.")
    if counted != (options["deadline"] is not None):
        raise click.UsageError("--deadline and --objective devices belong together: give both, or neither.")


def _one(model: ModelSpec, run: Run, counts: object, options: Mapping[str, Any], wanted: Mapping[str, Any]) -> Any:
    """The plan for the devices that the cluster has."""
    from simulator import catalog
    from simulator.plan.planner import plan
    from simulator.report.plan import plan_text

    del counts
    cluster = catalog.load_cluster(options["cluster"], nodes=options["nodes"])
    answer = plan(model, cluster, run, objective=options["objective"], **wanted)
    return answer.to_dict(), plan_text(answer), answer.plot


def _curves(model: ModelSpec, run: Run, counts: Any, options: Mapping[str, Any], wanted: Mapping[str, Any]) -> Any:
    """Scaling curves; the document is that of the best count's plan, with the curves beside it."""
    from simulator import catalog
    from simulator.plan.scaling import KINDS, scaling
    from simulator.report.plot_scaling import curves_picture
    from simulator.report.scaling import scaling_text

    kinds = KINDS if options["scaling"] == "both" else (options["scaling"],)
    shared = {**wanted, **({"time_limit_s": wanted["time_limit_s"] / len(kinds)} if "time_limit_s" in wanted else {})}
    curves = [
        scaling(model, partial(catalog.load_cluster, options["cluster"]), run, counts, kind=kind,
                objective=options["objective"], **shared)
        for kind in kinds
    ]  # fmt: skip
    best = curves[0].best.plan
    document = {**(best.to_dict() if best else {}), "scaling": {curve.kind: curve.to_dict() for curve in curves}}
    return document, scaling_text(curves), lambda: curves_picture(curves)


def _front(model: ModelSpec, run: Run, counts: Any, options: Mapping[str, Any], wanted: Mapping[str, Any]) -> Any:
    """The Pareto front of the devices that the cluster has, or over several counts."""
    from simulator import catalog
    from simulator.plan.front import pareto, pareto_over

    asked = {name: value for name, value in wanted.items() if name != "limit"}
    if counts is not None:
        return pareto_over(model, partial(catalog.load_cluster, options["cluster"]), run, counts, **asked)
    return pareto(model, catalog.load_cluster(options["cluster"], nodes=options["nodes"]), run, **asked)


def _deadline(model: ModelSpec, run: Run, counts: Any, options: Mapping[str, Any], wanted: Mapping[str, Any]) -> Any:
    """The fewest devices in time; the document is that of their plan, with the counts tried beside it."""
    from simulator import catalog
    from simulator.plan.scaling import fewest_devices
    from simulator.report.scaling import deadline_text

    answer = fewest_devices(model, partial(catalog.load_cluster, options["cluster"]), run, options["deadline"], counts,
                            **wanted)  # fmt: skip
    best = answer.point.plan
    document = {**(best.to_dict() if best else {}), "objective": "devices", "deadline": answer.to_dict()}
    return document, deadline_text(answer), answer.plot


def _conditions(price: float | None) -> Any:
    from simulator.project.training import Conditions

    return None if price is None else Conditions(price_usd_per_device_hour=price)


def _run_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    from simulator.spec.run import Run
    from simulator.spec.strategy_file import read_settings

    names = ("global_batch", "seq_len", "target_seq_len", "precision", "optimizer", "framework", "attention")
    given = {name: options[name] for name in names if options[name] is not None}
    fields = {**read_settings(options["run_file"], Run), **given}
    if "global_batch" not in fields:
        raise click.UsageError("Missing option '--global-batch' (sequences per step).")
    return fields
