"""shardwise count: parameters and FLOPs of a model."""

from __future__ import annotations

import click

from simulator.cli.options import json_option, print_json


@click.command("count")
@click.argument("model")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Sequences.")
@click.option("--seq-len", type=click.IntRange(1), help="Tokens per sequence (default: the model's).")
@json_option
def command(model: str, batch: int, seq_len: int | None, as_json: bool) -> None:
    """Count MODEL's parameters (total, active, by part) and its FLOPs forward and backward."""
    from simulator import catalog
    from simulator.count import count
    from simulator.report.text import count_text

    answer = count(catalog.load_model(model), batch=batch, seq_len=seq_len)
    if as_json:
        print_json(answer)
    else:
        click.echo(count_text(answer))
