"""A running explorer, and a Chromium that looks at it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

from simulator.web.server import Explorer, open_explorer

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def chromium_path() -> str:
    """The browser: what CHROMIUM names, or the first one that is installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not found:
        raise RuntimeError("no Chromium: `apt-get install chromium`, or name one with CHROMIUM=/path/to/it")
    return found


@contextmanager
def explorer() -> Iterator[Explorer]:
    """A warm server on a free port, in a thread."""
    with open_explorer() as server:
        server.warm_up()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def settled(page: Page) -> None:
    """Wait until the newest state has been answered, pictures and neighbours too."""
    page.wait_for_function(
        "() => document.body.dataset.revision && (document.getElementById('problems').hidden === false"
        " || Object.entries(Object.fromEntries(new URLSearchParams(location.hash.slice(1))))"
        ".every(([k, v]) => String(JSON.parse(document.body.dataset.scattered || '{}')[k]) === v))"
    )
