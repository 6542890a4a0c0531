"""shardwise fleet: several jobs on one cluster."""

from __future__ import annotations

from pathlib import Path

import click

from simulator.cli.options import json_option, print_json


@click.command("fleet")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def command(*, file: Path, as_json: bool) -> None:
    """Place the jobs of FILE on its cluster in several ways and show what they take from each other.

    \b
    Example:
      shardwise fleet examples/fleet_pods.toml
    """
    from simulator.fleet import fleet, read_fleet
    from simulator.report.fleet import fleet_text

    answer = fleet(*read_fleet(file))
    if as_json:
        print_json(answer.to_dict())
    else:
        click.echo(fleet_text(answer))
