"""Divisors against their definition, and the limit of whole numbers in floats."""

from __future__ import annotations

import pytest

from simulator.errors import InputError
from simulator.numbers import MAX_EXACT, divisors


def test_divisors_are_all_numbers_that_divide() -> None:
    """The definition, for every n up to 600."""
    for n in range(1, 601):
        assert divisors(n) == tuple(d for d in range(1, n + 1) if n % d == 0)


def test_divisors_of_large_numbers() -> None:
    """10^12 has (12+1)^2 divisors; 999,999,999,989 is prime."""
    assert len(divisors(10**12)) == 169
    assert divisors(999_999_999_989) == (1, 999_999_999_989)
    assert {type(found) for found in divisors(2**3 * 999_983)} == {int}


@pytest.mark.parametrize("n", [0, -4, 10**12 + 1])
def test_divisors_refuse_what_has_none_or_too_many_steps(n: int) -> None:
    """Zero has every divisor, and no trial division runs for ever."""
    with pytest.raises(InputError, match="divisors are counted for 1 to"):
        divisors(n)


def test_whole_numbers_are_exact_as_long_as_floats_count_by_ones() -> None:
    """2^53 is the first integer whose successor is the same float."""
    assert float(MAX_EXACT - 1) != float(MAX_EXACT) == float(MAX_EXACT + 1)
