"""The trace holds the step that the timeline holds, in the format that viewers read."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import simulator as sim
from simulator.errors import InputError
from simulator.io import trace
from simulator.io.trace import trace_events, write_trace
from tests.support import dgx, gpt

NANOSECOND = 1.01e-3
"""In microseconds: times are written in whole nanoseconds."""


@pytest.fixture(scope="module", params=["1f1b", "zb-h1", "dualpipe"])
def answer(request: pytest.FixtureRequest) -> sim.Estimate:
    strategy = sim.Strategy(tp=2, pp=4, dp=2, schedule=request.param)
    return sim.estimate(gpt(1024, 8, 16), dgx(2), sim.Run(global_batch=16), strategy)


@pytest.fixture(scope="module")
def events(answer: sim.Estimate) -> list[dict[str, Any]]:
    return trace_events(answer)


def of(events: list[dict[str, Any]], phase: str) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == phase]


def test_every_task_is_a_slice_of_its_rank_and_stream(answer: sim.Estimate, events: list[dict[str, Any]]) -> None:
    table = answer.step().columns()
    slices = of(events, "X")
    names = ("rank", "stream", "stage", "micro_batch", "kind")
    tasks = sorted(zip(*(table[name].tolist() for name in (*names, "start_s", "end_s")), strict=True))
    drawn = sorted(
        (e["pid"], e["cat"], e["args"]["stage"], e["args"]["micro_batch"], e["args"]["kind"], e["ts"], e["dur"])
        for e in slices
    )
    assert [each[:5] for each in drawn] == [each[:5] for each in tasks]
    assert [each[5] for each in drawn] == pytest.approx([each[5] * 1e6 for each in tasks], abs=NANOSECOND)
    assert [each[5] + each[6] for each in drawn] == pytest.approx([each[6] * 1e6 for each in tasks], abs=NANOSECOND)
    last = max(e["ts"] + e["dur"] for e in of(events, "X"))
    assert last == pytest.approx(table["end_s"].max() * 1e6, abs=NANOSECOND)
    assert last > answer.timeline().makespan_s * 1e6


def test_the_end_of_the_step_is_on_every_rank(answer: sim.Estimate, events: list[dict[str, Any]]) -> None:
    """Reduction beside or after the last backward, then the optimizer, on each rank's own streams."""
    for rank, end in enumerate(answer.step().ends):
        mine = {e["name"]: e for e in of(events, "X") if e["pid"] == rank and e["name"] in ("reduce", "optimizer")}
        assert (mine["reduce"]["cat"], mine["optimizer"]["cat"]) == ("gradients", "compute")
        done_us = answer.timeline().rank_end_s[rank] * 1e6 + float(end.reduce_s) * 1e6
        assert mine["reduce"]["ts"] + mine["reduce"]["dur"] == pytest.approx(done_us, abs=NANOSECOND)
        assert mine["optimizer"]["ts"] == pytest.approx(done_us, abs=NANOSECOND)
        assert mine["optimizer"]["dur"] == pytest.approx(float(end.optimizer_s) * 1e6, abs=NANOSECOND)


def test_each_forward_has_its_backward(events: list[dict[str, Any]]) -> None:
    tasks = [e for e in of(events, "X") if e["cat"] == "compute"]
    count = Counter(e["args"]["kind"] for e in tasks)
    assert count["F"] == count["B"] + count["BW"] == 4 * 8


def test_ranks_and_streams_are_named(events: list[dict[str, Any]]) -> None:
    names = {(e["pid"], e["args"]["name"]) for e in of(events, "M") if e["name"] == "process_name"}
    assert names == {(rank, f"pipeline rank {rank}") for rank in range(4)}
    threads = {(e["pid"], e["tid"]) for e in of(events, "M") if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in of(events, "X")} <= threads


def test_every_send_points_to_its_receive(answer: sim.Estimate, events: list[dict[str, Any]]) -> None:
    starts = {e["id"]: e for e in of(events, "s")}
    ends = {e["id"]: e for e in of(events, "f")}
    slices = {(e["pid"], e["tid"], e["ts"]) for e in of(events, "X")}
    stream = {(e["pid"], e["tid"]): e["cat"] for e in of(events, "X")}
    line = answer.timeline()
    assert starts.keys() == ends.keys()
    assert len(starts) == int(line.sends.sum())
    for key, start in starts.items():
        end = ends[key]
        assert abs(start["pid"] - end["pid"]) == 1
        assert {(e["pid"], e["tid"], e["ts"]) for e in (start, end)} <= slices
        assert (stream[start["pid"], start["tid"]], stream[end["pid"], end["tid"]]) == ("send", "receive")


def test_memory_counts_up_to_the_estimates_peak_and_back(answer: sim.Estimate, events: list[dict[str, Any]]) -> None:
    for rank, parts in enumerate(answer.memory.per_stage):
        held = [e["args"]["bytes"] for e in of(events, "C") if e["pid"] == rank]
        assert max(held) == pytest.approx(parts["total"], abs=1)
        # Nothing of the step is left at its end but what stands there all the time.
        always = sum(parts[name] for name in ("weights", "optimizer", "context"))
        assert always < held[-1] == min(held) < parts["total"] - parts["activations"] + 1


def test_the_file_is_gzipped_json_and_equal_each_time(answer: sim.Estimate, tmp_path: Path) -> None:
    first, second = tmp_path / "a.json.gz", tmp_path / "b.json.gz"
    count = write_trace(answer, first)
    write_trace(answer, second)
    assert first.read_bytes() == second.read_bytes()
    found = json.loads(gzip.decompress(first.read_bytes()))
    assert found["traceEvents"] == trace_events(answer)
    phases = Counter(e["ph"] for e in found["traceEvents"])
    assert count == {"ranks": 4, "slices": phases["X"], "flows": phases["s"], "counters": phases["C"]}


def test_some_ranks_only(answer: sim.Estimate) -> None:
    events = trace_events(answer, ranks=(1, 2))
    assert {e["pid"] for e in events} == {1, 2}
    # An arrow needs both of its ends: only sends between ranks 1 and 2 keep theirs.
    whole = trace_events(answer)
    ends = {e["id"]: e["pid"] for e in of(whole, "f")}
    between = {e["id"] for e in of(whole, "s") if {e["pid"], ends[e["id"]]} == {1, 2}}
    assert {e["id"] for e in of(events, "s")} == between != set()


def test_a_rank_that_is_not_there_is_bad_input(answer: sim.Estimate, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="4 is no pipeline rank: there are 0 to 3"):
        write_trace(answer, tmp_path / "x.gz", ranks=(0, 4))
    assert not list(tmp_path.iterdir())


def test_too_many_events_are_refused_with_the_way_out(
    answer: sim.Estimate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "MAX_EVENTS", 100)
    with pytest.raises(InputError, match="--ranks 0,1"):
        write_trace(answer, tmp_path / "x.gz")
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_only_when_asked(answer: sim.Estimate, tmp_path: Path) -> None:
    file = tmp_path / "x.gz"
    file.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write_trace(answer, file)
    assert file.read_text() == "mine"
    write_trace(answer, file, force=True)
    assert file.read_bytes()[:2] == b"\x1f\x8b"


def test_times_are_finite(events: list[dict[str, Any]]) -> None:
    assert np.isfinite([e["ts"] for e in events if "ts" in e]).all()
    assert min(e["dur"] for e in of(events, "X")) >= 0
