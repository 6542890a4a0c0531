"""Catalogue devices in one cluster: an estimate names the slowest; ranks placed by file run where it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from simulator.catalog import load_cluster, load_device, load_model
from simulator.cli.app import app
from simulator.cluster.members import as_slowest
from simulator.estimate import estimate
from simulator.plan.planner import plan
from simulator.spec.hardware import Cluster
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy

MODEL = load_model("gpt3-13b")
RUN = Run(global_batch=64, seq_len=2048)
SPLIT = Strategy(tp=8, dp=4, zero=1)


def mixed(odd: str, *, at: int = 2, link_bytes_per_s: float | None = None) -> Cluster:
    """Four DGX H100, of which one has other devices and maybe slower links."""
    base = load_cluster("dgx-h100", nodes=4)
    devices = [base.device] * 4
    devices[at] = load_device(odd)
    tiers = [base.tiers[0]] * 4
    tiers[at] = replace(tiers[at], bandwidth_bytes_per_s=link_bytes_per_s or tiers[at].bandwidth_bytes_per_s)
    return replace(base, node_devices=tuple(devices), node_tiers=tuple(tiers))


def test_equal_nodes_are_left_alone() -> None:
    base = load_cluster("dgx-h100", nodes=4)
    assert as_slowest(base) == (base, ())


def test_one_slow_node_slows_all_and_is_named() -> None:
    """The whole run then costs what a cluster of the slow device on its links costs; the notes say which node."""
    unequal = mixed("a100-sxm-80gb", link_bytes_per_s=300e9)
    answer = estimate(MODEL, unequal, RUN, SPLIT)
    base = load_cluster("dgx-h100", nodes=4)
    slow = replace(
        base,
        device=load_device("a100-sxm-80gb"),
        tiers=(replace(base.tiers[0], bandwidth_bytes_per_s=300e9), *base.tiers[1:]),
    )
    assert answer.step_time_s == estimate(MODEL, slow, RUN, SPLIT).step_time_s
    assert answer.step_time_s > 1.5 * estimate(MODEL, base, RUN, SPLIT).step_time_s
    notes = " ".join(answer.notes)
    assert "waits for node 2 (a100-sxm-80gb, nvswitch at 300 GB/s)" in notes
    assert not any("node 2" in note for note in estimate(MODEL, base, RUN, SPLIT).notes)


def test_the_smallest_memory_decides_whether_it_fits() -> None:
    """An A100 of 40 GB among H100s: its memory is the limit of the replicas, wherever it stands."""
    answer = estimate(MODEL, mixed("a100-sxm-40gb", at=3), RUN, SPLIT)
    small = load_device("a100-sxm-40gb").memory_bytes
    assert answer.device_memory_bytes == small
    assert any(f"{small / 2**30:g} GiB per device at least" in note for note in answer.notes)


def test_a_faster_node_among_equals_changes_nothing() -> None:
    """But for microseconds: a small collective inside the B200's node starts later than one inside an H100's."""
    faster = mixed("b200-sxm-180gb", link_bytes_per_s=900e9)
    base = load_cluster("dgx-h100", nodes=4)
    expected_s = estimate(MODEL, base, RUN, SPLIT).step_time_s
    assert estimate(MODEL, faster, RUN, SPLIT).step_time_s == pytest.approx(expected_s, rel=1e-5)


def test_a_cluster_file_with_groups_of_nodes_runs_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mixed.toml"
    path.write_text(
        'title = "Two H100 and two A100 nodes"\ndevices_per_node = 8\nsource = "made for this test"\n'
        '[[node_groups]]\ndevice = "h100-sxm-80gb"\nnodes = 2\n'
        '[[node_groups]]\ndevice = "a100-sxm-80gb"\nnodes = 2\nbandwidth = "300 GB/s"\n'
        '[[tiers]]\nname = "nvswitch"\nkind = "nvswitch"\ntopology = "switch"\nsize = 8\n'
        'bandwidth = "450 GB/s"\nlatency = "1 us"\nsource = "made for this test"\n'
        '[[tiers]]\nname = "ib"\nkind = "infiniband"\ntopology = "fat-tree"\n'
        'bandwidth = "400 Gb/s"\nlatency = "1 us"\nsource = "made for this test"\n'
    )
    done = CliRunner().invoke(
        app, ["estimate", "gpt3-13b", str(path), "--tp", "8", "--global-batch", "64", "--seq-len", "2048", "--json"]
    )
    assert done.exit_code == 0, done.output
    notes = json.loads(done.stdout)["notes"]
    assert any("node 2 (a100-sxm-80gb, nvswitch at 300 GB/s)" in note for note in notes)


def test_a_rank_file_decides_what_a_step_costs(tmp_path: Path) -> None:
    """Ranks in order cost what no file costs; tp groups dealt over the nodes cost more, and only in tp's share."""
    plain, dealt = tmp_path / "plain.txt", tmp_path / "dealt.txt"
    plain.write_text("\n".join(str(rank) for rank in range(32)))
    dealt.write_text("\n".join(str(rank % 4 * 8 + rank // 4) for rank in range(32)))
    split = ["--tp", "8", "--zero", "1", "--global-batch", "64", "--seq-len", "2048", "--json"]
    common = ["estimate", "gpt3-13b", "dgx-h100", "--nodes", "4", *split]
    answers = []
    for extra in ([], ["--rank-file", str(plain)], ["--rank-file", str(dealt)]):
        done = CliRunner().invoke(app, [*common, *extra])
        assert done.exit_code == 0, done.output
        answers.append(json.loads(done.stdout))
    none, same, scattered = answers
    assert same["step_time_s"] == pytest.approx(none["step_time_s"], rel=1e-9)
    assert scattered["time"]["tp"] > 2 * none["time"]["tp"]
    assert scattered["time"]["gemm"] == none["time"]["gemm"]
    dealt.write_text("0\n1\n")
    done = CliRunner().invoke(app, [*common, "--rank-file", str(dealt)])
    assert done.exit_code != 0


def test_a_plan_is_for_the_nodes_as_they_are() -> None:
    """The best split of a mixed cluster is estimated as the same split is when it is given."""
    unequal = mixed("a100-sxm-80gb", link_bytes_per_s=300e9)
    limits = {"tp": (4, 8), "pp": (1, 2), "micro_batch": (1, 2), "recompute": ("none",), "schedule": ("1f1b",)}
    found = plan(MODEL, unequal, RUN, limit=1, allow=limits, fix={"zero": 1})
    assert any("waits for node 2" in note for note in found[0].estimate.notes)
    assert found[0].estimate.step_time_s == estimate(MODEL, unequal, RUN, found[0].strategy).step_time_s
