"""Whole numbers: divisors, and the limit of exact floats."""

from __future__ import annotations

from functools import lru_cache

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
