"""A sweep file as points: a constant case, a grid (every combination) and zips (side by side)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

from simulator.errors import Complaints, InputError, Problem, did_you_mean
from simulator.plan.objectives import OBJECTIVES
from simulator.plan.words import limits_of
from simulator.spec.reading import Document, read_document
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy
from simulator.units import parse_quantity

MAX_POINTS = 1_000_000
KINDS = ("model", "device", "cluster", "framework", "calibration")
"""Files of the catalogue of which any field can be an axis: "device.memory_bandwidth", "cluster.tiers.0.bandwidth"."""
PLAN: Mapping[str, Any] = {"plan.objective": str, "plan.allow": list[str], "plan.forbid": list[str]}
"""A point that sets one of these asks the planner: the strategy fields that it sets are fixed, the rest is searched.
The limits are written as on the command line: "tp=1..8", "schedule=1f1b,zbv"."""
PLAIN: Mapping[str, Any] = {"model": str, "cluster": str, "nodes": int, "price": str, "tokens": str}
QUANTITIES = {"price": "price", "tokens": "count"}
SECTIONS = ("title", "case", "grid", "zip")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSpec:
    """A sweep: values that all points share, axes that multiply, and groups of axes that run side by side."""

    title: str = ""
    case: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    zips: tuple[Mapping[str, Sequence[Any]], ...] = ()

    @property
    def size(self) -> int:
        """Points, counted without making them."""
        lengths = [len(values) for values in self.grid.values()]
        lengths += [len(next(iter(group.values()))) for group in self.zips if group]
        return math.prod(lengths)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names that vary, in the order of the file."""
        return (*self.grid, *(name for group in self.zips for name in group))

    def points(self) -> Iterator[dict[str, Any]]:
        """Every point, the last axis fastest."""
        choices = [[{name: value} for value in values] for name, values in self.grid.items()]
        for group in self.zips:
            rows = zip(*group.values(), strict=True)
            choices.append([dict(zip(group, row, strict=True)) for row in rows])
        for combination in product(*choices):
            point = dict(self.case)
            for part in combination:
                point.update(part)
            yield point


