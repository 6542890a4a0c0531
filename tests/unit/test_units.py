"""Quantities: the parser against pint, its refusals word for word, and what the formats print."""

from __future__ import annotations

import pint
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import units
from simulator.errors import InputError
from simulator.units import parse_quantity

REGISTRY: pint.UnitRegistry = pint.UnitRegistry()
REGISTRY.define("FLOP = [operation]")
REGISTRY.define("USD = [money]")
_DECIMAL = ["", "k", "M", "G", "T", "P"]
_BINARY = ["Ki", "Mi", "Gi", "Ti", "Pi"]
_RATES = (("B/s", "byte/s"), ("bit/s", "bit/s"), ("b/s", "bit/s"))
_SHORT_RATES = (("bps", "bit/s"), ("Bps", "byte/s"))


def _forms() -> list[tuple[str, str, str, str]]:
    """Dimension, unit as we write it, unit as pint writes it, SI unit in pint."""
    sizes = (("B", "byte"), ("bit", "bit"), ("b", "bit"))
    return [
        *[("bytes", f"{p}{u}", f"{p}{long}", "byte") for p in _DECIMAL + _BINARY for u, long in sizes],
        *[("bandwidth", f"{p}{u}", f"{p}{long}", "byte/s") for p in _DECIMAL + _BINARY for u, long in _RATES],
        *[("bandwidth", f"{p}{u}", f"{p}{long}", "byte/s") for p in _DECIMAL for u, long in _SHORT_RATES],
        *[("flop_rate", f"{p}{u}", f"{p}FLOP/s", "FLOP/s") for p in _DECIMAL for u in ("FLOP/s", "FLOPS")],
        *[("flops", f"{p}FLOP", f"{p}FLOP", "FLOP") for p in _DECIMAL],
        *[("time", u, u, "s") for u in ("s", "ms", "us", "ns", "ps", "min", "h")],
        *[("power", f"{p}W", f"{p}W", "W") for p in ["m", *_DECIMAL]],
        *[("energy", f"{p}{u}", f"{p}{u}", "J") for p in _DECIMAL for u in ("J", "Wh")],
        *[("frequency", f"{p}Hz", f"{p}Hz", "Hz") for p in _DECIMAL],
        ("time", "d", "day", "s"),
        ("price", "USD/h", "USD/hour", "USD/hour"),
        ("price", "USD/d", "USD/day", "USD/hour"),
    ]


FORMS = _forms()


@pytest.mark.parametrize(("dimension", "text", "pint_unit", "si"), FORMS)
def test_every_unit_agrees_with_pint(dimension: str, text: str, pint_unit: str, si: str) -> None:
    """1.25 of each unit is the same number of SI units in pint."""
    expected = REGISTRY.Quantity(1.25, pint_unit).to(si).magnitude
    assert parse_quantity(f"1.25 {text}", dimension) == pytest.approx(expected, rel=1e-15)


