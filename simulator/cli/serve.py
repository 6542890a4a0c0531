"""shardwise serve: prefill, decode and cache of a model on the same hardware."""

from __future__ import annotations

from typing import Any

import click

from simulator.cli.options import json_option, print_json
from simulator.cli.quantities import Quantity


@click.command("serve")
@click.argument("model")
@click.argument("cluster")
@click.option("--nodes", type=int, help="Nodes of the cluster (its own number otherwise).")
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="Tensor-parallel degree.")
@click.option("--pp", type=click.IntRange(1), default=1, show_default=True, help="Pipeline stages.")
@click.option("--ep", type=click.IntRange(1), default=1, show_default=True, help="Expert-parallel degree.")
@click.option("--etp", type=click.IntRange(1), default=1, show_default=True, help="Tensor-parallel inside experts.")
@click.option("--replicas", type=click.IntRange(1), help="Copies of the model (default: what the devices leave).")
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Sequences per replica at once.")
@click.option("--prompt", type=click.IntRange(1), default=1024, show_default=True, help="Tokens of a prompt.")
@click.option("--output", type=click.IntRange(1), default=256, show_default=True, help="Tokens of an answer.")
@click.option("--precision", default="bf16", show_default=True, help="Precision of weights and products.")
@click.option("--kv-dtype", default="bf16", show_default=True, help="bf16, fp16 or fp8: dtype of the cache.")
@click.option("--price", type=Quantity("price"), help='Price of a device hour, as in "2.50 USD/h".')
@json_option
def command(*, model: str, cluster: str, nodes: int | None, as_json: bool, **options: Any) -> None:
    """Time to first token, time per token, cache and price of serving MODEL on CLUSTER (a first step).

    \b
    Example:
      shardwise serve llama3.1-70b dgx-h100 --nodes 1 --tp 8 --batch 64 --prompt 2048 --output 512
    """
    from simulator import catalog
    from simulator.report.serving import serving_text
    from simulator.serving import Load, serve
    from simulator.spec.strategy import Strategy

    machine = catalog.load_cluster(cluster, nodes=nodes)
    tp, pp = options["tp"], options["pp"]
    strategy = Strategy(
        tp=tp, pp=pp, ep=options["ep"], etp=options["etp"],
        dp=options["replicas"] or max(machine.devices // (tp * pp), 1),
    )  # fmt: skip
    load = Load(batch=options["batch"], prompt_tokens=options["prompt"], output_tokens=options["output"],
                kv_dtype=options["kv_dtype"])  # fmt: skip
    answer = serve(catalog.load_model(model), machine, strategy, load, precision=options["precision"],
                   price_usd_per_device_hour=options["price"])  # fmt: skip
    if as_json:
        print_json(answer.to_dict())
    else:
        click.echo(serving_text(answer))
