"""Exact contiguous split of layers over pipeline stages: the slowest stage as fast as can be, within memory.

A dynamic programme over (stage, layers dealt so far); no solver. HiGHS gives the same optimum (tests/oracles).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.errors import Infeasible, InputError

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Layers of each stage in model order, and the seconds of the slowest stage."""

    layers_per_stage: tuple[int, ...]
    slowest_s: float


def split_layers(
    layer_s: Sequence[float],
    *,
    stages: int,
    extra_s: Sequence[float] = (),
    layer_bytes: Sequence[float] = (),
    extra_bytes: Sequence[float] = (),
    limit_bytes: Sequence[float] | float = np.inf,
    least: int = 1,
) -> Partition:
    """The contiguous split whose slowest stage is fastest; of equal ones, the one that gives early stages fewer layers.

    `layer_s` are seconds of each layer in model order, `extra_s` what each stage does besides (embedding, head).
    `layer_bytes` and `extra_bytes` likewise, and each stage holds at most its `limit_bytes` [B]: a schedule that keeps
    n micro-batches on a stage divides its activations into the limit. Every stage has at least `least` layers.
    O(stages * layers^2). Raises InputError for wrong lengths, Infeasible when no split fits.
    """
    times, sizes = np.asarray(layer_s, np.float64), np.asarray(layer_bytes or np.zeros(len(layer_s)), np.float64)
    more_s = np.asarray(extra_s or np.zeros(stages), np.float64)
    more_bytes = np.asarray(extra_bytes or np.zeros(stages), np.float64)
    limits = np.broadcast_to(np.asarray(limit_bytes, np.float64), (stages,))
    if len(sizes) != len(times) or len(more_s) != stages or len(more_bytes) != stages:
        raise InputError([f"{len(times)} layers and {stages} stages need as many entries in every list."])
    if stages * least > len(times):
        raise InputError([f"{stages} stages of at least {least} need more than the {len(times)} layers."])
    taken_s, taken_bytes = between(times), between(sizes)
    return best_split(
        lambda stage: taken_s + more_s[stage],
        lambda stage: taken_bytes <= (limits[stage] - more_bytes[stage]) * (1.0 + 1e-12),
        layers=len(times), stages=stages, least=least,
    )  # fmt: skip


def between(values: npt.ArrayLike) -> Floats:
    """Sums over contiguous layers: [end, begin] holds those of layers begin to end - 1.

    >>> between([1.0, 2.0])[2].tolist()
    [3.0, 2.0, 0.0]
    """
    until = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64))])
    sums: Floats = until[:, None] - until[None, :]
    return sums


def best_split(
    seconds: Callable[[int], Floats], fits: Callable[[int], Mask], *, layers: int, stages: int, least: int = 1
) -> Partition:
    """The contiguous split whose slowest stage is fastest; of equal ones, early stages have fewer layers.

    `seconds(stage)` and `fits(stage)` are [end, begin] tables: the time of layers begin to end - 1 on that stage, and
    whether it holds them. Raises Infeasible when no split fits.
    """
    dealt = np.arange(layers + 1)
    legal = dealt[None, :] + least <= dealt[:, None]
    best = np.full(layers + 1, np.inf)
    best[0] = 0.0
    choices = []
    for stage in range(stages):
        slowest = np.where(legal & fits(stage), np.maximum(best[None, :], seconds(stage)), np.inf)
        choice = slowest.argmin(axis=1)
        best = slowest[dealt, choice]
        choices.append(choice)
    if not np.isfinite(best[-1]):
        raise Infeasible([f"No contiguous split of {layers} layers over {stages} stages stays within the memory."])
    ends = [layers]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    counts = tuple(int(count) for count in np.diff(ends[::-1]))
    return Partition(layers_per_stage=counts, slowest_s=float(best[-1]))
