"""Where the bytes are and where the time goes: memory per pipeline rank, and the step as a waterfall."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.report.svg import Scene, Shape, line, rect, text, ticks
from simulator.result import COMMUNICATION, COMPUTE, Estimate
from simulator.units import format_bytes, format_percent, format_time

TIME_ORDER = (*COMPUTE[:-1], "host", *COMMUNICATION, "bubble", "optimizer")
MEMORY_ORDER = (
    "weights", "gradients", "optimizer", "gathered_parameters", "activations", "logits", "working_set",
    "optimizer_step", "communication_buffers", "fragmentation", "context",
)  # fmt: skip
WORDS = {
    "gemm": "matrix products", "grouped_gemm": "expert products", "attention": "attention",
    "pointwise": "norms, activations", "lookup": "embedding rows", "recompute": "recomputation",
    "optimizer": "optimizer", "tp": "tensor comm.", "cp": "context comm.", "ep": "expert comm.",
    "etp": "expert-tp comm.", "dp": "data comm.", "pp": "pipeline comm.", "bubble": "pipeline bubble",
    "host": "kernel launches", "weights": "weights", "gradients": "gradients",
    "gathered_parameters": "gathered parameters", "activations": "activations", "logits": "logits",
    "working_set": "working set", "communication_buffers": "comm. buffers", "fragmentation": "fragmentation",
    "context": "context, libraries",
}  # fmt: skip
"""Part -> what a person calls it."""
MAX_RANKS = 16


def word(part: str) -> str:
    """What a person calls a part."""
    return WORDS.get(part, part.replace("_", " "))


def in_order(parts: dict[str, float], order: tuple[str, ...]) -> list[tuple[str, float]]:
    """The parts that are there, in a fixed order, unknown ones last."""
    rank = {name: index for index, name in enumerate(order)}
    return sorted(((n, v) for n, v in parts.items() if v), key=lambda item: (rank.get(item[0], len(rank)), item[0]))


def shown_ranks(count: int, at_most: int = MAX_RANKS) -> list[int]:
    """Ranks to draw: all, or the first and the last ones with evenly spaced ones between."""
    if count <= at_most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (at_most - 1)) for i in range(at_most)})


def memory_scene(answer: Estimate, width: int) -> Scene:
    """Stacked bytes of each pipeline rank against the device's memory."""
    ranks, limit = answer.memory.per_stage, answer.device_memory_bytes
    left, right, top, row = 34, 12, 20, 18 if len(ranks) > 8 else 26
    most = max(limit, *(rank["total"] for rank in ranks)) * 1.04
    scale = (width - left - right) / most
    shown = shown_ranks(len(ranks))
    bottom = top + row * len(shown)
    shapes: list[Shape] = []
    for tick in ticks(most / 2**30, 4 if width < 500 else 6):
        x = left + tick * 2**30 * scale
        shapes += [line(x, top, x, bottom), text(x, bottom + 14, f"{tick:g}", "axis", "middle")]
    for index, rank in enumerate(shown):
        shapes += _memory_row(ranks[rank], rank, left, top + index * row, scale, row)
    x = left + limit * scale
    shapes += [
        line(x, top - 4, x, bottom, "limit"),
        text(x, top - 8, f"limit {format_bytes(limit)}", "axis strong", "end" if x > 120 else "start"),
        text(width - right, bottom + 28, "GiB per device, by pipeline rank", "axis", "end"),
    ]
    verdict = "fits" if answer.fits else "does not fit"
    peak = format_bytes(answer.peak_memory_bytes)
    words = f"Memory: the fullest rank holds {peak} of {format_bytes(limit)}: {verdict}."
    return Scene(name="memory", title="Memory by pipeline rank", words=words, width=width, height=bottom + 34,
                 shapes=tuple(shapes))  # fmt: skip


def _memory_row(parts: Mapping[str, float], rank: int, left: float, y: float, scale: float, row: float) -> list[Shape]:
    amounts = {name: value for name, value in parts.items() if name != "total"}
    shapes = [text(left - 6, y + row / 2 + 4, str(rank), "axis", "end")]
    x = left
    for name, value in in_order(amounts, MEMORY_ORDER):
        tip = f"rank {rank}: {word(name)} {format_bytes(value)}"
        shapes.append(rect(x, y + 2, value * scale, row - 4, f"part k-{name}", tip=tip, term=f"memory.{name}"))
        x += value * scale
    return shapes


def waterfall_scene(answer: Estimate, width: int) -> Scene:
    """The step from its first to its last second: each part begins where the one before ended."""
    parts = in_order(dict(answer.time.parts), TIME_ORDER)
    step = answer.step_time_s
    left = 132
    right, top, row = 66, 8, 24
    most = max(step, answer.step_time_high_s) * 1.02
    scale = (width - left - right) / most
    shapes: list[Shape] = []
    bottom = top + row * (len(parts) + 1)
    at = 0.0
    for index, (name, seconds) in enumerate(parts):
        y, x = top + index * row, left + at * scale
        tip = f"{word(name)}: {format_time(seconds)}, {format_percent(seconds / step)} of the step"
        shapes += [
            text(left - 8, y + 16, word(name), "label", "end"),
            rect(x, y + 3, max(seconds * scale, 1.0), row - 6, f"part k-{name}", tip=tip, term=f"time.{name}"),
            line(x + seconds * scale, y + 3, x + seconds * scale, y + row + 3, "grid"),
            text(x + max(seconds * scale, 1.0) + 5, y + 16, format_time(seconds, 3), "value"),
        ]
        at += seconds
    y = top + len(parts) * row
    low, high = (left + bound * scale for bound in (answer.step_time_low_s, answer.step_time_high_s))
    shapes += [
        text(left - 8, y + 16, "step", "label strong", "end"),
        rect(left, y + 3, step * scale, row - 6, "part k-total", tip=f"step {format_time(step)}", term="step_time_s"),
        line(low, y + row / 2, high, y + row / 2, "whisker", tip="likely range"),
        line(low, y + 7, low, y + row - 7, "whisker"),
        line(high, y + 7, high, y + row - 7, "whisker"),
        text(max(high, left + step * scale) + 5, y + 16, format_time(step), "value strong"),
    ]
    words = f"Step time {format_time(step)}: " + ", ".join(f"{word(n)} {format_time(s)}" for n, s in parts) + "."
    return Scene(name="waterfall", title="Where the time goes", words=words, width=width, height=bottom + 8,
                 shapes=tuple(shapes))  # fmt: skip
