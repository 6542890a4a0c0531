"""Pictures say what the numbers say: lengths measured off the drawing against the estimate."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import simulator as sim
from simulator.parallel.setting import groups_of
from simulator.report.svg import ATTRIBUTES, TAGS, Scene, Shape, scene_json, svg_text, ticks
from simulator.report.svg_bars import MAX_RANKS, memory_scene, shown_ranks, waterfall_scene
from simulator.report.svg_scatter import Point, front, scatter_scene
from simulator.report.svg_timeline import LEFT, RIGHT, timeline_scene, windows_of
from simulator.report.svg_topology import AXES, topology_scene
from tests.support import dgx, gpt, mixture

CLUSTER = dgx(2)


def estimate(**degrees: object) -> sim.Estimate:
    strategy = sim.Strategy(**{"tp": 2, "pp": 4, "dp": 2, **degrees})  # type: ignore[arg-type]
    return sim.estimate(gpt(1024, 8, 16), CLUSTER, sim.Run(global_batch=16), strategy)


def boxes(scene: Scene, kind: str = "part") -> list[Shape]:
    return [shape for shape in scene.shapes if shape.tag == "rect" and kind in str(shape.attributes["class"]).split()]


def size(shape: Shape, name: str) -> float:
    return float(shape.attributes[name])


def test_memory_bars_are_as_long_as_the_bytes_they_stand_for() -> None:
    answer = estimate()
    scene = memory_scene(answer, 800)
    by_rank: dict[float, list[Shape]] = defaultdict(list)
    for box in boxes(scene):
        by_rank[size(box, "y")].append(box)
    limit = next(s for s in scene.shapes if s.attributes.get("class") == "limit")
    left = min(size(box, "x") for box in boxes(scene))
    bytes_per_pixel = answer.device_memory_bytes / (size(limit, "x1") - left)
    for parts, row in zip(answer.memory.per_stage, (by_rank[y] for y in sorted(by_rank)), strict=True):
        assert sum(size(box, "width") for box in row) * bytes_per_pixel == pytest.approx(parts["total"], rel=0.02)
        # Each part begins where the one before it ends.
        ends = [size(box, "x") + size(box, "width") for box in row]
        assert [size(box, "x") for box in row[1:]] == pytest.approx(ends[:-1], abs=0.2)


def test_the_waterfall_falls_from_the_first_second_to_the_last() -> None:
    answer = estimate()
    *parts, total = boxes(waterfall_scene(answer, 800))
    per_s = size(total, "width") / answer.step_time_s
    at = size(total, "x")
    for box in parts:
        name = box.data["term"].removeprefix("time.")
        assert size(box, "x") == pytest.approx(at, abs=0.2)
        assert size(box, "width") == pytest.approx(max(answer.time.parts[name] * per_s, 1.0), abs=0.1)
        at += answer.time.parts[name] * per_s
    assert at == pytest.approx(size(total, "x") + size(total, "width"), abs=0.2)
    assert {box.data["term"] for box in parts} == {f"time.{n}" for n, s in answer.time.parts.items() if s}


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb-h1", "dualpipe"])
def test_the_timeline_draws_every_task_as_long_as_it_takes(schedule: str) -> None:
    answer = estimate(schedule=schedule)
    line = answer.timeline()
    scene = timeline_scene(answer, 1200)
    drawn = defaultdict(float)
    tasks = 0
    for shape in scene.shapes:
        if shape.tag == "path" and str(shape.attributes["class"]).startswith("task"):
            for y, length in re.findall(r"M[\d.]+ ([\d.]+)h([\d.]+)", str(shape.attributes["d"])):
                drawn[round(float(y))] += float(length)
                tasks += 1
    assert tasks == line.order.tasks
    if schedule != "dualpipe":  # Its pairs stand in two half rows.
        pixels_per_s = (1200 - LEFT - RIGHT) / answer.step_time_s
        for busy_s, y in zip(line.busy_s, sorted(drawn), strict=True):
            assert drawn[y] == pytest.approx(busy_s * pixels_per_s, rel=0.05)


def test_a_long_step_is_drawn_by_its_opening_and_its_end() -> None:
    answer = sim.estimate(gpt(1024, 8, 16), CLUSTER, sim.Run(global_batch=1024), sim.Strategy(tp=2, pp=4, dp=2))
    line = answer.timeline()
    opening, end = windows_of(line, answer.step_time_s, 700)
    assert opening.start_s == 0
    assert end.end_s == answer.step_time_s
    assert opening.end_s < end.start_s
    assert opening.pixels_per_s == pytest.approx(end.pixels_per_s)
    scene = timeline_scene(answer, 746)
    assert any("more of the same" in shape.text for shape in scene.shapes)
    assert len(svg_text(scene)) < 60_000


def test_the_topology_reaches_as_far_as_the_ranks_lie() -> None:
    strategy = sim.Strategy(tp=4, pp=2, dp=2, ep=2, etp=2, zero=1)
    answer = sim.estimate(mixture(), CLUSTER, sim.Run(global_batch=16), strategy)
    scene = topology_scene(CLUSTER, strategy, answer, 800)
    whole = max(size(box, "width") for box in boxes(scene))
    groups = groups_of(CLUSTER, strategy)
    bars = {box.data["term"].removeprefix("traffic."): size(box, "width") for box in boxes(scene)}
    for axis, group in AXES:
        if getattr(strategy, axis) == 1:
            assert axis not in bars
            continue
        nodes = {rank // 8 for rank in groups[group].ranks()}
        assert (bars[axis] == whole) == (len(nodes) > 1), axis


def test_one_device_sends_nothing() -> None:
    cluster = replace(dgx(1), devices_per_node=1, tiers=(replace(dgx(1).tiers[0], size=1),))
    strategy = sim.Strategy()
    answer = sim.estimate(gpt(256, 2, 4), cluster, sim.Run(global_batch=1), strategy)
    assert "nothing is split" in topology_scene(cluster, strategy, answer, 400).words


Points = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(pairs=Points, limit=st.integers(0, 9))
def test_the_front_is_what_nothing_beats(pairs: list[tuple[int, int]], limit: int) -> None:
    points = [Point(label="", kind="planned", step_time_s=time, peak_bytes=held) for time, held in pairs]
    fit = {pair for pair in pairs if pair[1] <= limit}
    brute = {a for a in fit if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in fit)}
    assert [(p.step_time_s, p.peak_bytes) for p in front(points, limit)] == sorted(brute)


@given(pairs=Points)
def test_points_stand_in_the_order_of_their_times_and_bytes(pairs: list[tuple[int, int]]) -> None:
    points = [Point(label=f"{i}", kind="planned", step_time_s=t, peak_bytes=2.0**30 * h, key=f"k{i}")
              for i, (t, h) in enumerate(pairs)]  # fmt: skip
    scene = scatter_scene(points, 4 * 2.0**30, 600)
    at = {shape.data["point"]: shape for shape in scene.shapes if shape.tag == "circle"}
    for (i, one), (j, other) in ((a, b) for a in enumerate(pairs) for b in enumerate(pairs)):
        if one[0] < other[0]:
            assert size(at[f"k{i}"], "cx") <= size(at[f"k{j}"], "cx")
        if one[1] < other[1]:
            assert size(at[f"k{i}"], "cy") >= size(at[f"k{j}"], "cy")
    for i, (_, held) in enumerate(pairs):
        assert ("over" in str(at[f"k{i}"].attributes["class"])) == (held > 4)


@given(st.floats(1e-6, 1e9))
def test_ticks_are_round_and_few(largest: float) -> None:
    found = ticks(largest)
    assert found[0] == 0.0
    assert found[-1] <= largest * (1 + 1e-9)
    assert 2 <= len(found) <= 12
    step = found[1]
    assert f"{step:.0e}"[0] in "125"


@given(st.integers(1, 500))
def test_shown_ranks_hold_both_ends(count: int) -> None:
    found = shown_ranks(count)
    assert (found[0], found[-1]) == (0, count - 1)
    assert len(found) == len(set(found)) <= min(count, MAX_RANKS)


def test_shapes_say_only_what_the_page_lets_through() -> None:
    answer = estimate(schedule="dualpipe")
    point = Point(label="", kind="current", step_time_s=1.0, peak_bytes=1.0)
    strategy = sim.Strategy(tp=2, pp=4, dp=2)
    scenes = (
        memory_scene(answer, 500),
        waterfall_scene(answer, 500),
        timeline_scene(answer, 500),
        topology_scene(CLUSTER, strategy, answer, 500),
        scatter_scene([point], 2.0, 500),
    )
    for scene in scenes:
        for tag, attributes, *_ in scene_json(scene)["shapes"]:
            assert tag in TAGS
            assert set(attributes) <= ATTRIBUTES
            assert not [v for v in attributes.values() if isinstance(v, float) and not np.isfinite(v)]


def test_the_page_and_the_module_let_the_same_through(root: Path) -> None:
    script = (root / "simulator" / "web" / "static" / "picture.js").read_text(encoding="utf-8")
    lists = [set(re.findall(r'"([\w-]+)"', part)) for part in re.findall(r"new Set\(\[(.*?)\]\)", script, re.DOTALL)]
    assert lists == [set(TAGS), set(ATTRIBUTES)]


def test_words_are_escaped() -> None:
    hostile = "<script>&\"'"
    shape = Shape("text", {"class": hostile}, hostile, hostile)
    text = svg_text(Scene(name="x", title="x", words=hostile, width=1, height=1, shapes=(shape,)))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 4
