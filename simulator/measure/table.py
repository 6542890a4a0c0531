"""Measured steps as a table: one row a case, medians over interleaved rounds with their spread, and the load."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import InputError, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One case. Times are of one step; `cpu` times are processor seconds summed over ranks."""

    suite: str
    case: str
    ranks: int
    rounds: int
    cpu_s: float
    cpu_low_s: float
    cpu_high_s: float
    """Quartiles of the rounds."""
    wall_s: float
    wall_low_s: float
    wall_high_s: float
    product_s: float
    memory_s: float
    """Processor seconds of the two reference kernels beside these steps: how fast the machine was."""
    peak_memory_bytes: float
    """Of rank 0, by torch's memory tracker; 0 where it was not asked."""
    load: float
    """Runnable processes besides the ranks (one-minute load average less the ranks, at least 0) when it ended."""

    @property
    def spread_fraction(self) -> float:
        """Interquartile range of the rounds' processor time over its median."""
        return (self.cpu_high_s - self.cpu_low_s) / self.cpu_s


def measured_case(
    suite: str, case: str, answers: Sequence[Mapping[str, Any]], *, load: float, peak_memory_bytes: float
) -> Measured:
    """A row from what every rank timed: processor seconds are summed over ranks, elapsed ones those of the slowest."""
    rounds = len(answers[0][case])
    cpu = [sum(answer[case][turn]["cpu"] for answer in answers) for turn in range(rounds)]
    wall = [max(answer[case][turn]["wall"] for answer in answers) for turn in range(rounds)]
    low, high = (float(x) for x in np.percentile(cpu, (25, 75)))
    wall_low, wall_high = (float(x) for x in np.percentile(wall, (25, 75)))
    return Measured(
        suite=suite, case=case, ranks=len(answers), rounds=rounds, cpu_s=statistics.median(cpu), cpu_low_s=low,
        cpu_high_s=high, wall_s=statistics.median(wall), wall_low_s=wall_low, wall_high_s=wall_high,
        product_s=_middle(answers, case, "product"), memory_s=_middle(answers, case, "memory"),
        peak_memory_bytes=peak_memory_bytes, load=load,
    )  # fmt: skip


def _middle(answers: Sequence[Mapping[str, Any]], case: str, name: str) -> float:
    return statistics.median(turn[name] for answer in answers for turn in answer[case])


def table_text(rows: Iterable[Measured]) -> str:
    """The rows as CSV, times to six digits."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [entry.name for entry in fields(Measured)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(row).items()})
    return stream.getvalue()


def is_measured(path: Path) -> bool:
    """Whether a file begins with the columns of measured steps."""
    try:
        with path.open(encoding="utf-8") as stream:
            return stream.readline().strip().split(",") == [entry.name for entry in fields(Measured)]
    except (OSError, UnicodeDecodeError):
        return False


def read_table(path: Path) -> list[Measured]:
    """Rows of a table that `table_text` wrote. Raises InputError with the line of what cannot be read."""
    kinds = {entry.name: str(entry.type) for entry in fields(Measured)}
    convert = {"str": str, "int": int, "float": float}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            if set(reader.fieldnames or ()) != set(kinds):
                raise InputError([Problem(f"its columns must be {', '.join(kinds)}.", f"{path}:1")])
            return [Measured(**{name: convert[kinds[name]](text) for name, text in row.items()}) for row in reader]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError([Problem(f"cannot be read as measured steps: {error}.", str(path))]) from None
