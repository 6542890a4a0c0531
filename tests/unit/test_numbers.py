"""Divisors, ceilings, exactness and sums against direct definitions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.numbers import MAX_EXACT, ceil_div, close_sum, divisors, exact, round_up, sums_to


def test_divisors_are_all_numbers_that_divide() -> None:
    """The definition, for every n up to 600."""
    for n in range(1, 601):
        assert divisors(n) == tuple(d for d in range(1, n + 1) if n % d == 0)


def test_divisors_of_large_numbers() -> None:
    """10^12 has (12+1)^2 divisors; 999,999,999,989 is prime."""
    assert len(divisors(10**12)) == 169
    assert divisors(999_999_999_989) == (1, 999_999_999_989)


@pytest.mark.parametrize("n", [0, -4, 10**12 + 1])
def test_divisors_refuse_what_has_none_or_too_many_steps(n: int) -> None:
    """Zero has every divisor, and no trial division runs for ever."""
    with pytest.raises(InputError, match="divisors are counted for 1 to"):
        divisors(n)


@given(st.integers(-(10**18), 10**18), st.integers(1, 10**9))
def test_ceilings_are_exact(a: int, b: int) -> None:
    """As fractions, also where a float division would round."""
    assert ceil_div(a, b) == -((-Fraction(a, b)).__floor__())
    assert round_up(a, b) - a in range(b)
    assert round_up(a, b) % b == 0


def test_ceilings_broadcast() -> None:
    """Arrays give the scalar answers."""
    a, b = np.arange(0, 50)[:, None], np.arange(1, 9)[None, :]
    expected = [[ceil_div(int(x), int(y)) for y in b[0]] for x in a[:, 0]]
    assert np.array_equal(ceil_div(a, b), expected)
    assert np.array_equal(round_up(a, b), np.array(expected) * b)


def test_exact_stops_where_floats_skip() -> None:
    """2^53 is the last integer with an exact successor in floats."""
    assert exact(MAX_EXACT) == 2**53
    assert float(MAX_EXACT + 1) == float(MAX_EXACT)
    with pytest.raises(InputError, match=r"parameters of 9,007,199,254,740,993 is beyond 2\^53"):
        exact(MAX_EXACT + 1, "parameters")


@given(st.lists(st.floats(-1e15, 1e15), max_size=30))
def test_close_sum_is_the_rounded_true_sum(values: list[float]) -> None:
    """The nearest float to the sum of the values as fractions; numpy's sum of arrays is close to it."""
    true = sum((Fraction(value) for value in values), Fraction(0))
    assert close_sum(values) == float(true)
    assert sums_to(values, float(true))
    if values:
        arrays = [np.array([value, 2.0 * value]) for value in values]
        scale = sum(abs(value) for value in values)
        assert np.allclose(close_sum(arrays), [float(true), 2.0 * float(true)], rtol=0.0, atol=1e-12 * scale)


def test_sums_to_sees_a_missing_part() -> None:
    """One part in a million is a difference; the last bit is none."""
    assert sums_to([0.1, 0.2], 0.3)
    assert not sums_to([0.1, 0.2], 0.3 * (1 + 1e-6))


def test_a_count_that_is_not_exact_is_named() -> None:
    with pytest.raises(InputError, match=r"^a count of"):
        exact(MAX_EXACT + 1)


def test_nothing_sums_to_zero_and_a_half_does_not() -> None:
    assert sums_to([], 0.0)
    assert not sums_to([], 1e-13)
    assert not sums_to([0.25, 0.25], 0.5 + 1e-9)
