"""The step rank by rank: times that sum, memory that is the estimate's, commands that answer."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

import simulator as sim
from simulator.cli import run
from simulator.report.memory_curve import memory_curve
from simulator.report.ranks import timeline_dict, timeline_text
from simulator.spec.strategy import SCHEDULES
from tests.support import dgx, gpt

WORDS = ["gpt3-6.7b", "dgx-a100", "--nodes", "2", "--tp", "2", "--pp", "4", "--global-batch", "32"]


def estimate(schedule: str, pp: int = 4) -> sim.Estimate:
    vp = 2 if schedule.startswith("interleaved") or schedule in {"zbv", "v-half", "v-min", "dualpipev"} else 1
    strategy = sim.Strategy(tp=2, pp=pp, dp=8 // pp, vp=vp, schedule=schedule)
    return sim.estimate(gpt(1024, 8, 16), dgx(2), sim.Run(global_batch=16), strategy)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_peaks_where_the_estimate_says(schedule: str) -> None:
    answer = estimate(schedule)
    curve = memory_curve(answer)
    totals = [rank["total"] for rank in answer.memory.per_stage]
    assert curve.peak_bytes == pytest.approx(totals, rel=1e-9)
    for rank in range(4):
        _, held = curve.of_rank(rank)
        parts = answer.memory.per_stage[rank]
        static = totals[rank] - parts["activations"] - parts["working_set"]
        assert held[-1] == pytest.approx(static, rel=1e-9)


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "dualpipe"])
def test_busy_and_waiting_are_the_whole_pipeline(schedule: str) -> None:
    found = timeline_dict(estimate(schedule))
    for rank in found["ranks"]:
        assert rank["busy_s"] + rank["idle_s"] == pytest.approx(found["makespan_s"], rel=1e-12)
        assert 0 <= rank["exposed_s"] <= rank["busy_s"]
        assert 0 <= rank["peak_time_s"] <= found["makespan_s"]
    idle = np.mean([rank["idle_s"] for rank in found["ranks"]])
    assert found["bubble_fraction"] == pytest.approx(idle / found["makespan_s"], rel=1e-12)
    assert found["makespan_s"] <= found["step_time_s"] * (1 + 1e-12)


def test_1f1b_holds_one_micro_batch_less_on_each_rank() -> None:
    # Narayanan 2021 section 2.2.1: rank r of p holds p - r micro-batches.
    assert [rank["in_flight"] for rank in timeline_dict(estimate("1f1b"))["ranks"]] == [4, 3, 2, 1]


def test_the_text_has_a_line_for_every_rank_it_shows() -> None:
    text = timeline_text(estimate("1f1b"))
    assert [line.split()[0] for line in text.splitlines() if line.strip()[:1].isdigit()] == ["0", "1", "2", "3"]


def test_the_timeline_command_answers_in_text_json_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "step.svg"
    assert run(["timeline", *WORDS, "--plot", str(picture)]) == 0
    assert "Pipeline ranks" in capsys.readouterr().out
    assert "<svg" in picture.read_text(encoding="utf-8")
    assert run(["timeline", *WORDS, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["ranks"]) == 4


def test_the_trace_command_writes_and_says_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "step.json.gz"
    assert run(["trace", *WORDS, "-o", str(file), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    assert said["slices"] == sum(event["ph"] == "X" for event in events)
    assert run(["trace", *WORDS, "-o", str(file), "--force", "--ranks", "0,1"]) == 0
    assert "2 pipeline ranks" in capsys.readouterr().out
    assert run(["trace", *WORDS, "-o", str(file), "--force", "--ranks", "0,x"]) == 2
    assert run(["trace", *WORDS, "-o", str(file), "--force", "--ranks", "9"]) == 2
