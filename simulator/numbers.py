"""Whole numbers and sums: divisors, ceilings, the limit of exact floats, sums that close."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from simulator.errors import InputError

MAX_EXACT = 2**53
"""The largest integer up to which every integer is a float (IEEE 754 double) and a JavaScript number."""
MAX_DIVISIBLE = 10**12


@lru_cache(maxsize=4096)
def divisors(n: int) -> tuple[int, ...]:
    """All divisors of n in ascending order, by trial division up to sqrt(n).

    Raises InputError outside 1 <= n <= 10^12 (a million trial divisions).

    >>> divisors(12)
    (1, 2, 3, 4, 6, 12)
    """
    if not 1 <= n <= MAX_DIVISIBLE:
        raise InputError([f"divisors are counted for 1 to {MAX_DIVISIBLE}, got {n}."])
    found = [1]
    rest = n
    prime = 2
    while prime * prime <= rest:
        powers = [1]
        while rest % prime == 0:
            rest //= prime
            powers.append(powers[-1] * prime)
        found = [low * power for low in found for power in powers]
        prime += 1 if prime == 2 else 2
    if rest > 1:
        found += [low * rest for low in found]
    return tuple(sorted(found))


def ceil_div(a: Any, b: Any) -> Any:
    """ceil(a / b) in exact integers, for Python ints or integer arrays; b > 0.

    >>> ceil_div(7, 2)
    4
    """
    return -(-a // b)


def round_up(a: Any, multiple: Any) -> Any:
    """The smallest multiple of `multiple` that is at least a, for ints or integer arrays.

    >>> round_up(50257, 128)
    50304
    """
    return ceil_div(a, multiple) * multiple


def exact(n: int, what: str = "a count") -> int:
    """n itself where a float holds it exactly. Raises InputError beyond 2^53.

    >>> exact(2**53)
    9007199254740992
    """
    if abs(n) > MAX_EXACT:
        raise InputError([f"{what} of {n:,} is beyond 2^53 = {MAX_EXACT:,}, where a float no longer counts by ones."])
    return n


def close_sum(parts: Iterable[Any]) -> Any:
    """The sum of the parts: correctly rounded (math.fsum) for floats, numpy's pairwise sum for arrays.

    >>> close_sum([0.1] * 10)
    1.0
    """
    values = list(parts)
    if any(isinstance(value, np.ndarray) for value in values):
        return np.sum(np.broadcast_arrays(*values), axis=0)
    return math.fsum(values)


def sums_to(parts: Iterable[float], total: float, relative: float = 1e-12) -> bool:
    """Whether the parts sum to the total within a relative difference of its magnitude and of the largest part."""
    values = list(parts)
    scale = max([abs(total), *(abs(value) for value in values)], default=0.0)
    return abs(math.fsum(values) - total) <= relative * scale
