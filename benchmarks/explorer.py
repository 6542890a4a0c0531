"""`make bench-web`: how quickly the explorer's page stands and follows its dials, in headless Chromium.

Prints the first contentful paint [ms], and for turns of several dials the time from the turn to the finished page
[ms]: numbers, tables and all five pictures of the new strategy, the scatter with bounds of its neighbours; and until
all neighbours are simulated. Targets (on the machine of the project's checks): 1000 ms, 100 ms.

Elapsed times are those of an idle machine only if it is idle: the processor time of an update (of the server, the
browser's driver included, and of the page's main thread) says what it takes on a loaded one.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
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


_TURN = """async ([name, value]) => {
  const box = document.getElementById(`dial-${name}`), body = document.body.dataset;
  const before = body.revision;
  window.began = performance.now();
  window.scatteredBefore = body.scattered;
  box.value = value;
  box.dispatchEvent(new Event("change", { bubbles: true }));
  return await window.until(() => body.revision !== before);
}"""
_NEIGHBOURS = "async () => await window.until(() => document.body.dataset.scattered !== window.scatteredBefore)"
_UNTIL = """() => { window.until = (ready) => new Promise((done) => {
  const look = () => (ready() || performance.now() - window.began > 5000 ? done(performance.now() - window.began)
    : setTimeout(look, 1));
  look();
}); }"""


class Watched:
    """A page with the processor seconds that it and its server (this process) have used."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.session = page.context.new_cdp_session(page)
        self.session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def cpu_ms(self) -> tuple[float, float]:
        """Processor milliseconds so far: of this process, of the page's main thread."""
        found = self.session.send("Performance.getMetrics")["metrics"]
        return time.process_time() * 1e3, 1e3 * next(m["value"] for m in found if m["name"] == "TaskDuration")

    def turn(self, name: str, value: str) -> dict[str, float]:
        """One turn of a dial [ms]: until the page shows it, until its neighbours are simulated, processor time."""
        self.page.evaluate(_UNTIL)
        before = self.cpu_ms()
        shown = float(self.page.evaluate(_TURN, [name, value]))
        after = self.cpu_ms()
        nearby = float(self.page.evaluate(_NEIGHBOURS))
        return {"update_ms": shown, "with_neighbours_ms": nearby, "update_server_cpu_ms": after[0] - before[0],
                "update_page_cpu_ms": after[1] - before[1]}  # fmt: skip


def main() -> None:
    with explorer() as server, chromium() as browser:
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        watched = Watched(page)
        paints, turns = [], []
        for _ in range(ROUNDS):
            page.goto("about:blank")
            page.goto(server.url)
            settled(page)
            paints.append(paint_ms(page))
            turns += [watched.turn(name, value) for name, value in TURNS]
    answer = {
        "first_contentful_paint_ms": [round(paint) for paint in paints],
        "turns": len(turns),
        **{name: summary([turn[name] for turn in turns]) for name in turns[0]},
    }
    print(json.dumps(answer, indent=2))


def summary(times_ms: list[float]) -> dict[str, int]:
    """Median, 90th percentile and worst, in whole milliseconds."""
    ordered = sorted(times_ms)
    quantile = ordered[int(0.9 * (len(ordered) - 1))]
    return {"median": round(statistics.median(ordered)), "p90": round(quantile), "worst": round(ordered[-1])}


if __name__ == "__main__":
    main()
