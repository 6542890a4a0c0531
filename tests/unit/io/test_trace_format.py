"""Every event of a trace keeps the Trace Event Format (Google, 2016), and what Perfetto's importer asks beyond it.

Perfetto drops a slice that runs into the next one of its thread (slice_drop_overlapping_complete_event), an arrow that
starts or ends outside every slice (flow_no_enclosing_slice), and reads thread 0 of process p as thread p.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import simulator as sim
from simulator.io.trace import write_trace
from tests.support import dgx, gpt

Event = dict[str, Any]

KEYS = {
    "M": ({"ph", "name", "pid", "args"}, {"tid"}),
    "X": ({"ph", "name", "cat", "pid", "tid", "ts", "dur"}, {"args", "cname"}),
    "s": ({"ph", "name", "cat", "id", "pid", "tid", "ts"}, set()),
    "f": ({"ph", "name", "cat", "id", "pid", "tid", "ts", "bp"}, set()),
    "C": ({"ph", "name", "pid", "ts", "args"}, set()),
}
"""Phase -> (keys that must be there, keys that may be there)."""
METADATA: dict[str, tuple[str, type, bool]] = {
    "process_name": ("name", str, False),
    "process_labels": ("labels", str, False),
    "process_sort_index": ("sort_index", int, False),
    "thread_name": ("name", str, True),
    "thread_sort_index": ("sort_index", int, True),
}
"""Name of a metadata event -> (its only argument, that one's type, whether it is about a thread)."""
COLOURS = {
    "thread_state_uninterruptible", "thread_state_iowait", "thread_state_running", "thread_state_runnable",
    "thread_state_sleeping", "thread_state_unknown", "generic_work", "good", "bad", "terrible", "black", "grey",
    "white", "yellow", "olive", "rail_response", "rail_animation", "rail_idle", "rail_load", "startup",
}  # fmt: skip
"""Reserved colour names (catapult tracing/tracing/base/color_scheme.html)."""

CASES = {
    "flat": sim.Strategy(tp=4, dp=4, zero=3),
    "pipeline": sim.Strategy(tp=2, pp=4, dp=2, zero=1),
    "interleaved": sim.Strategy(tp=2, pp=4, dp=2, vp=2, schedule="interleaved", zero=1),
    "zero-bubble": sim.Strategy(tp=2, pp=4, dp=2, schedule="zb-h1"),
    "both-ways": sim.Strategy(tp=2, pp=4, dp=2, schedule="dualpipe"),
    "folded": sim.Strategy(tp=2, pp=4, dp=2, vp=2, schedule="zbv"),
}


@pytest.fixture(scope="module", params=CASES, ids=str)
def document(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    strategy = CASES[request.param]
    answer = sim.estimate(gpt(1024, 8, 16), dgx(2), sim.Run(global_batch=64), strategy)
    file = tmp_path_factory.mktemp("trace") / "step.json.gz"
    write_trace(answer, file)
    found: dict[str, Any] = json.loads(gzip.decompress(file.read_bytes()))
    return found


@pytest.fixture(scope="module")
def events(document: dict[str, Any]) -> list[Event]:
    found: list[Event] = document["traceEvents"]
    return found


def by_thread(events: list[Event]) -> dict[tuple[int, int], list[Event]]:
    threads: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            threads[event["pid"], event["tid"]].append(event)
    return threads


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


def test_the_file_is_the_formats_object(document: dict[str, Any]) -> None:
    assert set(document) == {"displayTimeUnit", "traceEvents"}
    assert document["displayTimeUnit"] in {"ms", "ns"}
    assert {event["ph"] for event in document["traceEvents"]} <= set(KEYS)


def test_every_event_has_its_keys_and_no_others(events: list[Event]) -> None:
    for event in events:
        needed, allowed = KEYS[event["ph"]]
        assert needed <= set(event) <= needed | allowed, event
        assert isinstance(event["name"], str)
        assert event["name"]
        assert type(event["pid"]) is int
        assert event["pid"] >= 0
        assert "tid" not in event or (type(event["tid"]) is int and event["tid"] >= 1), event
        assert "ts" not in event or (number(event["ts"]) and event["ts"] >= 0), event
        assert "dur" not in event or (number(event["dur"]) and event["dur"] >= 0), event
        assert event.get("cname", "good") in COLOURS
        assert event.get("bp", "e") == "e"


def test_metadata_says_one_thing_of_one_process_or_thread(events: list[Event]) -> None:
    said: Counter[tuple[Any, ...]] = Counter()
    for event in events:
        if event["ph"] != "M":
            continue
        argument, kind, threaded = METADATA[event["name"]]
        assert list(event["args"]) == [argument]
        assert type(event["args"][argument]) is kind
        assert ("tid" in event) == threaded
        said[event["name"], event["pid"], event.get("tid")] += 1
    assert set(said.values()) == {1}
    for event in events:
        for name in ("process_name", "process_sort_index"):
            assert (name, event["pid"], None) in said
        if "tid" in event:
            for name in ("thread_name", "thread_sort_index"):
                assert (name, event["pid"], event["tid"]) in said


def test_slices_of_a_thread_follow_each_other_or_lie_within_however_a_viewer_rounds(events: list[Event]) -> None:
    for slices in by_thread(events).values():
        assert all(earlier["ts"] <= later["ts"] for earlier, later in pairwise(slices))
        for to_ns in (round, int):
            around: list[int] = []
            for each in slices:
                start_ns, end_ns = to_ns(each["ts"] * 1000), to_ns(each["ts"] * 1000) + to_ns(each["dur"] * 1000)
                while around and around[-1] <= start_ns:
                    around.pop()
                assert not around or end_ns <= around[-1], (to_ns, each)
                around.append(end_ns)


def test_an_arrow_has_one_start_and_one_later_end_on_slices(events: list[Event]) -> None:
    threads = by_thread(events)
    spans = {key: [(e["ts"], e["ts"] + e["dur"]) for e in slices] for key, slices in threads.items()}
    ends: dict[str, dict[int, Event]] = {"s": {}, "f": {}}
    for event in events:
        if event["ph"] in ends:
            assert type(event["id"]) is int
            assert event["id"] not in ends[event["ph"]]
            ends[event["ph"]][event["id"]] = event
            assert any(a <= event["ts"] < b for a, b in spans[event["pid"], event["tid"]])
    assert ends["s"].keys() == ends["f"].keys()
    for key, start in ends["s"].items():
        end = ends["f"][key]
        assert (start["name"], start["cat"]) == (end["name"], end["cat"])
        assert start["ts"] <= end["ts"]
        assert (start["pid"], start["tid"]) != (end["pid"], end["tid"])


def test_a_counter_is_numbers_in_the_order_of_time(events: list[Event]) -> None:
    last: dict[tuple[int, str], float] = {}
    for event in events:
        if event["ph"] == "C":
            assert event["args"]
            assert all(number(value) and value >= 0 for value in event["args"].values())
            assert event["ts"] > last.get((event["pid"], event["name"]), -1.0)
            last[event["pid"], event["name"]] = event["ts"]
    assert last


def test_a_file_of_a_large_step_keeps_the_rules(tmp_path: Path) -> None:
    """Times in the tens of seconds, where rounding to the picosecond is coarse."""
    strategy = sim.Strategy(tp=8, pp=8, dp=16, vp=6, schedule="interleaved", recompute="selective", zero=1)
    answer = sim.estimate(
        sim.load_model("gpt3-175b"), sim.load_cluster("dgx-a100", nodes=128), sim.Run(global_batch=1536), strategy
    )
    write_trace(answer, tmp_path / "step.json.gz")
    events = json.loads(gzip.decompress((tmp_path / "step.json.gz").read_bytes()))["traceEvents"]
    test_every_event_has_its_keys_and_no_others(events)
    test_slices_of_a_thread_follow_each_other_or_lie_within_however_a_viewer_rounds(events)
    test_a_counter_is_numbers_in_the_order_of_time(events)
