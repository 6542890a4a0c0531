"""shardwise catalog: what is in the catalogue, one entry in full, and whether counts equal the published ones."""

from __future__ import annotations

import click

from simulator.cli.options import json_option, print_json

KINDS = ("models", "devices", "clusters", "frameworks")


@click.group("catalog")
def command() -> None:
    """List, show and check the catalogue."""


@command.command("list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@json_option
def list_entries(kind: str | None, as_json: bool) -> None:
    """Names in the catalogue, of one KIND or of all."""
    from simulator import catalog

    found = {each: list(catalog.names(each)) for each in KINDS if kind in (None, each)}
    if as_json:
        print_json(found)
        return
    for each, names in found.items():
        click.echo(f"{each} ({len(names)})")
        for name in names:
            click.echo(f"  {name}")


@command.command("show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """The file of one entry (as it stands, with its sources), or its table as JSON."""
    from simulator import catalog

    table, text = catalog.entry(name)
    if as_json:
        print_json(table)
    else:
        click.echo(text, nl=False)


@command.command("check")
@click.argument("names", nargs=-1, metavar="[MODEL]...")
@json_option
def check(names: tuple[str, ...], as_json: bool) -> None:
    """Compare our parameter counts with the published ones; exit 1 where a difference is not explained."""
    from simulator import catalog
    from simulator.check import check_model
    from simulator.errors import Infeasible
    from simulator.report.text import check_text

    rows = [check_model(catalog.load_model(name)) for name in names or catalog.names("models")]
    if as_json:
        print_json({"rows": rows})
    else:
        click.echo(check_text(rows))
    wrong = [row for row in rows if not row["ok"]]
    if wrong:
        raise Infeasible([f"{row['model']}: {row['message']}" for row in wrong])
