"""The surface grows by decision: commands, options and public names equal the committed lists.

When a change is meant, edit `cli_options.txt` or `public_names.txt` to what the failure shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

import simulator
from simulator.cli.app import app


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def _options(command: click.Command, path: str) -> Iterator[str]:
    """One line per command, argument and option; flags and their spellings as a user types them."""
    yield path
    context = click.Context(command, info_name=path)
    for parameter in command.get_params(context):
        if "--help" in parameter.opts:  # Every command has it; its spelling is cached by whoever invoked it before.
            continue
        if isinstance(parameter, click.Argument):
            yield f"{path} {(parameter.name or '').upper()}"
        else:
            yield f"{path} {' '.join([*parameter.opts, *parameter.secondary_opts])}"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None, f"{path} lists {name} and has no such command"
            yield from _options(inner, f"{path} {name}")


def test_the_command_line_is_the_committed_one(root: Path) -> None:
    assert sorted(_options(app, "shardwise")) == _lines(root / "tests" / "repo" / "cli_options.txt")


def test_the_public_names_are_the_committed_ones(root: Path) -> None:
    assert sorted(simulator.__all__) == _lines(root / "tests" / "repo" / "public_names.txt")
    assert [name for name in simulator.__all__ if getattr(simulator, name, None) is None] == []


def test_every_command_and_option_says_what_it_does() -> None:
    silent = []

    def visit(command: click.Command, path: str) -> None:
        if not (command.help or "").strip():
            silent.append(path)
        context = click.Context(command, info_name=path)
        options = [parameter for parameter in command.get_params(context) if isinstance(parameter, click.Option)]
        silent.extend(f"{path} {option.opts[0]}" for option in options if not (option.help or "").strip())
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                if inner is not None:
                    visit(inner, f"{path} {name}")

    visit(app, "shardwise")
    assert not silent


def test_every_command_answers_in_json() -> None:
    context = click.Context(app)
    exempt = {"export", "report", "explore"}  # Their answer is a file or a page.
    mute = []

    def visit(command: click.Command, path: str) -> None:
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                if inner is not None and name not in exempt:
                    visit(inner, f"{path} {name}")
        elif not any("--json" in parameter.opts for parameter in command.params):
            mute.append(path)

    visit(app, "shardwise")
    assert not mute
