"""The measured sets of a folder: each with the calibration that predicts it, scored by today's code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.measure.score import Scored, agreement, score, summary
from simulator.measure.table import is_measured, read_table

STEPS, MACHINE = "steps.csv", "machine.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSet:
    """One machine at one time."""

    name: str
    scored: Sequence[Scored]
    summary: Mapping[str, Any]


def read_set(steps: Path) -> MeasuredSet:
    """A table of measured steps, scored with the machine.toml beside it. Raises InputError for either file."""
    scored = score(read_table(steps), steps.parent / MACHINE)
    return MeasuredSet(name=steps.parent.name, scored=scored, summary=summary(scored))


def read_sets(folder: Path) -> list[MeasuredSet]:
    """Every set of a folder, by name: subfolders with steps.csv and machine.toml."""
    return [read_set(path) for path in sorted(folder.glob(f"*/{STEPS}")) if (path.parent / MACHINE).is_file()]


def apart(sets: Sequence[MeasuredSet]) -> dict[str, float] | None:
    """How far the calibrations of the last two sets predict the same cases from each other."""
    return agreement(sets[-2].scored, sets[-1].scored) if len(sets) > 1 else None


def has_own_machine(steps: Path) -> bool:
    """Whether a file is a table of measured steps with its machine beside it."""
    return is_measured(steps) and (steps.parent / MACHINE).is_file()