def test_every_unit_of_every_dimension_is_compared() -> None:
    """No unit escapes the comparison with pint but the largest prefix, and bps and Bps with 1000-prefixes only."""
    compared = {(dimension, text) for dimension, text, _, _ in FORMS}
    dimensions = set(units._EXAMPLES) - {"count"}
    left = {unit for dimension in dimensions for unit in units._units(dimension) if (dimension, unit) not in compared}
    assert {unit for unit in left if not unit.startswith("E")} == set()


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("80 GiB", "bytes", 85899345920.0),
        ("80GB", "bytes", 80e9),
        ("  450 GB/s ", "bandwidth", 450e9),
        ("200 Gb/s", "bandwidth", 25e9),
        ("400 Gbps", "bandwidth", 50e9),
        ("5 us", "time", 5e-6),
        ("5 \u00b5s", "time", 5e-6),
        ("989.4 TFLOP/s", "flop_rate", 989.4e12),
        ("1_024 MiB", "bytes", 2.0**30),
        (".5 s", "time", 0.5),
        ("1e3 W", "power", 1000.0),
        ("174.6B", "count", 174.6e9),
        ("96", "count", 96.0),
        ("0 B", "bytes", 0.0),
    ],
)
def test_what_people_write_is_read(text: str, dimension: str, value: float) -> None:
    """Spaces, underscores, exponents and the micro sign are all fine."""
    assert parse_quantity(text, dimension) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "dimension", "message"),
    [
        ("80", "bytes", "'80' has no unit. Write it like \"80 GiB\"."),
        (80, "bytes", '80 has no unit. Write it like "80 GiB".'),
        (None, "time", 'None has no unit. Write it like "5 us".'),
        ("80 gb", "bytes", "'80 gb': unknown unit gb. Did you mean GB or Gb?"),
        (
            "80 GB",
            "bandwidth",
            "'80 GB' is of the wrong kind (bytes), bandwidth is wanted. Write it like \"450 GB/s\".",
        ),
        ("-3 s", "time", "'-3 s' is negative. Write it like \"5 us\"."),
        ("1e999 s", "time", "'1e999 s' is not finite. Write it like \"5 us\"."),
        ("nan s", "time", "'nan s' is not a quantity. Write it like \"5 us\"."),
        ("", "power", "'' is not a quantity. Write it like \"700 W\"."),
        ("5 furlongs", "time", "'5 furlongs': unknown unit furlongs. Choose from: d, h, min, ms, ns, ps, s, us."),
        ("1 2 GB", "bytes", "'1 2 GB' is not a quantity. Write it like \"80 GiB\"."),
        ("3 EUR/h", "price", "'3 EUR/h': unknown unit EUR/h. Did you mean USD/h?"),
        ("1e12345 B", "bytes", "'1e12345 B' is not a quantity. Write it like \"80 GiB\"."),
    ],
)
def test_refusals_show_the_way(text: object, dimension: str, message: str) -> None:
    """Each refusal repeats the text and shows what would do."""
    with pytest.raises(InputError) as caught:
        parse_quantity(text, dimension)
    assert str(caught.value) == message


@given(st.one_of(st.text(max_size=80), st.integers(), st.floats(), st.none()), st.sampled_from(sorted(units._EXAMPLES)))
def test_any_input_is_answered(text: object, dimension: str) -> None:
    """A finite non-negative number or an InputError, in ASCII; nothing else."""
    try:
        value = parse_quantity(text, dimension)
    except InputError as error:
        value = 0.0
        shown = str(error)
    else:
        shown = ""
    assert 0.0 <= value < float("inf")
    assert shown.isascii()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("format_bytes", 80 * 2.0**30, "80 GiB"),
        ("format_bytes", 0.0, "0 B"),
        ("format_bytes", 1023.99999, "1 KiB"),
        ("format_bytes", 123456789.0, "117.7 MiB"),
        ("format_bandwidth", 450e9, "450 GB/s"),
        ("format_flops", 3.14e23, "314,000 EFLOP"),
        ("format_flop_rate", 312e12, "312 TFLOP/s"),
        ("format_time", 5e-6, "5 us"),
        ("format_time", 0.99999999, "1 s"),
        ("format_time", 90.0, "1.5 min"),
        ("format_time", 7200.0, "2 h"),
        ("format_time", 30 * 86400.0, "30 d"),
        ("format_time", 0.0, "0 s"),
        ("format_count", 174.6e9, "174.6B"),
        ("format_count", 999.99e9, "1T"),
        ("format_power", 700.0, "700 W"),
        ("format_usd", 3.2, "$3.20"),
        ("format_usd", 1234567.8, "$1,234,568"),
        ("format_percent", 0.523, "52.3 %"),
        ("format_time", 3.2e-9, "3.2 ns"),
        ("format_time", 0.00345, "3.45 ms"),
        ("format_time", 60.0, "1 min"),
        ("format_time", 59.0, "59 s"),
        ("format_time", 3600.0, "1 h"),
        ("format_time", 86400.0, "1 d"),
        ("format_time", 3000.0, "50 min"),
        ("format_time", 80000.0, "22.22 h"),
        ("format_count", 1234.0, "1.234K"),
        ("format_count", 5.6e6, "5.6M"),
        ("format_count", 12.0, "12"),
        ("format_power", 1.2e6, "1.2 MW"),
        ("format_usd", 1000.0, "$1,000"),
        ("format_usd", -5.5, "$-5.50"),
        ("format_percent", 1.0, "100 %"),
        ("format_percent", 0.00012345, "0.0123 %"),
        ("format_flops", 1.5e9, "1.5 GFLOP"),
        ("format_flop_rate", 989.4e12, "989.4 TFLOP/s"),
        ("format_bandwidth", 3.35e12, "3.35 TB/s"),
    ],
)
def test_formats(name: str, value: float, expected: str) -> None:
    """GiB for memory, decimal prefixes for rates, and no 1024 KiB or 1000 ms."""
    assert getattr(units, name)(value) == expected


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [("8 bit", "bytes", 1.0), ("8 Gb/s", "bandwidth", 1e9), ("16 Kibit", "bytes", 2048.0), ("1 Tb", "bytes", 1.25e11),
     ("4 MiB/s", "bandwidth", 2.0**22), ("2 kbit/s", "bandwidth", 250.0)],
)  # fmt: skip
def test_bits_are_eighths_of_bytes(text: str, dimension: str, value: float) -> None:
    assert parse_quantity(text, dimension) == value


