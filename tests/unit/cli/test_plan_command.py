"""shardwise plan: the documents of its three questions hold what scripts rely on, and options that clash are said."""

from __future__ import annotations

import json

import pytest

from simulator.cli import run
from tests.unit.cli.test_contract import ESTIMATE_KEYS, PLAN_KEYS

MODEL = ["plan", "gpt2-124m", "dgx-a100", "--global-batch", "64", "--fix", "cp=1", "--fix", "pp=1",
         "--allow", "micro_batch=1,8"]  # fmt: skip


def document(capsys, *words: str):
    assert run([*MODEL, *words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_counts_give_both_curves_beside_the_plan_of_the_best(capsys) -> None:
    found = document(capsys, "--devices", "8..16", "--tokens", "10B", "--price", "2 USD/h", "--top", "1")
    assert found.keys() >= PLAN_KEYS
    assert found["devices"] == 16
    strong, weak = found["scaling"]["strong"], found["scaling"]["weak"]
    assert [point["global_batch"] for point in strong["points"]] == [64, 64]
    assert [point["global_batch"] for point in weak["points"]] == [64, 128]
    assert strong["points"][1]["plan"]["strategies"] == found["strategies"]
    assert strong["knee_devices"] in (8, 16)
    assert found["strategies"][0]["estimate"].keys() >= ESTIMATE_KEYS
    paid = found["strategies"][0]["bill"]
    assert paid["usd"] == pytest.approx(paid["device_hours"] * 2.0)
    assert paid["device_hours"] == pytest.approx(paid["days"] * 24 * 16)


def test_a_deadline_gives_the_counts_tried_beside_the_plan(capsys) -> None:
    found = document(capsys, "--objective", "devices", "--deadline", "36500 d", "--tokens", "10B", "--devices", "8,16")
    assert found.keys() >= PLAN_KEYS
    assert found["objective"] == "devices"
    assert found["deadline"]["devices"] == found["devices"] == 8
    assert [point["devices"] for point in found["deadline"]["tried"]] == [8]
    assert run([*MODEL, "--objective", "devices", "--deadline", "1 s", "--devices", "8,16"]) == 1
    assert "None of the counts tried (8, 16)" in capsys.readouterr().err


def test_a_front_stands_beside_the_plan(capsys) -> None:
    found = document(capsys, "--nodes", "1", "--pareto", "--top", "1")
    assert found.keys() >= PLAN_KEYS
    points = found["pareto"]["points"]
    assert points[0]["step_time_s"] == found["strategies"][0]["estimate"]["step_time_s"]
    assert [point["step_time_s"] for point in points] == sorted(point["step_time_s"] for point in points)
    peaks = [point["peak_memory_bytes"] for point in points]
    assert peaks == sorted(peaks, reverse=True)
    assert found["pareto"]["claim"]


def test_every_question_is_also_a_table_and_a_picture(capsys, tmp_path) -> None:
    for words, said in (
        (["--devices", "8..16", "--scaling", "strong"], "knee"),
        (["--objective", "devices", "--deadline", "36500 d", "--devices", "8,16"], "in time"),
        (["--nodes", "1", "--objective", "dollars", "--price", "2 USD/h"], "fewest dollars"),
        (["--devices", "8,16", "--scaling", "strong", "--pareto"], "devices and dollars"),
    ):
        picture = tmp_path / "picture.svg"
        assert run([*MODEL, *words, "--plot", str(picture)]) == 0
        text = capsys.readouterr().out
        assert said in text
        assert all(len(line) <= 100 for line in text.splitlines())
        assert picture.read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes", "2", "--devices", "8..16"], "leave --nodes out"),
        (["--nodes", "2", "--objective", "devices", "--deadline", "3 d"], "leave --nodes out"),
        (["--objective", "devices"], "belong together"),
        (["--deadline", "3 d"], "belong together"),
        (["--deadline", "3 d", "--objective", "devices", "--pareto"], "given numbers of devices"),
        (["--devices", "12"], "no whole nodes of 8"),
        (["--devices", "12,"], "no count"),
        (["--objective", "dollars"], "2.50 USD/h"),
        (["--time-limit", "nan"], "finite"),
    ],
)
def test_options_that_clash_or_miss_something_are_bad_input(capsys, words, said) -> None:
    assert run([*MODEL, *words]) == 2
    assert said in capsys.readouterr().err
