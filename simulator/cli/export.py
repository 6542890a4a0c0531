"""shardwise export: a strategy as a training framework's own settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from simulator.cli.options import case_of, case_options

FORMATS = ("megatron", "deepspeed")


@click.command("export")
@click.argument("form", metavar="FORMAT", type=click.Choice(FORMATS))
@case_options
def command(form: str, **options: Any) -> None:
    """Write a strategy as FORMAT (megatron, deepspeed), its version in the first line."""
    from simulator.io import deepspeed, megatron
    from simulator.parallel.legal import check

    case = case_of(options)
    check(case.model, case.cluster, case.run, case.strategy)
    dump = {"megatron": megatron.dump, "deepspeed": deepspeed.dump}[form]
    click.echo(dump(case.strategy, replace(case.run, seq_len=case.run.seq_len or case.model.seq_len)), nl=False)
