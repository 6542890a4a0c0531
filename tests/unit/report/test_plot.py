"""Pictures say what the values say: bars sum to totals, points lie under roofs; the same input gives the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import simulator as sim
from simulator.cli import run as shardwise
from simulator.cluster.graph import cluster_graph
from simulator.report.plot import PICTURES, plot, save
from simulator.report.plot_curves import measured_picture, pareto_picture
from simulator.report.plot_roofline import layer_kernels, roofline_picture
from simulator.report.plot_scaling import knee, scaling_picture
from simulator.report.plot_style import COLOURS, picture_bytes
from simulator.report.plot_switch import KINDS, switch_picture, tokens_of, weights_of
from simulator.report.plot_topology import link_bytes
from simulator.report.svg_bars import WORDS
from tests.support import dgx, gpt

MODEL = gpt(2048, 8, 16)
RUN = sim.Run(global_batch=32, seq_len=1024)
GIB = 2.0**30


@pytest.fixture(scope="module")
def answer() -> sim.Estimate:
    return sim.estimate(MODEL, dgx(2), RUN, sim.Strategy(tp=4, pp=2, dp=2, micro_batch=2))


def _patches(axes: Any) -> list[tuple[float, float]]:
    """(left end, width) of each bar."""
    return [(patch.get_x(), patch.get_width()) for patch in axes.patches]


def test_memory_bars_reach_each_ranks_peak(answer: sim.Estimate) -> None:
    axes = answer.plot("memory").axes[0]
    ends: dict[float, float] = {}
    for patch in axes.patches:
        row = round(patch.get_y() + patch.get_height() / 2)
        ends[row] = max(ends.get(row, 0.0), patch.get_x() + patch.get_width())
    totals = [rank["total"] / GIB for rank in answer.memory.per_stage]
    assert list(ends.values()) == pytest.approx(totals)
    assert axes.lines[0].get_xdata()[0] == pytest.approx(answer.device_memory_bytes / GIB)


def test_waterfall_bars_join_and_end_at_the_step_time(answer: sim.Estimate) -> None:
    bars = _patches(answer.plot("waterfall").axes[0])
    parts, total = bars[:-1], bars[-1]
    assert total == (0, pytest.approx(answer.step_time_s))
    for (left, width), (following, _) in pairwise(parts):
        assert following == pytest.approx(left + width)
    assert sum(width for _, width in parts) == pytest.approx(answer.step_time_s)


def test_every_task_is_a_box_and_memory_peaks_where_the_estimate_does(answer: sim.Estimate) -> None:
    figure = answer.plot("timeline")
    line = answer.timeline()
    boxes = figure.axes[0].collections[0].get_paths()
    widths = [box.vertices[:, 0].max() - box.vertices[:, 0].min() for box in boxes]
    assert len(boxes) == line.order.tasks
    assert sum(widths) == pytest.approx(float((line.end_s - line.start_s).sum()))
    peaks = [float(np.max(curve.get_ydata())) for curve in figure.axes[1].lines[:2]]
    assert peaks == pytest.approx([rank["total"] / GIB for rank in answer.memory.per_stage])


def test_a_long_step_is_drawn_by_its_opening_and_its_end() -> None:
    long = sim.estimate(MODEL, dgx(2), replace(RUN, global_batch=512), sim.Strategy(tp=4, pp=2, dp=2))
    assert len(long.plot("timeline").axes) == 4
    assert len(long.plot("timeline", until_s=long.step_time_s / 10).axes) == 2


def test_no_kernel_lies_above_the_roofs() -> None:
    cluster = dgx(1)
    points = layer_kernels(MODEL, cluster, RUN, sim.Strategy(dp=8, micro_batch=2))
    device = cluster.device
    peak, bandwidth = device.peak_flops_per_s["bf16"], device.memory_bandwidth_bytes_per_s
    assert {point.kind for point in points} == {"gemm", "attention", "pointwise"}
    matrix = [point for point in points if point.kind != "pointwise"]
    assert all(point.flops_per_s <= min(peak, bandwidth * point.flops_per_byte) for point in matrix)
    # mlp.up by hand: 2048 tokens, 2048 -> 8192, two bytes an element.
    up = next(point for point in points if point.name == "mlp.up")
    assert up.flops == 2 * 2048 * 2048 * 8192
    assert up.moved_bytes == 2 * (2048 * 2048 + 2048 * 8192 + 2048 * 8192)
    assert len(roofline_picture(MODEL, cluster, RUN, sim.Strategy(dp=8, micro_batch=2)).axes) == 1


def test_the_knee_is_the_last_size_above_four_fifths(answer: sim.Estimate) -> None:
    each = answer.tokens_per_s / answer.devices
    shares = ((16, 1), (32, 0.9), (64, 0.8), (128, 0.7))
    sizes = [replace(answer, devices=d, tokens_per_s=each * d * share) for d, share in shares]
    assert knee(sizes[::-1]).devices == 64
    words = [text.get_text() for text in scaling_picture(sizes).axes[0].texts]
    assert words == ["knee: 64"]
    with pytest.raises(sim.InputError, match="at least two"):
        scaling_picture(sizes[:1])


def test_nothing_beats_the_pareto_front_in_both() -> None:
    answers = [sim.estimate(MODEL, dgx(2), RUN, sim.Strategy(tp=tp, dp=16 // tp, micro_batch=mb, recompute=again))
               for tp in (1, 2, 4, 8) for mb in (1, 2) for again in ("none", "full")]  # fmt: skip
    line = next(line for line in pareto_picture(answers).axes[0].lines if line.get_label() == "Pareto front")
    front = set(zip(line.get_xdata().tolist(), line.get_ydata().tolist(), strict=True))
    every = [(a.step_time_s, a.peak_memory_bytes / GIB) for a in answers if a.fits]
    unbeaten = {p for p in every if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in every)}
    assert front == unbeaten
    assert len(front) > 1


def test_topology_loads_are_what_each_device_sends() -> None:
    cluster = dgx(2)
    step = sim.estimate(MODEL, cluster, RUN, sim.Strategy(tp=8, dp=2, micro_batch=2))
    loads = link_bytes(cluster, step, tuple(range(16)), cluster_graph(cluster))
    inside = [size for (one, other), size in loads.items() if "nvlink" in f"{one}{other}"]
    outside = [size for (one, other), size in loads.items() if "nvlink" not in f"{one}{other}"]
    # A ring of eight inside the node: each device sends all its tensor traffic over its NVLinks. The rings of two
    # between the nodes leave over each device's own NIC, over its link to the NIC and the NIC's to the fabric.
    assert inside == pytest.approx([step.traffic_bytes["tp"]] * 16)
    assert outside == pytest.approx([step.traffic_bytes["dp"]] * 32)


FABRICS = ["dgx1-v100", "tpu-v5e-pod", "tpu-v4-pod", "gb200-nvl72", "mi300x-8", "llama3-24k-roce"]


@pytest.mark.parametrize("name", FABRICS)
def test_every_kind_of_fabric_is_drawn_with_links_between_what_is_drawn(name: str) -> None:
    axes = sim.load_cluster(name).plot().axes[0]
    devices = {tuple(dots.get_offsets()[0]) for dots in axes.collections if len(dots.get_offsets()) == 1}
    links = axes.collections[0].get_segments()
    assert len(devices) >= 8
    assert len(links) >= len(devices) - 1
    assert {tuple(link[0]) for link in links} <= devices


def test_switch_partitions_hold_what_the_paper_says() -> None:
    held = {kind: len({weights_of(kind, core) for core in range(16)}) for kind in KINDS}
    batch = {kind: len({tokens_of(kind, core) for core in range(16)}) for kind in KINDS}
    assert held == {"data": 1, "model": 16, "model and data": 4, "expert and data": 16, "expert, model and data": 16}
    assert batch == {"data": 16, "model": 1, "model and data": 4, "expert and data": 16, "expert, model and data": 4}
    assert len(switch_picture().axes) == 10


def test_predicted_against_measured_counts_only_rows_with_both() -> None:
    rows = [{"family": "a", "predicted_s": 1.1, "measured_s": 1.0},
            {"family": "b", "predicted_s": 2.0, "measured_s": None},
            {"family": "a", "predicted_s": 0.7, "measured_s": 1.0}]  # fmt: skip
    assert measured_picture(rows).axes[0].get_title("left") == "2 published runs: median error 20 %, mean 20 %"
    with pytest.raises(sim.InputError, match="no row"):
        measured_picture(rows[1:2])


def test_each_part_of_an_estimate_has_a_colour_and_a_word() -> None:
    assert set(WORDS) == set(COLOURS)


def test_the_same_estimate_gives_the_same_bytes_in_any_process(answer: sim.Estimate, root: Path) -> None:
    for picture in PICTURES[sim.Estimate]:
        assert picture_bytes(answer.plot(picture), "svg") == picture_bytes(answer.plot(picture), "svg")
    assert picture_bytes(answer.plot(), "png") == picture_bytes(answer.plot(), "png")
    code = ("import hashlib; from simulator.report.plot import *; "
            "print(hashlib.sha256(picture_bytes(switch_picture(), 'svg')).hexdigest())")  # fmt: skip
    digests = {subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True,
                              env={"PYTHONHASHSEED": seed, "PATH": ""}).stdout for seed in ("1", "2")}  # fmt: skip
    assert len(digests) == 1


def test_a_picture_that_there_is_not_is_refused_with_the_nearest(answer: sim.Estimate, tmp_path: Path) -> None:
    with pytest.raises(sim.InputError, match="waterfall"):
        plot(answer, "waterfal")
    with pytest.raises(sim.InputError, match="png, svg, pdf"):
        save(answer.plot(), tmp_path / "step.jpg")
    assert not list(tmp_path.iterdir())


def test_the_command_draws_and_keeps_stdout_for_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "step.svg"
    case = ["estimate", "gpt3-13b", "dgx-a100", "--nodes", "2", "--tp", "8", "--global-batch", "64", "--json"]
    for picture in ("overview", "topology"):
        assert shardwise([*case, "--plot", str(file), "--picture", picture]) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out)["devices"] == 16
        assert captured.err == f"wrote {file}\n"
        assert file.read_bytes().startswith(b"<?xml")
