"""Sweep files: what they count, what they list, and what is said about bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.sweep.points import SweepSpec, checked, point_key, read_sweep

GOOD = """
title = "links"

[case]
model = "gpt3-175b"
cluster = "dgx-a100"
global_batch = 1536
layers_per_stage = [48, 48]

[grid]
tp = [2, 4, 8]
"cluster.tiers.nvswitch.bandwidth" = ["x1", "x2"]

[grid.device]
memory_bandwidth = ["2 TB/s"]

[[zip]]
nodes = [16, 32]
price = ["2 USD/h", "1.8 USD/h"]
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "sweep.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_grid_multiplies_and_a_zip_runs_side_by_side(tmp_path: Path) -> None:
    spec = read_sweep(write(tmp_path, GOOD))
    points = list(spec.points())
    assert spec.size == len(points) == 3 * 2 * 1 * 2
    assert spec.axes == ("tp", "cluster.tiers.nvswitch.bandwidth", "device.memory_bandwidth", "nodes", "price")
    assert {(point["nodes"], point["price"]) for point in points} == {(16, "2 USD/h"), (32, "1.8 USD/h")}
    assert [point["tp"] for point in points] == [2] * 4 + [4] * 4 + [8] * 4
    assert all(point["layers_per_stage"] == [48, 48] for point in points)


def test_a_key_depends_on_what_a_point_says_and_not_on_its_order() -> None:
    assert point_key({"a": 1, "b": 2.5}) == point_key({"b": 2.5, "a": 1})
    assert point_key({"a": 1}) != point_key({"a": 2})


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("tp = [2, 4, 8]", "global_bach = [2, 4, 8]", 11, "unknown field. Did you mean global_batch?"),
        ("tp = [2, 4, 8]", "tp = 8", 11, "an axis is a list"),
        ("tp = [2, 4, 8]", "tp = []", 11, "without values"),
        ("tp = [2, 4, 8]", 'tp = [2, "four"]', 11, "valid integer"),
        ("tp = [2, 4, 8]", "tp = [2, 4.5]", 11, "valid integer"),
        ("tp = [2, 4, 8]", "tp = [true]", 11, "valid integer"),
        ("tp = [2, 4, 8]", "tp = [2026-01-01]", 11, "neither a number"),
        ("[grid]", "[gird]", 10, "Did you mean grid?"),
        ('price = ["2 USD/h", "1.8 USD/h"]', 'price = ["2 EUR/h", "1.8 USD/h"]', 19, "unknown unit"),
        ("nodes = [16, 32]", "nodes = [16, 32, 64]", 17, "different lengths: nodes 3, price 2"),
        ("nodes = [16, 32]", "tp = [16, 32]", 11, "given twice"),
        ('model = "gpt3-175b"', "", 4, "model: missing"),
        ('model = "gpt3-175b"', "model = 175", 5, "valid string"),
        ('title = "links"', "title = 3", 2, "is no text"),
        ("[[zip]]", "[zip]", 17, "[[zip]]"),
        ('"cluster.tiers', '"clutser.tiers', 12, "Did you mean cluster?"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, old: str, new: str, line: int, said: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError) as refusal:
        read_sweep(write(tmp_path, GOOD.replace(old, new, 1)))
    text = str(refusal.value)
    assert said in text
    assert f"sweep.toml:{line}:" in text


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        read_sweep(write(tmp_path, GOOD.replace("tp =", "tq =").replace("USD/h", "EUR/h").replace("[48", '["x"')))
    places = [problem.message.partition(":")[0] for problem in refusal.value.problems]
    assert places == ["layers_per_stage", "tq", "price", "price"]


def test_too_many_points_are_counted_not_made() -> None:
    spec = SweepSpec(
        case={"model": "gpt2-124m", "cluster": "dgx-a100"},
        grid={"tp": range(1, 2000), "global_batch": range(1, 2000)},
    )
    with pytest.raises(InputError, match="3,996,001 points > 1,000,000"):
        checked(spec)
