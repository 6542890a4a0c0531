"""Elementwise choices for numbers and arrays: plain Python on numbers, which is ten times faster, numpy on arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """A numpy scalar or 0-d array as a Python number; anything else unchanged."""
    return value.item() if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0 else value


def where(condition: Any, yes: Any, no: Any) -> Any:
    """`yes` where the condition holds, else `no`.

    >>> where(2 > 1, 1.0, 0.0)
    1.0
    """
    if isinstance(condition, bool):
        return yes if condition else no
    return np.where(condition, yes, no)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two, elementwise."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return min(b, a)
    return np.minimum(a, b)


def maximum(a: Any, b: Any) -> Any:
    """The larger of two, elementwise."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return max(b, a)
    return np.maximum(a, b)


def log2(value: Any) -> Any:
    """Binary logarithm, elementwise."""
    return math.log2(value) if isinstance(value, (int, float)) else np.log2(value)


def gcd(a: Any, b: int) -> Any:
    """Greatest common divisor with a whole number, elementwise; a may be whole numbers held as floats."""
    return math.gcd(int(a), b) if isinstance(a, (int, float)) else np.gcd(np.asarray(a).astype(np.int64), b)
