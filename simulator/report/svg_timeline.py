"""The step on a time axis: each pipeline rank's tasks, what it waits for, and memory beneath."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.report.memory_curve import memory_curve
from simulator.report.svg import Pixels, Scene, Shape, line, path, rect, text, ticks
from simulator.report.svg_bars import shown_ranks
from simulator.result import Estimate
from simulator.schedule.order import KINDS
from simulator.schedule.timeline import Timeline
from simulator.units import format_bytes, format_percent, format_time

LEFT, RIGHT, TOP, CURVE = 34, 12, 22, 72
SPARSE_PIXELS = 3.0
"""Where a task would get fewer pixels, only the opening and the end of the step are drawn."""
NUMBERED_PIXELS = 15.0
_WORDS = {"F": "forward", "B": "input gradient", "W": "weight gradient", "BW": "backward"}


@dataclass(frozen=True, slots=True)
class Window:
    """A part of the step, and the pixels that it is drawn on."""

    start_s: float
    end_s: float
    left: Pixels
    right: Pixels

    @property
    def pixels_per_s(self) -> float:
        return (self.right - self.left) / (self.end_s - self.start_s)

    def x(self, time_s: npt.NDArray[np.float64] | float) -> npt.NDArray[np.float64]:
        """Pixel of a moment, kept inside the window."""
        kept = np.clip(time_s, self.start_s, self.end_s)
        return np.asarray(self.left + (kept - self.start_s) * self.pixels_per_s)


def windows_of(line_of: Timeline, step_s: float, width: Pixels) -> tuple[Window, ...]:
    """The whole step; or its opening and its end, where tasks would be too thin to see."""
    end = LEFT + width
    each = line_of.order.tasks / line_of.order.pp
    if width / each >= SPARSE_PIXELS:
        return (Window(0.0, step_s, LEFT, end),)
    gap = 26.0
    half = (width - gap) / 2
    seconds = step_s * half / SPARSE_PIXELS / each
    return (
        Window(0.0, seconds, LEFT, LEFT + half),
        Window(step_s - seconds, step_s, LEFT + half + gap, end),
    )


def timeline_scene(answer: Estimate, width: int) -> Scene:
    """Tasks of the pipeline ranks over one step (or its opening and its end), and the fullest rank's memory."""
    line_of, step_s = answer.timeline(), answer.step_time_s
    ranks = shown_ranks(line_of.order.pp, 16 if width >= 500 else 8)
    row = 22 if len(ranks) <= 4 else 16 if len(ranks) <= 8 else 12
    windows = windows_of(line_of, step_s, width - LEFT - RIGHT)
    bottom = TOP + row * len(ranks)
    shapes = [text(LEFT - 6, TOP + i * row + row / 2 + 4, str(rank), "axis", "end") for i, rank in enumerate(ranks)]
    for window in windows:
        shapes.append(rect(window.left, TOP, window.right - window.left, bottom - TOP, "k-idle", tip="waiting"))
        shapes += _tasks(line_of, ranks, window, row)
        tail = window.x(np.array([line_of.makespan_s, step_s]))
        shapes.append(rect(tail[0], TOP, tail[1] - tail[0], bottom - TOP, "k-tail",
                           tip="end of the step: gradients and optimizer"))  # fmt: skip
        shapes += _axis(window, bottom, alone=len(windows) == 1)
    if len(windows) == 2:
        between = format_time(windows[1].start_s - windows[0].end_s, 2)
        middle = (windows[0].right + windows[1].left) / 2
        shapes += [text(middle, TOP - 8, f"{between} more of the same", "axis", "middle"),
                   text(middle, TOP + (bottom - TOP) / 2 + 4, "...", "label", "middle")]  # fmt: skip
    shapes += _memory(answer, windows, bottom + 26)
    legend, low = _legend(line_of, bottom + 26 + CURVE + 34, width)
    shapes += legend
    share = format_percent(line_of.bubble_fraction)
    words = (
        f"Timeline of one step, {line_of.order.schedule} on {line_of.order.pp} pipeline ranks with "
        f"{line_of.order.micro_batches} micro-batches; ranks wait {share} of the pipeline's time."
    )
    return Scene(name="timeline", title="One step, rank by rank", words=words, width=width,
                 height=low + 10, shapes=tuple(shapes))  # fmt: skip


