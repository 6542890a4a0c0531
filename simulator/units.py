"""Quantities with units: the only place with prefixes.

Files and options say "450 GB/s", "80 GiB", "5 us"; inside, every number is an SI float. 1000-prefixes (k M G T P E)
and 1024-prefixes (Ki Mi Gi Ti Pi) are both read and never confused: GB is 10^9 bytes, GiB is 2^30. A small b is bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache

from simulator.errors import InputError, did_you_mean

MAX_TEXT = 64

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_SIZES = {**_DECIMAL, **_BINARY}
_SMALL = {"": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9, "p": 1e-12}
_SHORT_SCALE = {"": 1.0, "K": 1e3, "k": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}

_EXAMPLES = {
    "bytes": "80 GiB",
    "bandwidth": "450 GB/s",
    "flops": "3.14e23 FLOP",
    "flop_rate": "989.4 TFLOP/s",
    "time": "5 us",
    "power": "700 W",
    "energy": "3.6 MJ",
    "price": "2.50 USD/h",
    "frequency": "1.98 GHz",
    "count": "174.6B",
}


def _prefixed(prefixes: Mapping[str, float], unit: str, scale: float = 1.0) -> dict[str, float]:
    return {prefix + unit: factor * scale for prefix, factor in prefixes.items()}


@cache
def _units(dimension: str) -> Mapping[str, float]:
    """Unit text -> SI factor. Sources: SI brochure 9th ed. (prefixes), IEC 80000-13 (binary prefixes)."""
    per_second = {f"{unit}/s": factor for unit, factor in (_prefixed(_SIZES, "B") | _bits()).items()}
    tables: dict[str, Mapping[str, float]] = {
        "bytes": _prefixed(_SIZES, "B") | _bits(),
        "bandwidth": per_second | _prefixed(_DECIMAL, "bps", 0.125) | _prefixed(_DECIMAL, "Bps"),
        "flops": _prefixed(_DECIMAL, "FLOP"),
        "flop_rate": _prefixed(_DECIMAL, "FLOP/s") | _prefixed(_DECIMAL, "FLOPS"),
        "time": _prefixed(_SMALL, "s") | {"min": 60.0, "h": 3600.0, "d": 86400.0},
        "power": _prefixed({"m": 1e-3, **_DECIMAL}, "W"),
        "energy": _prefixed(_DECIMAL, "J") | _prefixed(_DECIMAL, "Wh", 3600.0),
        "price": {"USD/h": 1.0, "USD/d": 1.0 / 24.0},
        "frequency": _prefixed(_DECIMAL, "Hz"),
        "count": _SHORT_SCALE,
    }
    return tables[dimension]


def _bits() -> dict[str, float]:
    return _prefixed(_SIZES, "bit", 0.125) | _prefixed(_SIZES, "b", 0.125)


_MICRO = {0xB5: "u", 0x3BC: "u"}
"""The micro sign and the Greek mu are read as u."""
_QUANTITY = re.compile(r"([0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,4})?|\.[0-9]+)[ ]?([A-Za-z][A-Za-z/]*)?")


def parse_quantity(text: object, dimension: str) -> float:
    """The SI value of a quantity written as text: "450 GB/s" as "bandwidth" is 4.5e11.

    Dimensions and what they become: bytes [bytes], bandwidth [bytes/s], flops [FLOP], flop_rate [FLOP/s], time [s],
    power [W], energy [J], price [USD/h], frequency [Hz], count [1; K, M, B and T as in "174.6B"].
    Raises InputError naming an accepted form when the text is longer than 64 characters, is not a number with a known
    unit of that dimension, is negative or is not finite.

    >>> parse_quantity("80 GiB", "bytes")
    85899345920.0
    >>> parse_quantity("200 Gb/s", "bandwidth")
    25000000000.0
    """
    example = f'Write it like "{_EXAMPLES[dimension]}".'
    if not isinstance(text, str):
        raise InputError([f"{_cut(repr(text))} has no unit. {example}"])
    if len(text) > MAX_TEXT:
        raise InputError([f"{_cut(repr(text))} is longer than {MAX_TEXT} characters. {example}"])
    match = _QUANTITY.fullmatch(text.strip().translate(_MICRO))
    if match is None:
        reason = "is negative" if text.strip().startswith("-") else "is not a quantity"
        raise InputError([f"{_cut(repr(text))} {reason}. {example}"])
    value = float(match.group(1)) * _factor(match.group(2) or "", dimension, text)
    if not math.isfinite(value):
        raise InputError([f"{_cut(repr(text))} is not finite. {example}"])
    return value


def _factor(unit: str, dimension: str, text: str) -> float:
    units = _units(dimension)
    if unit in units:
        return units[unit]
    example = f'Write it like "{_EXAMPLES[dimension]}".'
    if not unit:
        raise InputError([f"{_cut(repr(text))} has no unit. {example}"])
    other = [name for name in _EXAMPLES if name != "count" and unit in _units(name)]
    if other:
        raise InputError([f"{_cut(repr(text))} is of the wrong kind ({other[0]}), {dimension} is wanted. {example}"])
    same_letters = [known for known in units if known.lower() == unit.lower()]
    hint = f"Did you mean {' or '.join(same_letters)}?" if same_letters else did_you_mean(unit, units) or example
    raise InputError([f"{_cut(repr(text))}: unknown unit {unit}. {hint}"])


def _cut(text: str) -> str:
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."


def _scaled(value: float, steps: Mapping[str, float], unit: str, digits: int) -> str:
    """The value with the largest prefix that keeps it at or above 1 after rounding."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}"
    rounded = float(f"{value:.{digits}g}")
    factors = sorted(steps.items(), key=lambda step: step[1])
    prefix, factor = factors[0]
    for name, size in factors:
        if abs(rounded) >= size:
            prefix, factor = name, size
    return f"{_significant(value / factor, digits)} {prefix}{unit}"


