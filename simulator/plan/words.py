"""Limits as a user types them: tp=8, tp=1..8, schedule=1f1b,zbv, order=tp-cp-ep-pp-dp."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from itertools import permutations
from typing import Any

from simulator.errors import Complaints, did_you_mean
from simulator.plan.limits import SPLITS, STAGES, Limits
from simulator.spec.strategy import CONTEXT_KINDS, RECOMPUTE, SCHEDULES, Strategy

_TYPES: dict[str, type] = {
    **{entry.name: type(getattr(Strategy(), entry.name)) for entry in fields(Strategy)}, "split": str,
    "recompute_stages": str,
}  # fmt: skip
_EVERYTHING: dict[str, tuple[Any, ...]] = {
    "schedule": SCHEDULES,
    "recompute": tuple(kind for kind in RECOMPUTE if kind != "modules"),
    "context_kind": CONTEXT_KINDS,
    "zero": (0, 1, 2, 3),
    "sequence_parallel": (True, False),
    "split": SPLITS,
    "recompute_stages": STAGES,
    "order": tuple((*axes[:2], "ep", *axes[2:]) for axes in permutations(("tp", "cp", "dp", "pp"))),
}
_BOOLEANS = {"true": True, "on": True, "1": True, "yes": True, "false": False, "off": False, "0": False, "no": False}


def limits_of(fix: Iterable[str], allow: Iterable[str], forbid: Iterable[str]) -> Limits:
    """The limits that options say. Raises InputError with every one that cannot be read."""
    complaints = Complaints()
    fixed = {name: _value(complaints, "--fix", name, text) for name, text in _pairs(complaints, "--fix", fix)}
    allowed: dict[str, tuple[Any, ...]] = {}
    within: dict[str, tuple[int, int]] = {}
    for name, text in _pairs(complaints, "--allow", allow):
        low, dots, high = text.partition("..")
        if dots and low.isdecimal() and high.isdecimal():
            within[name] = (int(low), int(high))
        elif text == "all" and name in _EVERYTHING:
            allowed[name] = _EVERYTHING[name]
        else:
            allowed[name] = tuple(_value(complaints, "--allow", name, part) for part in text.split(","))
    forbidden = {
        name: tuple(_value(complaints, "--forbid", name, part) for part in text.split(","))
        for name, text in _pairs(complaints, "--forbid", forbid)
    }
    complaints.raise_if_any()
    return Limits(fix=fixed, allow=allowed, within=within, forbid=forbidden)


def _pairs(complaints: Complaints, where: str, given: Iterable[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not value:
            complaints.add(f"{text!r} is not NAME=VALUE, as in tp=8.", where=where)
        elif name not in _TYPES:
            complaints.add(f"{name!r} is no field of a strategy.", where=where, hint=did_you_mean(name, _TYPES))
        else:
            pairs.append((name, value.strip()))
    return pairs


def _value(complaints: Complaints, where: str, name: str, text: str) -> Any:
    """One value of a field, by the field's type."""
    kind = _TYPES[name]
    if name == "order":
        return tuple(text.split("-"))
    if name == "recompute_modules":
        return tuple(text.split("+"))
    if kind is bool or name.startswith("overlap_"):
        if text.lower() in _BOOLEANS:
            return _BOOLEANS[text.lower()]
        complaints.add(f"{name} is true or false, not {text!r}.", where=where)
    elif kind is int:
        if text.isdecimal():
            return int(text)
        complaints.add(f"{name} is a whole number, not {text!r}.", where=where)
    return text