@given(st.floats(min_value=1e-9, max_value=1e18))
def test_formats_read_back(value: float) -> None:
    """What a format prints is the value to its four digits."""
    printed = units.format_bytes(value + 1.0).replace(",", "")
    assert parse_quantity(printed, "bytes") == pytest.approx(value + 1.0, rel=1e-3)
    printed = units.format_bandwidth(value + 1.0).replace(",", "")
    assert parse_quantity(printed, "bandwidth") == pytest.approx(value + 1.0, rel=1e-3)


def test_a_text_of_64_characters_is_read_and_a_longer_one_cut() -> None:
    """61 characters and three dots stand for what was too long."""
    zeros = "0" * 57
    assert parse_quantity(f"{zeros}12 GB/s", "bandwidth") == 12e9
    assert len(f"{zeros}12 GB/s") == units.MAX_TEXT
    with pytest.raises(InputError) as refusal:
        parse_quantity(f"{zeros}012 GB/s", "bandwidth")
    assert str(refusal.value).startswith(f"'{zeros}012... is longer than 64 characters.")
    with pytest.raises(InputError) as refusal:
        parse_quantity(f"x{'y' * 61}", "bandwidth")
    assert str(refusal.value).startswith(f"'x{'y' * 61}' is not a quantity.")
    with pytest.raises(InputError) as refusal:
        parse_quantity(f"x{'y' * 62}", "bandwidth")
    assert str(refusal.value).startswith(f"'x{'y' * 59}... is not a quantity.")


def test_a_count_is_no_other_kind_of_quantity() -> None:
    """B is bytes and not 10^9 where a bandwidth is wanted, M is nothing but a count."""
    with pytest.raises(InputError, match="unknown unit M"):
        parse_quantity("3 M", "bandwidth")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("format_bytes", 0.0, "0 B"),
        ("format_count", 0.0, "0"),
        ("format_time", 1.234567, "1.235 s"),
        ("format_time", 86400.0 * 12345, "12,345 d"),
        ("format_time", 5e-10, "0.5 ns"),
        ("format_bandwidth", 1.234567e9, "1.235 GB/s"),
        ("format_flops", 1.234567e9, "1.235 GFLOP"),
        ("format_flop_rate", 1.234567e9, "1.235 GFLOP/s"),
        ("format_power", 1234.567, "1.235 kW"),
        ("format_bytes", 1234.567 * 2**30, "1.206 TiB"),
        ("format_count", 1e9, "1B"),
        ("format_count", 1e12, "1T"),
        ("format_time", 86400.0 * 1000, "1,000 d"),
        ("format_time", 86400.0 * 1234, "1,234 d"),
        ("format_time", 1.23456e-15, "1.23e-06 ns"),
        ("format_count", 12345e12, "12,345T"),
        ("format_count", 999.96e3, "1M"),
        ("format_percent", 9.9999, "1,000 %"),
        ("format_percent", 12.3456, "1,235 %"),
        ("format_percent", 1e-9, "1e-07 %"),
    ],
)
def test_digits_of_formats(name: str, value: float, expected: str) -> None:
    assert getattr(units, name)(value) == expected


def test_fewer_digits_where_they_are_asked_for() -> None:
    assert units.format_time(1.234567, 2) == "1.2 s"
    assert units.format_bytes(123456, 2) == "121 KiB"
    assert units.format_count(1000.0, 4) == "1K"
    assert units.format_count(1000.4, 6) == "1.0004K"