def _significant(value: float, digits: int) -> str:
    """`digits` significant digits without an exponent, thousands grouped."""
    if abs(value) >= 10.0 ** (digits - 1):
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    return f"{value:.3g}" if "e" in text else text


def format_bytes(size_bytes: float, digits: int = 4) -> str:
    """Bytes with 1024-prefixes: 85899345920 -> "80 GiB"."""
    return _scaled(size_bytes, {"": 1.0, **_BINARY}, "B", digits)


def format_bandwidth(bandwidth_bytes_per_s: float, digits: int = 4) -> str:
    """Bytes per second with 1000-prefixes: 4.5e11 -> "450 GB/s"."""
    return _scaled(bandwidth_bytes_per_s, _DECIMAL, "B/s", digits)


def format_flops(work_flops: float, digits: int = 4) -> str:
    """Floating-point operations with 1000-prefixes: 3.14e23 -> "314,000 EFLOP"."""
    return _scaled(work_flops, _DECIMAL, "FLOP", digits)


def format_flop_rate(rate_flops_per_s: float, digits: int = 4) -> str:
    """Floating-point operations per second: 3.12e14 -> "312 TFLOP/s"."""
    return _scaled(rate_flops_per_s, _DECIMAL, "FLOP/s", digits)


def format_time(time_s: float, digits: int = 4) -> str:
    """Seconds, from ns to days: 5e-6 -> "5 us", 7200 -> "2 h"."""
    if abs(time_s) >= 86400.0:
        return f"{_significant(time_s / 86400.0, digits)} d"
    if abs(time_s) >= 3600.0:
        return f"{_significant(time_s / 3600.0, digits)} h"
    if abs(time_s) >= 60.0:
        return f"{_significant(time_s / 60.0, digits)} min"
    return _scaled(time_s, {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0}, "s", digits)


def format_power(power_watts: float, digits: int = 4) -> str:
    """Watts: 700 -> "700 W"."""
    return _scaled(power_watts, _DECIMAL, "W", digits)


def format_usd(amount_usd: float) -> str:
    """Dollars, cents below a thousand: 1234567.8 -> "$1,234,568"."""
    return f"${amount_usd:,.2f}" if abs(amount_usd) < 1000.0 else f"${amount_usd:,.0f}"


def format_count(count: float, digits: int = 4) -> str:
    """A count on the short scale: 174600000000 -> "174.6B"."""
    text = _scaled(count, {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}, "", digits)
    return text.replace(" ", "")


def format_percent(share_fraction: float, digits: int = 3) -> str:
    """A fraction as a percentage: 0.523 -> "52.3 %"."""
    return f"{_significant(share_fraction * 100.0, digits)} %"
