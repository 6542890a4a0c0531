"""shardwise export: a strategy as a training framework's own settings, a model as Hugging Face's config.json."""

from __future__ import annotations

from typing import Any

import click

from simulator.cli.options import case_of, case_options

_FORMATS = {
    "megatron": "Megatron-LM's command-line flags.",
    "megatron-bridge": "Megatron-Bridge's (NeMo's) YAML configuration.",
    "torchtitan": "torchtitan's TOML job configuration.",
    "deepspeed": "DeepSpeed's JSON configuration.",
}


@click.group("export")
def command() -> None:
    """Write a strategy as a framework's settings, or a model as config.json; the version stands in the first line.

    \b
    Example:
      shardwise export megatron gpt3-175b dgx-a100 --nodes 128 --tp 8 --pp 8 --global-batch 1536 > flags.txt
    """


def _writer(form: str, words: str) -> click.Command:
    @click.command(form, help=f"Write a strategy as {words}")
    @case_options
    def writer(**options: Any) -> None:
        from simulator.io.formats import dump_as
        from simulator.io.imported import exportable
        from simulator.parallel.legal import check

        case = case_of(options)
        check(case.model, case.cluster, case.run, case.strategy)
        run, strategy = exportable(case.model, case.run, case.strategy, case.framework)
        click.echo(dump_as(form, strategy, run, case.model), nl=False)

    return writer


@click.command("hf")
@click.argument("model")
def _model(model: str) -> None:
    """Write MODEL as Hugging Face's config.json."""
    from simulator.catalog import load_model
    from simulator.io.hf_write import dump

    click.echo(dump(load_model(model)), nl=False)


command.add_command(_model)
for _form, _words in _FORMATS.items():
    command.add_command(_writer(_form, _words))
