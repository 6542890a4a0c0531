"""Ties: when an estimate cannot tell which of two strategies is faster.

A prediction interval says how far one measured step time may lie from its prediction. Two strategies of one model on
one cluster share most of that error (the same kernels, the same network, the same software), so what tells them apart
is the error of their ratio, which is smaller: read off pairs of published runs that competed (same source, model,
devices, batch and sequence length), as |ln(measured ratio / predicted ratio)|. Families count equally, as in
`intervals.py`. The shares are data (`validation/differences.csv`, written by `make validate`).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from simulator.errors import InputError, Problem

TIE_PROBABILITY = 0.1
"""A strategy is tied with the best while the probability that it is measured faster is at least this."""
APART = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0)
"""Logarithms of ratios at which the shares are written down; between them they are interpolated."""
COLUMNS = ("family", "sets", "pairs", *(f"over_{step:g}" for step in APART))


@dataclass(frozen=True, slots=True)
class Differences:
    """Of one family: the share of its pairs whose ratio was mispredicted by more than each of `APART`."""

    family: str
    sets: int
    pairs: int
    shares: tuple[float, ...]


def faster_probability(step_time_s: float, best_s: float) -> float:
    """The probability that a strategy is measured faster than another, given both predicted step times [s].

    Half of the share of published pairs whose ratio was mispredicted by more: an error is as likely either way.
    0.5 for equal predictions, and where nothing was published.
    """
    apart = math.log(step_time_s / best_s)
    if apart == 0.0:
        return 0.5
    behind = 0.5 * _share_over(abs(apart))
    return behind if apart >= 0.0 else 1.0 - behind


def _share_over(apart: float) -> float:
    families = published_differences()
    if not families:
        return 1.0
    return float(np.mean([np.interp(apart, APART, family.shares) for family in families]))


@lru_cache(maxsize=1)
def published_differences() -> tuple[Differences, ...]:
    """The shares that this version was validated with: shipped in the wheel, in validation/ of a checkout."""
    own = Path(str(files("simulator").joinpath("_catalog", "validation", "differences.csv")))
    path = own if own.is_file() else Path(__file__).parents[2] / "validation" / "differences.csv"
    return read_differences(path) if path.is_file() else ()


def read_differences(path: Path) -> tuple[Differences, ...]:
    """Read `differences.csv`. Raises InputError when it is not what `write_differences` writes."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader((line for line in file if not line.startswith("#")), strict=True))
        return tuple(
            Differences(row["family"], int(row["sets"]), int(row["pairs"]),
                        tuple(float(row[name]) for name in COLUMNS[3:]))
            for row in rows
        )  # fmt: skip
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise InputError([Problem(f"not a table of differences: {error!r}.", str(path))]) from None


def write_differences(path: Path, families: Iterable[Differences], provenance: str) -> None:
    """Write shares with a first line that says where they come from."""
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# {provenance}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for each in families:
            writer.writerow([each.family, each.sets, each.pairs, *(f"{share:.6f}" for share in each.shares)])


def shares_over(apart: Sequence[float]) -> tuple[float, ...]:
    """The share of some differences that lies above each of `APART`.

    >>> shares_over([0.0, 0.004, 0.04, 3.0])[:7]
    (0.75, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25)
    """
    values = np.asarray(apart)
    return tuple(float((values > step).mean()) for step in APART)
