"""Options that several commands share, and what they are turned into."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from simulator import catalog
from simulator.errors import all_of
from simulator.parallel.presets import describe, preset
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import OPTIMIZERS, PRECISIONS, Framework, Run
from simulator.spec.strategy import CONTEXT_KINDS, OFFLOAD, RECOMPUTE, SCHEDULES, Strategy

Command = TypeVar("Command", bound=Callable[..., Any])
DEGREES = ("tp", "pp", "dp", "cp", "ep", "etp", "vp", "zero", "micro_batch")


@dataclass(frozen=True, slots=True)
class Case:
    """What one invocation asks about. `said` are choices made for the caller, in words."""

    model: ModelSpec
    cluster: Cluster
    run: Run
    strategy: Strategy
    framework: Framework
    said: tuple[str, ...]


def json_option(function: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout and nothing else.")(
        function
    )


def case_options(function: Command) -> Command:
    """MODEL, CLUSTER and everything that describes a run and a strategy."""
    for option in reversed(_CASE):
        function = option(function)
    return function


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_CASE = (
    click.argument("model"),
    click.argument("cluster"),
    click.option("--nodes", type=int, help="Nodes of the cluster (its own number otherwise)."),
    click.option("--tp", type=int, help="Tensor-parallel degree."),
    click.option("--pp", type=int, help="Pipeline-parallel degree."),
    click.option("--dp", type=int, help="Data-parallel degree (default: what the devices leave)."),
    click.option("--cp", type=int, help="Context-parallel degree."),
    click.option("--ep", type=int, help="Expert-parallel degree, borrowed from dp, cp and tp."),
    click.option("--etp", type=int, help="Tensor-parallel degree inside experts."),
    click.option("--vp", type=int, help="Virtual stages per pipeline rank."),
    click.option("--schedule", metavar="NAME", help=f"Pipeline schedule: {', '.join(SCHEDULES)}."),
    click.option("--zero", type=int, help="ZeRO stage 0 to 3 (3 is FSDP)."),
    click.option("--shard-group", type=int, help="HSDP: ranks per shard group."),
    click.option("--micro-batch", type=int, help="Sequences per micro-batch."),
    click.option("--global-batch", type=int, help="Sequences per step."),
    click.option("--seq-len", type=int, help="Tokens per sequence (default: the model's)."),
    click.option("--target-seq-len", type=int, help="Decoder tokens of an encoder-decoder."),
    click.option("--recompute", metavar="KIND", help=f"{', '.join(RECOMPUTE)}; modules by name with commas."),
    click.option("--recompute-layers", metavar="N[,N...]", help="Full recomputation of so many layers of each stage; "
                 "one number, or one for every stage in model order."),
    click.option("--precision", metavar="NAME", help=f"{', '.join(PRECISIONS)}."),
    click.option("--optimizer", metavar="NAME", help=f"{', '.join(OPTIMIZERS)}."),
    click.option("--framework", metavar="NAME", help="Framework profile (see `shardwise catalog list frameworks`)."),
    click.option("--attention", metavar="KIND", help="fused or unfused (default: the framework's)."),
    click.option("--sequence-parallel/--no-sequence-parallel", default=None, help="Split norms over tp (default: on)."),
    click.option("--context-kind", metavar="KIND", help=f"{', '.join(CONTEXT_KINDS)}."),
    click.option("--offload", metavar="KIND", help=f"States in host memory: {', '.join(OFFLOAD)}."),
    click.option("--order", metavar="AXES", help="Placement, innermost first (default tp-cp-ep-dp-pp)."),
    click.option("--layers-per-stage", metavar="N,N,...", help="Layers of each stage in model order."),
    click.option("--preset", metavar="NAME", help="Switch Transformer's partitionings: data, model, model+data, "
                 "expert+data, expert+model+data; other options override it."),
    click.option("--strategy", "strategy_file", type=_FILE, help="Strategy TOML; options override it."),
    click.option("--run", "run_file", type=_FILE, help="Run TOML; options override it."),
)


def case_of(options: Mapping[str, Any]) -> Case:
    """Read the catalogue and the files, apply the options on top, fill what is left open, saying so."""
    from simulator.spec.strategy_file import read_settings

    chosen = _chosen(options)
    model, cluster, run_fields, given = all_of(
        lambda: catalog.load_model(options["model"]),
        lambda: catalog.load_cluster(options["cluster"], nodes=options.get("nodes")),
        lambda: _fields_of(Run, read_settings(options.get("run_file"), Run), chosen),
        lambda: read_settings(options.get("strategy_file"), Strategy),
    )
    said: list[str] = []
    if "global_batch" not in run_fields:
        raise click.UsageError("Missing option '--global-batch' (sequences per step).")
    run = Run(**run_fields)
    framework = catalog.load_framework(run.framework)
    strategy_fields = _fields_of(Strategy, given, chosen)
    if options.get("preset"):
        strategy_fields = _preset_fields(options["preset"], model, cluster, run, strategy_fields)
        said += describe(options["preset"], Strategy(**strategy_fields))
    if "dp" not in strategy_fields:
        taken = strategy_fields.get("tp", 1) * strategy_fields.get("pp", 1) * strategy_fields.get("cp", 1)
        strategy_fields["dp"] = max(cluster.devices // max(taken, 1), 1)
        said.append(f"dp = {strategy_fields['dp']}: what tp, cp and pp leave of {cluster.devices} devices.")
    return Case(model, cluster, run, Strategy(**strategy_fields), framework, tuple(said))


def _preset_fields(
    name: str, model: ModelSpec, cluster: Cluster, run: Run, given: Mapping[str, Any]
) -> dict[str, Any]:
    """A preset's strategy, one micro-batch per step where nothing else is given; what is given wins."""
    found = asdict(preset(name, model, cluster.devices, model_ways=given.get("tp", 0)))
    found["micro_batch"] = max(run.global_batch // found["dp"], 1)
    return {**found, **given}


def _chosen(options: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {name: value for name, value in options.items() if value is not None}
    recompute = chosen.get("recompute")
    if recompute is not None and recompute not in RECOMPUTE:
        chosen["recompute"] = "modules"
        chosen["recompute_modules"] = tuple(part.strip() for part in recompute.split(","))
    if "order" in chosen:
        chosen["order"] = tuple(chosen["order"].split("-"))
    if "recompute_layers" in chosen:
        numbers = integers(chosen["recompute_layers"], "--recompute-layers")
        chosen["recompute_layers"] = numbers if len(numbers) > 1 else numbers[0]
    if "layers_per_stage" in chosen:
        chosen["layers_per_stage"] = integers(chosen["layers_per_stage"], "--layers-per-stage")
    return chosen


MOST_REPEATED = 10_000
"""Times that a list may repeat a number: more stages than any pipeline has."""


def integers(text: str, option: str) -> tuple[int, ...]:
    """The whole numbers of "12,12,13" or, as tables print them, "12*2,13". Raises BadParameter naming the option."""
    try:
        return tuple(number for part in text.split(",") for number in _repeated(part))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of whole numbers, as in 12,12,13 or 12*2,13.",
                                 param_hint=option) from None  # fmt: skip


def _repeated(part: str) -> list[int]:
    number, star, times = part.partition("*")
    count = int(times) if star else 1
    if not 1 <= count <= MOST_REPEATED:
        raise ValueError(part)
    return [int(number)] * count


def _fields_of(kind: type, from_file: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    names = {entry.name for entry in fields(kind)}
    return {**from_file, **{name: value for name, value in chosen.items() if name in names}}


def plot_option(words: str) -> Callable[[Command], Command]:
    """--plot FILE: what is drawn, in words."""
    return click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
                        help=f"{words} A PNG, SVG or PDF, by the name's ending.")  # fmt: skip


def draw(plot: Path | None, figure: Callable[[], Any]) -> None:
    """Write the picture of --plot, and say so on stderr. Raises InputError as `report.plot.save` does."""
    if plot is None:
        return
    from simulator.report.plot import save

    save(figure(), plot)
    click.echo(f"wrote {plot}", err=True)


def print_json(document: Any) -> None:
    """The one JSON document of a command; never NaN or infinity."""
    json.dump(document, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")