def point_key(point: Mapping[str, Any]) -> str:
    """The name of a point in a journal: a hash of its canonical JSON. Order and clock play no part."""
    text = json.dumps(point, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_sweep(path: Path) -> SweepSpec:
    """Reads a sweep file. Raises InputError with every problem, its file and line, and the nearest fix."""
    document = read_document(path)
    table = document.table
    complaints = Complaints()
    for name in table:
        if name not in SECTIONS:
            complaints.add(f"{name}: unknown key.", where=document.where((name,)), hint=did_you_mean(name, SECTIONS))
    title = table.get("title", "")
    if not isinstance(title, str):
        complaints.add("title: is no text.", where=document.where(("title",)))
    case = _section(document, table.get("case", {}), ("case",), complaints)
    grid = _section(document, table.get("grid", {}), ("grid",), complaints)
    raw_zips = table.get("zip", [])
    if not isinstance(raw_zips, list):
        complaints.add("zip: write [[zip]], a list of tables.", where=document.where(("zip",)))
        raw_zips = []
    zips = [_section(document, group, ("zip", index), complaints) for index, group in enumerate(raw_zips)]
    complaints.raise_if_any()
    spec = SweepSpec(
        title=str(title),
        case={name: _constant(document, ("case", name), value, complaints) for name, value in case.items()},
        grid={name: _axis(document, ("grid", name), value, complaints) for name, value in grid.items()},
        zips=tuple(
            {name: _axis(document, ("zip", index, name), value, complaints) for name, value in group.items()}
            for index, group in enumerate(zips)
        ),
    )
    _check_whole(document, spec, complaints)
    complaints.raise_if_any()
    return spec


def checked(spec: SweepSpec) -> SweepSpec:
    """A sweep made in Python, held to the same rules as a file. Raises InputError with every problem."""
    document, complaints = Document("sweep", {}), Complaints()
    for name, value in spec.case.items():
        _constant(document, ("case", name), value, complaints)
    for name, values in [*spec.grid.items(), *(pair for group in spec.zips for pair in group.items())]:
        _axis(document, ("grid", name), list(values), complaints)
    complaints.raise_if_any()
    _check_whole(document, spec, complaints)
    complaints.raise_if_any()
    return spec


def _section(
    document: Document, raw: Any, place: tuple[str | int, ...], complaints: Complaints, prefix: str = ""
) -> dict[str, Any]:
    """A section's fields with dotted names: TOML reads device.memory as a table in a table."""
    if not isinstance(raw, dict):
        complaints.add(f"{place[0]}: is no table.", where=document.where(place))
        return {}
    found: dict[str, Any] = {}
    for name, value in raw.items():
        if isinstance(value, dict) and not value:
            complaints.add(f"{prefix}{name}: an empty table.", where=document.where((*place, name)))
        elif isinstance(value, dict):
            found |= _section(document, value, (*place, name), complaints, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


@cache
def field_types() -> Mapping[str, Any]:
    """Every field of a point but those of files, with its type: catalogue names, a plan, then Run and Strategy."""
    types = {**PLAIN, **PLAN}
    for kind in (Run, Strategy):
        hints = get_type_hints(kind)
        types |= {entry.name: hints[entry.name] for entry in fields(kind)}
    return types


def _constant(document: Document, place: tuple[str | int, ...], value: Any, complaints: Complaints) -> Any:
    """A checked value; complains of an unknown name, a wrong type or a bad quantity."""
    return _value(document, place, value, complaints) if _known(document, place, complaints) else value


def _axis(document: Document, place: tuple[str | int, ...], values: Any, complaints: Complaints) -> list[Any]:
    where = _where(document, place)
    if not isinstance(values, list):
        complaints.add(f"{place[-1]}: an axis is a list of values.", where=where, hint="Write [1, 2, 4], or put a "
                       "constant into [case].")  # fmt: skip
        return []
    if not values:
        complaints.add(f"{place[-1]}: an axis without values makes a sweep without points.", where=where)
    if not _known(document, place, complaints):
        return values
    return [_value(document, place, value, complaints) for value in values]


def _known(document: Document, place: tuple[str | int, ...], complaints: Complaints) -> bool:
    """Whether the last part of a place names something that a point can set; complains where it does not."""
    name = str(place[-1])
    kind, dot, rest = name.partition(".")
    if kind == "plan" and name not in PLAN:
        complaints.add(f"{name}: unknown field.", where=_where(document, place), hint=did_you_mean(name, PLAN))
        return False
    if name in PLAN:
        return True
    if dot and (kind not in KINDS or not rest):
        hint = did_you_mean(kind, KINDS)
        complaints.add(f"{name}: no file of the catalogue is meant.", where=_where(document, place), hint=hint)
        return False
    if not dot and name not in field_types():
        hint = did_you_mean(name, [*field_types(), *KINDS])
        complaints.add(f"{name}: unknown field.", where=_where(document, place), hint=hint)
        return False
    return True


def _value(document: Document, place: tuple[str | int, ...], value: Any, complaints: Complaints) -> Any:
    from pydantic import TypeAdapter, ValidationError

    name, where = str(place[-1]), _where(document, place)
    try:
        text = json.dumps(value, allow_nan=False)
        if "." in name and not _plain(value):
            complaints.add(f"{name}: a table cannot be the value of an axis.", where=where, hint="Name its fields.")
            return value
        if "." in name and name not in PLAN:
            return value
        # JSON mode reads a list as the tuple that a field holds, and is strict about everything else.
        checked_value = TypeAdapter(field_types()[name]).validate_json(text, strict=True)
        _check_text(name, checked_value)
    except ValidationError as error:
        complaints.add(f"{name}: {error.errors()[0]['msg']}.", where=where)
    except InputError as error:
        complaints.add(f"{name}: {error}", where=where)
    except (TypeError, ValueError):
        complaints.add(f"{name}: is neither a number, a text, true or false, nor a list of those.", where=where)
    else:
        return list(checked_value) if isinstance(checked_value, tuple) else checked_value
    return value


def _check_text(name: str, value: Any) -> None:
    """Raise InputError for a quantity, an objective or limits that cannot be read."""
    if name in QUANTITIES:
        parse_quantity(value, QUANTITIES[name])
    elif name == "plan.objective" and value not in OBJECTIVES:
        raise InputError([Problem(f"{value!r} is unknown.", hint=did_you_mean(value, OBJECTIVES))])
    elif name == "plan.allow":
        limits_of((), value, ())
    elif name == "plan.forbid":
        limits_of((), (), value)


def planned(point: Mapping[str, Any]) -> bool:
    """Whether a point asks for the best strategy instead of giving one."""
    return any(name in point for name in PLAN)


def _plain(value: Any) -> bool:
    """A number, text or truth, or lists of them."""
    return all(map(_plain, value)) if isinstance(value, list) else not isinstance(value, dict)


def _where(document: Document, place: tuple[str | int, ...]) -> str:
    """The place in the file: a dotted name is one quoted key, or a table in a table."""
    if place in document.lines:
        return document.where(place)
    parts = (item.split(".") if isinstance(item, str) else [item] for item in place)
    return document.where(tuple(part for several in parts for part in several))


def _check_whole(document: Document, spec: SweepSpec, complaints: Complaints) -> None:
    """What is wrong across the sections."""
    for index, group in enumerate(spec.zips):
        lengths = {name: len(values) for name, values in group.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
            complaints.add(f"zip: axes of different lengths: {shown}.", where=document.where(("zip", index)))
    named = [*spec.case, *spec.axes]
    for name in sorted({name for name in named if named.count(name) > 1}):
        complaints.add(f"{name}: given twice.", where=document.where(("grid", name)), hint="One section is its place.")
    for name in ("model", "cluster", "global_batch"):
        complaints.require(name in named, f"{name}: missing. Every point needs one.", where=document.where(("case",)),
                           hint=f"Put {name} into [case] or make it an axis.")  # fmt: skip
    if not complaints.problems and spec.size > MAX_POINTS:
        complaints.add(f"{spec.size:,} points > {MAX_POINTS:,}.", where=document.where(("grid",)),
                       hint="Split the sweep.")  # fmt: skip
