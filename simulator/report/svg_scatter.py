"""Step time against memory for several strategies, with the front that nothing beats in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.report.svg import Scene, Shape, circle, line, path, text, ticks
from simulator.units import format_bytes, format_time

LEFT, RIGHT, TOP, TALL = 46, 14, 16, 200
WIDE = 420
"""Width from which on five times stand beneath the picture without touching."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One strategy. kind: "current", "neighbour" (one step of a dial away) or "planned"."""

    label: str
    kind: str
    step_time_s: float
    peak_bytes: float
    key: str = ""
    """What a click on it says; empty for none."""
    bound: bool = False
    """Time and memory are what it takes at least; it was not simulated (yet)."""


def front(points: Sequence[Point], limit_bytes: float) -> list[Point]:
    """Points that fit and that no other beats in time and memory, the quickest first."""
    kept: list[Point] = []
    least = math.inf
    for point in sorted(points, key=lambda p: (p.step_time_s, p.peak_bytes)):
        if point.peak_bytes <= limit_bytes and point.peak_bytes < least:
            kept.append(point)
            least = point.peak_bytes
    return kept


def scatter_scene(points: Sequence[Point], limit_bytes: float, width: int) -> Scene:
    """Points with the device's limit and the Pareto front; time is logarithmic where it spans more than a decade."""
    times = [point.step_time_s for point in points]
    fast, slow = min(times) * 0.93, max(times) * 1.07
    most = max(limit_bytes, *(point.peak_bytes for point in points)) * 1.05
    most = min(most, 4 * limit_bytes)
    bottom, wide = TOP + TALL, width - LEFT - RIGHT
    logarithmic = slow > 10 * fast

    def x(time_s: float) -> float:
        if logarithmic:
            return LEFT + wide * math.log(time_s / fast) / math.log(slow / fast)
        return LEFT + wide * (time_s - fast) / (slow - fast)

    def y(held_bytes: float) -> float:
        return bottom - TALL * min(held_bytes / most, 1.0)

    shapes: list[Shape] = []
    for tick in ticks(most / 2**30, 5):
        at = y(tick * 2**30)
        shapes += [line(LEFT, at, width - RIGHT, at), text(LEFT - 6, at + 4, f"{tick:g}", "axis", "end")]
    last = 4 if width >= WIDE else 2
    for part in range(last + 1):
        time_s = fast * (slow / fast) ** (part / last) if logarithmic else fast + (slow - fast) * part / last
        anchor = "start" if part == 0 else "end" if part == last else "middle"
        shapes.append(text(x(time_s), bottom + 15, format_time(time_s, 3), "axis", anchor))
    limit = y(limit_bytes)
    shapes += [line(LEFT, limit, width - RIGHT, limit, "limit"),
               text(width - RIGHT, limit - 4, "limit", "axis strong", "end"),
               text(LEFT - 40, TOP - 4, "GiB", "axis"),
               text(width - RIGHT, bottom + 29, "step time", "axis", "end")]  # fmt: skip
    best = front(points, limit_bytes)
    if len(best) > 1:
        shapes.append(path("M" + "L".join(f"{x(p.step_time_s):.1f} {y(p.peak_bytes):.1f}" for p in best), "front"))
    order = {"planned": 0, "neighbour": 1, "current": 2}
    for point in sorted(points, key=lambda p: order[p.kind]):
        least = "at least " if point.bound else ""
        tip = f"{point.label}: {least}{format_time(point.step_time_s)}, {format_bytes(point.peak_bytes)}"
        kind = f"point {point.kind}" + ("" if point.peak_bytes <= limit_bytes else " over")
        data = {"point": point.key} if point.key else {}
        radius = 7 if point.kind == "current" else 5
        shapes.append(circle(x(point.step_time_s), y(point.peak_bytes), radius, kind, tip=tip, **data))
    words = f"{len(points)} strategies by step time and memory; {len(best)} on the Pareto front."
    return Scene(name="scatter", title="Time against memory", words=words, width=width, height=bottom + 34,
                 shapes=tuple(shapes))  # fmt: skip
