"""What a user wants of the space: fixed values, allowed sets and ranges, forbidden values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from simulator.errors import Complaints, did_you_mean
from simulator.spec.strategy import AXES, CONTEXT_KINDS, RECOMPUTE, SCHEDULES, Strategy

DEGREES = ("tp", "pp", "dp", "cp", "ep", "etp", "vp", "micro_batch")
OPTIONS = ("schedule", "zero", "recompute", "sequence_parallel", "context_kind", "order", "split")
SPLITS = ("even", "balanced")
"""Layers over stages: the even split, or the contiguous one whose slowest stage is fastest (`plan/balance.py`)."""
STAGES = ("alike", "fitted")
"""Full recomputation: of as many layers of every stage, or of the fewest of each with which it fits (`plan/fitted.py`).
A plan's `recompute_stages` says which are looked at.
"""
CARRIED = (
    "shard_group", "recompute_layers", "group_size", "recompute_modules", "reshard_after_forward",
    "overlap_grad_reduce", "overlap_param_gather", "overlap_tp", "overlap_moe",
)  # fmt: skip
"""Fields that are not searched: they keep their default or the value they are fixed to."""
_WORDS = {"schedule": SCHEDULES, "recompute": RECOMPUTE, "context_kind": CONTEXT_KINDS, "split": SPLITS,
          "recompute_stages": STAGES}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`fix` gives a field one value, `allow` the values it may have (these may go beyond what is searched by default),
    `within` a range (low, high) that cuts what is searched, `forbid` values that it may not have.
    """

    fix: Mapping[str, Any] = field(default_factory=dict)
    allow: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    within: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    forbid: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def choices(self, name: str, usual: Iterable[Any]) -> tuple[Any, ...]:
        """The values of a field that are left of the usual ones."""
        if name in self.fix:
            return (self.fix[name],)
        low, high = self.within.get(name, (0, 2**62))
        refused = self.forbid.get(name, ())
        values = self.allow.get(name, usual)
        ranged = name in self.within
        return tuple(v for v in dict.fromkeys(values) if v not in refused and (not ranged or low <= v <= high))

    def asked(self, name: str) -> bool:
        """Whether the user said which values a field may have."""
        return name in self.fix or name in self.allow or name in self.within

    def carried(self) -> dict[str, Any]:
        """Fixed values of fields that are not searched."""
        return {name: self.fix[name] for name in CARRIED if name in self.fix}


def check_limits(limits: Limits) -> None:
    """Raise InputError for unknown fields and for values that no strategy can have."""
    complaints = Complaints()
    searched = {*DEGREES, *OPTIONS, "recompute_stages"}
    known = searched | {entry.name for entry in fields(Strategy)} - {"layers_per_stage"}
    for kind in ("fix", "allow", "within", "forbid"):
        for name in getattr(limits, kind):
            names = known if kind == "fix" else searched
            complaints.require(name in names, f"{name!r} cannot be limited here.", where=f"--{kind}",
                               hint=did_you_mean(name, names))  # fmt: skip
    for kind in ("fix", "allow", "forbid"):
        for name, given in getattr(limits, kind).items():
            for value in (given,) if kind == "fix" else given:
                _check_value(complaints, f"--{kind}", name, value)
    if limits.fix.get("recompute_layers") and "full" not in limits.choices("recompute", ("full",)):
        complaints.add("recompute_layers needs recompute = full, which the limits leave out.", where="--fix")
    for name, (low, high) in limits.within.items():
        complaints.require(low <= high, f"{name}: the range {low}..{high} is empty.", where="--within")
    complaints.raise_if_any()


def _check_value(complaints: Complaints, where: str, name: str, value: Any) -> None:
    if name in _WORDS:
        complaints.require(value in _WORDS[name], f"{name} {value!r} is unknown.", where=where,
                           hint=did_you_mean(str(value), _WORDS[name]))  # fmt: skip
    elif name == "order":
        complaints.require(sorted(value) == sorted(AXES), where=where,
                           message=f"order {'-'.join(value)} must hold tp, cp, ep, dp and pp once each.")  # fmt: skip
    elif name in DEGREES:
        complaints.require(isinstance(value, int) and value >= 1, where=where,
                           message=f"{name}({value}) must be a whole number of at least 1.")  # fmt: skip
    elif name == "recompute_layers":
        complaints.require(isinstance(value, int) and value >= 0, where=where,
                           message=f"recompute_layers({value}) must be a whole number; 0 is all. Numbers of each "
                                   "stage are chosen to fit.")  # fmt: skip
    elif name == "zero":
        complaints.require(value in (0, 1, 2, 3), f"zero({value}) must be 0, 1, 2 or 3.", where=where)
