"""Catalogued peaks, bandwidths and power limits against a table of datasheets (dense TFLOP/s, GB/s, W)."""

import csv
from pathlib import Path

import pytest

from simulator.catalog import load_device

ROWS = list(csv.DictReader(Path(__file__).with_name("datasheets.csv").read_text(encoding="ascii").splitlines()))


@pytest.mark.parametrize("row", ROWS, ids=[row["device"] for row in ROWS])
def test_a_device_has_the_figures_of_its_datasheet(row):
    device = load_device(row["device"])
    for dtype in ("fp16", "bf16", "tf32", "fp8", "nvfp4"):
        if row[dtype]:
            assert device.peak_flops_per_s[dtype] == pytest.approx(float(row[dtype]) * 1e12, rel=0.005)
    if row["bandwidth_gb_per_s"]:
        bandwidth = float(row["bandwidth_gb_per_s"]) * 1e9
        assert device.memory_bandwidth_bytes_per_s == pytest.approx(bandwidth, rel=0.005)
    if row["tdp_watts"]:
        assert device.tdp_watts == pytest.approx(float(row["tdp_watts"]))


def test_the_table_is_wide():
    assert len(ROWS) == 32
