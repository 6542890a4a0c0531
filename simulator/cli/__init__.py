"""The command line: the only place that prints. Exit 0 answer, 1 infeasible, 2 bad input, 3 internal."""

from __future__ import annotations

import os
import shutil
import sys

from simulator.errors import EXIT_BAD_INPUT, EXIT_INFEASIBLE, EXIT_INTERNAL, Infeasible, InputError


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    import click

    from simulator.cli.app import app

    _look()
    try:
        app.main(args=arguments, prog_name="shardwise", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return EXIT_BAD_INPUT
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("interrupted\n")
        return 130
    except InputError as error:
        _complain("error", error)
        return EXIT_BAD_INPUT
    except Infeasible as error:
        _complain("infeasible", error)
        return EXIT_INFEASIBLE
    except BrokenPipeError:
        # The reader (head, less) has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("SHARDWISE_DEBUG"):
            raise
        sys.stderr.write(f"internal error: {type(error).__name__}: {error}\n")
        sys.stderr.write("This is a defect of shardwise; SHARDWISE_DEBUG=1 shows where.\n")
        return EXIT_INTERNAL
    return 0


def _look() -> None:
    """Tables as wide as a terminal, in colour unless NO_COLOR is set (no-color.org); plain text into a pipe or file."""
    if not sys.stdout.isatty():
        return
    from simulator.report.text import LOOK, Look

    columns = max(shutil.get_terminal_size().columns, NARROWEST)
    LOOK.set(Look(columns=columns, colour=not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"))


NARROWEST = 60
"""Columns below which a table cannot be read."""


def _complain(kind: str, error: InputError | Infeasible) -> None:
    for problem in error.problems:
        sys.stderr.write(f"{kind}: {problem}\n")
