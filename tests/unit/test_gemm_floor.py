"""The tool that says how much of a product's error no smooth formula can remove."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from gemm_floor import gaps


def table(error_of: object, seconds_of: object) -> pd.DataFrame:
    """Rows m, m + 1 at 64 places of 40 lines; errors and times by (m, line)."""
    rows = [(m, line, 1, error_of(m, line), seconds_of(m, line))  # type: ignore[operator]
            for line in range(40) for start in range(64, 4160, 64) for m in (start, start + 1)]  # fmt: skip
    return pd.DataFrame(rows, columns=["m", "n", "k", "error", "latency_ms"])


def test_what_changes_slowly_is_shared_and_what_does_not_is_a_rows_own() -> None:
    slow = gaps(table(lambda m, line: np.sin(line + m / 500.0), lambda m, line: m**1.5))
    assert (slow["pairs"], slow["falls"]) == (64 * 40, 0.0)
    assert slow["shared"] > 0.999
    assert slow["own"] < 0.01 * slow["error"]
    assert slow["neighbours"] == pytest.approx(0.0, abs=1e-9)
    draw = np.random.default_rng(3)
    noise = gaps(table(lambda m, line: draw.normal(), lambda m, line: m * np.exp(0.2 * (m % 2))))
    assert abs(noise["shared"]) < 0.06
    assert noise["own"] == pytest.approx(noise["error"], rel=0.06)
    # From s + 1 to s + 64 by (s + 64) / (s + 1) < e^(0.2 - 0.01): s = 320, 384, ... 4032.
    assert noise["falls"] == pytest.approx(59 / 127, rel=1e-6)
    assert noise["neighbours"] > 0.15


def test_one_row_in_two_measured_late_is_counted_as_a_fall() -> None:
    found = gaps(table(lambda m, line: 0.1, lambda m, line: 1.0 + 0.5 * (m % 2)))
    assert found["falls"] == pytest.approx(63 / 127)
