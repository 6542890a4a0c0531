"""shardwise import: a framework's settings as a strategy and a run, Hugging Face's config.json as a model."""

from __future__ import annotations

import sys
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from simulator.cli.options import json_option, print_json

FORMATS = ("hf", "megatron", "megatron-bridge", "torchtitan", "deepspeed")


@click.command("import")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True))
@click.option("--format", "form", type=click.Choice(FORMATS), help="What FILE is (default: what stands in it).")
@click.option("--devices", type=click.IntRange(min=1), help="Devices of the run; dp is what the other degrees leave.")
@click.option("--layers", type=click.IntRange(min=1), help="Layers of the model, where a split over stages needs them.")
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="NAME",
              help="Write NAME.toml (a model), or NAME-strategy.toml and NAME-run.toml.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that exist.")
@json_option
def command(
    file: Path, *, form: str | None, devices: int | None, layers: int | None, out: Path | None, force: bool,
    as_json: bool,
) -> None:
    """Read FILE (- for standard input) as a model, or as a strategy and a run, in the form other commands take.

    \b
    Examples:
      shardwise import config.json -o my-model && shardwise count ./my-model.toml
      shardwise import flags.txt --devices 1024 -o mine
      shardwise estimate gpt3-175b dgx-a100 --nodes 128 --strategy mine-strategy.toml --run mine-run.toml
    """
    from simulator.io.formats import recognise

    shown = "standard input" if str(file) == "-" else str(file)
    text = sys.stdin.read() if str(file) == "-" else _text(file)
    form = form or recognise(text, shown)
    written, document, notes = _settings(form, text, shown, devices or 0, layers or 0)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    if out is not None:
        _write(out, written, force=force)
    if as_json:
        print_json({"format": form, **document, "notes": notes})
    elif out is None:
        click.echo("\n".join(written.values()), nl=False)


def _settings(
    form: str, text: str, shown: str, devices: int, layers: int
) -> tuple[dict[str, str], dict[str, Any], list[str]]:
    """Our files by the ending of their name, the same as one document, and what to tell the user."""
    from simulator.io.formats import load_as, run_toml, strategy_toml

    if form == "hf":
        from simulator.io import hf

        written, notes = hf.load(text, path=shown)
        return {".toml": written}, {"model": tomllib.loads(written)}, list(notes)
    found = load_as(form, text, path=shown, devices=devices, layers=layers)
    files = {"-strategy.toml": strategy_toml(found.strategy), "-run.toml": run_toml(found.run)}
    return files, {"strategy": asdict(found.strategy), "run": dict(found.run)}, list(found.notes)


def _text(file: Path) -> str:
    from simulator.spec.reading import read_text

    return read_text(file, str(file))


def _write(out: Path, written: dict[str, str], *, force: bool) -> None:
    from simulator.io.files import write_bytes

    for ending, content in written.items():
        path = out.with_name(out.name.removesuffix(".toml") + ending)
        write_bytes(path, content.encode("utf-8"), force=force)
        click.echo(f"wrote {path}", err=True)
