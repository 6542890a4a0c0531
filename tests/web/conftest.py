"""One Chromium and one explorer for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request

from simulator.web.server import Explorer
from tests.web.explorer_page import chromium, explorer


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def server() -> Iterator[Explorer]:
    with explorer() as found:
        yield found


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    found = browser.new_context(viewport={"width": 1300, "height": 900})
    yield found
    found.close()


@pytest.fixture
def page(context: BrowserContext, server: Explorer) -> Iterator[Page]:
    """A page whose every request goes to the explorer and whose console stays silent."""
    found = context.new_page()
    noise: list[str] = []
    elsewhere: list[str] = []

    def asked(request: Request) -> None:
        if not request.url.startswith(f"http://127.0.0.1:{server.port}/"):
            elsewhere.append(request.url)

    def said(message: object) -> None:
        text = str(getattr(message, "text", message))
        # Chromium itself reports answers that are refusals; the page shows what they say.
        if "422 (Unprocessable" not in text:
            noise.append(text)

    found.on("request", asked)
    found.on("console", said)
    found.on("pageerror", said)
    yield found
    assert elsewhere == []
    assert noise == []
