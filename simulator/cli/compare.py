"""shardwise compare: two estimates side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click

from simulator.cli.options import json_option, print_json

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("compare")
@click.argument("one", type=_FILE)
@click.argument("other", type=_FILE)
@json_option
def command(one: Path, other: Path, as_json: bool) -> None:
    """Compare two estimates, ONE.json and OTHER.json, as `shardwise estimate --json` writes them."""
    from simulator.errors import InputError
    from simulator.plan.compare import compare
    from simulator.report.plan import comparison_text

    documents = []
    for path in (one, other):
        try:
            documents.append(json.loads(path.read_text(encoding="utf-8")))
        except json.JSONDecodeError as error:
            raise InputError([f"{path}:{error.lineno}: not JSON: {error.msg}."]) from None
    answer = compare(*documents)
    if as_json:
        print_json(answer.to_dict())
    else:
        click.echo(comparison_text(answer))
