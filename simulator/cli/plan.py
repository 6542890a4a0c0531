"""shardwise plan: the best strategy of the whole legal space, with its proof and reasons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from simulator.cli.options import draw, json_option, plot_option, print_json
from simulator.cli.quantities import Quantity

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("plan")
@click.argument("model")
@click.argument("cluster")
@click.option("--nodes", type=int, help="Nodes of the cluster (its own number otherwise).")
@click.option("--global-batch", type=int, help="Sequences per step.")
@click.option("--seq-len", type=int, help="Tokens per sequence (default: the model's).")
@click.option("--target-seq-len", type=int, help="Decoder tokens of an encoder-decoder.")
@click.option("--precision", metavar="NAME", help="fp16, bf16, fp8, ... (default: bf16).")
@click.option("--optimizer", metavar="NAME", help="adamw, adam-bf16, ... (default: adamw).")
@click.option("--framework", metavar="NAME", help="Framework profile; it decides what is searched by default.")
@click.option("--attention", metavar="KIND", help="fused or unfused (default: the framework's).")
@click.option("--run", "run_file", type=_FILE, help="Run TOML; options override it.")
@click.option("--objective", metavar="NAME", default="tokens_per_s", show_default=True,
              help="tokens_per_s, step_time, tokens_per_s_per_device, memory (most left free) or dollars.")  # fmt: skip
@click.option("--tokens", type=Quantity("count"), help='Tokens to train on, as in "300B" (default: 20 per parameter).')
@click.option("--price", type=Quantity("price"), help='Price of a device hour, as in "2.50 USD/h" (default: the '
              "catalogue's).")  # fmt: skip
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Strategies to show.")
@click.option("--fix", multiple=True, metavar="NAME=VALUE", help="Give a field one value, as tp=8 (repeatable).")
@click.option("--allow", multiple=True, metavar="NAME=VALUES",
              help="Values or a range, as tp=1..8, schedule=1f1b,zbv or schedule=all (repeatable).")  # fmt: skip
@click.option("--forbid", multiple=True, metavar="NAME=VALUES", help="Values to leave out, as recompute=full.")
@click.option("--time-limit", type=float, metavar="SECONDS", help="Stop then: the best so far, and the gap.")
@plot_option("Draw the answers: step time against memory.")
@json_option
def command(as_json: bool, plot: Path | None, **options: Any) -> None:
    """Find the best strategy for MODEL on all devices of CLUSTER, and prove it.

    \b
    Example:
      shardwise plan gpt3-175b dgx-a100 --nodes 128 --global-batch 1536
    """
    from simulator import catalog
    from simulator.errors import all_of
    from simulator.plan.planner import FOREVER_S, plan
    from simulator.plan.words import limits_of
    from simulator.report.plan import plan_text
    from simulator.spec.run import Run

    model, cluster, fields, limits = all_of(
        lambda: catalog.load_model(options["model"]),
        lambda: catalog.load_cluster(options["cluster"], nodes=options["nodes"]),
        lambda: _run_fields(options),
        lambda: limits_of(options["fix"], options["allow"], options["forbid"]),
    )
    run = Run(**fields)
    answer = plan(
        model, cluster, run, objective=options["objective"], limit=options["top"], fix=limits.fix, allow=limits.allow,
        within=limits.within, forbid=limits.forbid, time_limit_s=options["time_limit"] or FOREVER_S,
        tokens=options["tokens"], conditions=_conditions(options["price"]),
    )  # fmt: skip
    draw(plot, answer.plot)
    if as_json:
        print_json(answer.to_dict())
    else:
        click.echo(plan_text(answer))


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