def _tasks(line_of: Timeline, ranks: Sequence[int], window: Window, row: int) -> list[Shape]:
    """One path per kind of task and one for communication; numbers where there is room."""
    order = line_of.order
    drawings: dict[str, list[str]] = {}
    numbers: list[Shape] = []
    for index, rank in enumerate(ranks):
        span = np.arange(order.rank_start[rank], order.rank_start[rank + 1])
        span = span[(line_of.end_s[span] > window.start_s) & (line_of.start_s[span] < window.end_s)]
        x, end = window.x(line_of.start_s[span]), window.x(line_of.end_s[span])
        talk = np.minimum(line_of.communication_s[span] * window.pixels_per_s, end - x)
        y = TOP + index * row + row / 2
        # The two tasks of a pair run together: one above the other.
        lift = np.where(line_of.paired[span], np.where(line_of.second[span], row / 4, -row / 4), 0.0)
        thin = line_of.paired[span]
        columns = (span.tolist(), x.tolist(), (end - x).tolist(), talk.tolist(), lift.tolist(), thin.tolist())
        for task, at, wide, comm, up, half in zip(*columns, strict=True):
            kind = KINDS[order.kind[task]]
            gap = 0.6 if wide > 4 else 0.0
            name = f"task {'half ' if half else ''}rows-{row} k-{kind}"
            drawings.setdefault(name, []).append(f"M{at:.1f} {y + up:.1f}h{max(wide - gap, 0.5):.1f}")
            if comm > 0.5:
                start = at + wide - comm
                drawings.setdefault("comm", []).append(f"M{start:.1f} {y + row / 2 - 2:.1f}h{comm:.1f}")
            if wide >= NUMBERED_PIXELS and row >= 16 and not half:
                number = str(order.micro_batch[task])
                numbers.append(text(at + wide / 2, y + 3.5, number, f"number on-{kind}", "middle"))
    words = {name: _WORDS.get(name.rsplit("k-", maxsplit=1)[-1], "communication inside tasks") for name in drawings}
    paths = [path("".join(parts), name, tip=words[name]) for name, parts in drawings.items() if name != "comm"]
    paths += [path("".join(drawings["comm"]), "comm", tip=words["comm"])] if "comm" in drawings else []
    return paths + numbers


def _legend(line_of: Timeline, y: int, width: int) -> tuple[list[Shape], int]:
    """What the colours mean, of the kinds that are there, in as many lines as needed; and the last line's place."""
    kinds = [(f"part k-{KINDS[kind]}", _WORDS[KINDS[kind]]) for kind in np.unique(line_of.order.kind)]
    if (line_of.communication_s > 0).any():
        kinds.append(("k-comm", "communication"))
    shapes: list[Shape] = []
    x = float(LEFT)
    for kind, words in [*kinds, ("k-idle", "waiting"), ("k-tail", "end of step")]:
        wide = 26 + 5.7 * len(words)
        if x + wide > width:
            x, y = float(LEFT), y + 16
        shapes += [rect(x, y - 9, 9, 9, kind), text(x + 13, y, words, "axis")]
        x += wide
    return shapes, y


def _axis(window: Window, y: float, *, alone: bool) -> list[Shape]:
    span_s = window.end_s - window.start_s
    shapes: list[Shape] = []
    for tick in ticks(span_s, 5 if alone else 3)[: None if alone else -1]:
        moment = window.start_s + tick
        x = float(window.x(moment))
        shapes += [line(x, y, x, y + 4, "grid"), text(x, y + 15, format_time(moment, 3), "axis", "middle")]
    return shapes


def _memory(answer: Estimate, windows: Sequence[Window], top: float) -> list[Shape]:
    curve, limit = memory_curve(answer), answer.device_memory_bytes
    rank = int(np.argmax(curve.peak_bytes))
    peak = float(curve.peak_bytes[rank])
    most = max(limit, peak) * 1.05
    time_s, held_bytes = curve.of_rank(rank)
    bottom = top + CURVE
    shapes: list[Shape] = []
    for window in windows:
        pixels = np.arange(window.left, window.right + 0.5)
        moments = window.start_s + (pixels - window.left) / window.pixels_per_s
        held = held_bytes[np.maximum(np.searchsorted(time_s, moments, side="right") - 1, 0)]
        y = bottom - held / most * CURVE
        turns = np.flatnonzero(np.diff(np.round(y, 1), prepend=np.nan, append=np.nan) != 0)
        drawing = "".join(f"H{pixels[i]:.0f}V{y[i]:.1f}" for i in turns[:-1])
        shapes.append(path(f"M{window.left:.0f} {bottom:.1f}{drawing}H{window.right:.0f}V{bottom:.1f}Z", "curve",
                           tip=f"memory of rank {rank}, at most {format_bytes(peak)}"))  # fmt: skip
    high = bottom - limit / most * CURVE
    shapes += [
        line(LEFT, high, windows[-1].right, high, "limit"),
        text(LEFT + 4, high + 12 if high < top + 14 else high - 4, f"limit {format_bytes(limit)}", "axis"),
        text(windows[-1].right, bottom + 14, f"memory of rank {rank}, the fullest: at most {format_bytes(peak)}",
             "axis", "end"),
    ]  # fmt: skip
    return shapes
