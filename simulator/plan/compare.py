"""Two estimates side by side: which is faster, by how much, and in which parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulator.errors import InputError
from simulator.result import Estimate

_HEAD = ("model", "cluster", "step_time_s", "peak_memory_bytes", "fits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`other` less `one`, part by part: seconds and bytes. A part that one of them lacks counts as 0."""

    one: Mapping[str, Any]
    other: Mapping[str, Any]
    step_time_s: float
    step_time_ratio: float
    peak_memory_bytes: float
    time_s: Mapping[str, float]
    memory_bytes: Mapping[str, float]
    traffic_bytes: Mapping[str, float]
    strategy: Mapping[str, tuple[Any, Any]]
    """Fields that differ, as (one, other)."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `shardwise compare --json`."""
        names = ("step_time_s", "step_time_ratio", "peak_memory_bytes")
        tables = ("time_s", "memory_bytes", "traffic_bytes")
        return {
            "one": {name: self.one[name] for name in _HEAD},
            "other": {name: self.other[name] for name in _HEAD},
            "difference": {name: getattr(self, name) for name in names}
            | {name: dict(getattr(self, name)) for name in tables},
            "strategy": {name: list(pair) for name, pair in self.strategy.items()},
        }


def compare(one: Estimate | Mapping[str, Any], other: Estimate | Mapping[str, Any]) -> Comparison:
    """Compare two estimates, or the JSON documents of `shardwise estimate --json`.

    Raises InputError when a document is no estimate.
    """
    first, second = _document(one), _document(other)
    return Comparison(
        one=first,
        other=second,
        step_time_s=second["step_time_s"] - first["step_time_s"],
        step_time_ratio=second["step_time_s"] / first["step_time_s"],
        peak_memory_bytes=second["peak_memory_bytes"] - first["peak_memory_bytes"],
        time_s=_difference(first["time"], second["time"]),
        memory_bytes=_difference(first["memory"]["parts"], second["memory"]["parts"]),
        traffic_bytes=_difference(first["traffic_bytes"], second["traffic_bytes"]),
        strategy={
            name: (value, second["strategy"].get(name))
            for name, value in first["strategy"].items()
            if value != second["strategy"].get(name)
        },
    )


def _document(answer: Estimate | Mapping[str, Any]) -> Mapping[str, Any]:
    document = answer.to_dict() if isinstance(answer, Estimate) else answer
    needed = (*_HEAD, "time", "memory", "traffic_bytes", "strategy")
    missing = ", ".join(name for name in needed if name not in document)
    if missing:
        raise InputError([f"this is no estimate: {missing} missing. `shardwise estimate --json` writes one."])
    return document


def _difference(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Other less one, largest first; what differs by rounding alone differs by nothing."""
    found = {}
    for name in sorted({*one, *other}):
        first, second = one.get(name, 0.0), other.get(name, 0.0)
        rounding = 1e-12 * max(abs(first), abs(second))
        found[name] = second - first if abs(second - first) > rounding else 0.0
    return dict(sorted(found.items(), key=lambda item: -abs(item[1])))
