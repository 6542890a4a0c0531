"""What a plan may ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is minimised: a key with the step time last, so that ties go to the faster. Bounds give keys too."""

    name: str
    key: Callable[[float, float], tuple[float, ...]]
    """(step time [s], peak memory [B]) to what is minimised."""
    words: str
    """What it asks for on a given number of devices."""


def _step(step_s: float, _memory_bytes: float) -> tuple[float, ...]:
    return (step_s,)


def _memory(step_s: float, memory_bytes: float) -> tuple[float, ...]:
    return (memory_bytes, step_s)


_FOLLOWS = "with the devices given, the least step time"
OBJECTIVES = {
    name: Objective(name=name, key=key, words=words)
    for name, key, words in (
        ("tokens_per_s", _step, f"most tokens per second: {_FOLLOWS}"),
        ("step_time", _step, "least step time"),
        ("tokens_per_s_per_device", _step, f"most tokens per second and device: {_FOLLOWS}"),
        ("memory", _memory, "most memory left free, then the least step time"),
        ("days", _step, f"fewest days of training: {_FOLLOWS}, but for the time that saving checkpoints takes"),
        ("dollars", _step, f"fewest dollars: {_FOLLOWS}, but for what saving checkpoints costs"),
    )
}
"""What a plan may ask for on a given number of devices (days and dollars: see `plan/money.py`; how many devices: see
`plan/scaling.py`).
"""
