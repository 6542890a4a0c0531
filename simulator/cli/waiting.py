"""Something to look at while a command works: a line on a terminal's stderr that counts the seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

PATIENCE_S = 1.0
"""Seconds before the line appears, and between its changes."""


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows "`what` ... 3 s" on a terminal while the block runs, and wipes it at the end; nothing when piped."""
    if not sys.stderr.isatty():
        yield
        return
    done, started = threading.Event(), time.monotonic()

    def count() -> None:
        shown = ""
        while not done.wait(PATIENCE_S):
            shown = f"{what} ... {time.monotonic() - started:.0f} s"
            click.echo(f"\r{shown}", nl=False, err=True)
        if shown:
            click.echo("\r" + " " * len(shown) + "\r", nl=False, err=True)

    counter = threading.Thread(target=count, daemon=True)
    counter.start()
    try:
        yield
    finally:
        done.set()
        counter.join()
