"""`make bench-web`: how quickly the explorer's page stands and follows its dials, in headless Chromium.

Prints the first contentful paint [ms], and for turns of several dials the time from the turn to the finished page
[ms]: numbers, tables and pictures of the new strategy; and until the neighbours on the scatter have followed too.
Targets (on the machine of the project's checks): 1000 ms, 100 ms.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:
    sys.path.insert(0, str(HERE.parent))

from playwright.sync_api import Page  # noqa: E402 (after the path)

from tests.web.explorer_page import chromium, explorer, settled  # noqa: E402

TURNS = [
    ("tp", "4"), ("tp", "8"), ("pp", "16"), ("vp", "3"), ("pp", "8"), ("vp", "6"), ("micro_batch", "2"), ("zero", "1"),
    ("recompute", "full"), ("global_batch", "768"), ("seq_len", "4096"), ("nodes", "64"), ("precision", "fp16"),
    ("cp", "2"), ("cluster", "dgx-h100"), ("pp", "4"), ("vp", "4"), ("model", "gpt3-13b"), ("vp", "2"),
]  # fmt: skip
"""From the first page on, each turn changes the strategy, and each strategy can run."""
ROUNDS = 3


def paint_ms(page: Page) -> float:
    """First contentful paint of the page, from the start of its navigation."""
    paints = page.evaluate("() => performance.getEntriesByType('paint').map(e => [e.name, e.startTime])")
    return float(dict(paints)["first-contentful-paint"])


def turn_ms(page: Page, name: str, value: str) -> tuple[float, float]:
    """Milliseconds until the page shows the new strategy, and until its neighbours stand there too."""
    found = page.evaluate(
        """async ([name, value]) => {
          const box = document.getElementById(`dial-${name}`), body = document.body.dataset;
          const before = body.revision, scattered = body.scattered, began = performance.now();
          box.value = value;
          box.dispatchEvent(new Event("change", { bubbles: true }));
          const until = (ready) => new Promise((done) => {
            const look = () => (ready() || performance.now() - began > 3000 ? done(performance.now() - began)
              : setTimeout(look, 1));
            look();
          });
          const shown = await until(() => body.revision !== before);
          return [shown, await until(() => body.scattered !== scattered)];
        }""",
        [name, value],
    )
    return float(found[0]), float(found[1])


def main() -> None:
    with explorer() as server, chromium() as browser:
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        paints, times = [], []
        for _ in range(ROUNDS):
            page.goto("about:blank")
            page.goto(server.url)
            settled(page)
            paints.append(paint_ms(page))
            times += [turn_ms(page, name, value) for name, value in TURNS]
    answer = {
        "first_contentful_paint_ms": [round(paint) for paint in paints],
        "turns": len(times),
        "update_ms": summary([shown for shown, _ in times]),
        "with_neighbours_ms": summary([nearby for _, nearby in times]),
    }
    print(json.dumps(answer, indent=2))


def summary(times_ms: list[float]) -> dict[str, int]:
    """Median, 90th percentile and worst, in whole milliseconds."""
    ordered = sorted(times_ms)
    quantile = ordered[int(0.9 * (len(ordered) - 1))]
    return {"median": round(statistics.median(ordered)), "p90": round(quantile), "worst": round(ordered[-1])}


if __name__ == "__main__":
    main()
