"""A calibrated machine file: read as a cluster by every command, refused with its line when wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from simulator import catalog
from simulator.calibrate.sharing import slowdowns
from simulator.calibrate.write import toml_text
from simulator.cluster import measured
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import Group
from simulator.errors import InputError
from simulator.spec.machine_file import read_machine
from simulator.spec.reading import read_document

SUM = {"call_s": 5e-6, "mnk_s": 2e-11, "mk_s": 3e-10, "kn_s": 1e-10, "mn_s": 6e-10}
ATTENTION = {"call_s": 1e-5, "pair_width_s": 4e-11, "pair_s": 1e-10, "grid_s": 0.0, "row_s": 1e-10}
CURVE = [[1000.0, 1e-6], [1e6, 5e-5], [1e8, 6e-3]]
MACHINE: dict[str, Any] = {
    "title": "a test machine", "generation": "cpu", "vendor": "none",
    "machine": {"processor": "p", "cores": 4, "system": "s", "python": "3.11", "torch": "2.13.0", "date": "2026-01-01",
                "ranks": 4, "wall_s": 1.0, "load_before": 0.0, "load_after": 0.0, "spread_fraction": 0.01,
                "reference_s": {"product": 3e-3, "memory": 1.5e-3}},
    "device": {"memory": "16 GiB", "memory_bandwidth": "20 GB/s", "vector": "50 GFLOP/s",
               "peak": {"fp32": "100 GFLOP/s"}},
    "kernels": {
        "sums": {"gemm.fp32": SUM, "batched_gemm.fp32": SUM,
                 **{f"attention{kind}.fp32": ATTENTION for kind in ("", "_causal", "_grad", "_causal_grad")}},
        "curves": {"plain": CURVE, "lookup": CURVE, "gelu": [[1000.0, 5e-6], [1e8, 3e-2]]},
    },
    "collectives": {clock: {kind: {"2": CURVE, "4": [[size, 2 * time] for size, time in CURVE]}
                            for kind in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")}
                    for clock in ("wall", "cpu")},
}  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    path = tmp_path / "here.toml"
    path.write_text(toml_text(MACHINE), encoding="utf-8")
    return path


def _with(tmp_path: Path, change: Any) -> Path:
    table = copy.deepcopy(MACHINE)
    change(table)
    path = tmp_path / "bad.toml"
    path.write_text(toml_text(table), encoding="utf-8")
    return path


@pytest.mark.parametrize("extra", [[], ["--tp", "2"], ["--pp", "2"], ["--zero", "3"]])
def test_estimate_takes_it_for_a_cluster(machine: Path, extra: list[str]) -> None:
    from simulator.cli.app import app

    words = ["estimate", "gpt2", str(machine), "--nodes", "2", "--global-batch", "4", "--micro-batch", "1",
             "--seq-len", "128", "--precision", "fp32", "--framework", "pytorch-cpu", "--json", *extra]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["step_time_s"] > 0
    assert sum(answer["time"].values()) == pytest.approx(answer["step_time_s"], rel=1e-9)


def test_a_product_costs_its_sum(machine: Path) -> None:
    kernels = catalog.load_device(str(machine)).kernels.measured
    assert kernels is not None
    m, n, k = 64, 48, 32
    by_hand = 5e-6 + 2e-11 * m * n * k + 3e-10 * m * k + 1e-10 * k * n + 6e-10 * m * n
    assert float(measured.gemm_time_s(kernels, "fp32", m, n, k)) == pytest.approx(by_hand, rel=1e-12)
    assert float(measured.grouped_gemm_time_s(kernels, "fp32", experts=4, tokens=256, n=n, k=k)) == pytest.approx(
        5e-6 + 4 * (by_hand - 5e-6), rel=1e-12
    )


def test_kernels_run_on_their_own_curve_and_others_on_the_plain_one(machine: Path) -> None:
    kernels = catalog.load_device(str(machine)).kernels.measured
    assert kernels is not None
    assert float(measured.pointwise_time_s(kernels, "gelu", 1e8)) == pytest.approx(3e-2)
    assert float(measured.pointwise_time_s(kernels, "unheard-of", 1e8)) == pytest.approx(6e-3)


def test_times_are_continuous_and_never_fall(machine: Path) -> None:
    cluster = catalog.load_cluster(str(machine))
    sizes = np.geomspace(1.0, 1e10, 4000)
    for times in (measured.curve_s(tuple(map(tuple, CURVE)), sizes),
                  collective_time_s(cluster, "all_reduce", sizes, Group(4))):  # fmt: skip
        assert (np.diff(times) >= 0).all()
        assert (np.diff(np.log(times)) < 0.02).all()


def test_collectives_lie_between_measured_ranks_and_cost_nothing_alone(machine: Path) -> None:
    cluster = catalog.load_cluster(str(machine))
    two, three, four = (float(collective_time_s(cluster, "send", 1e6, Group(ranks))) for ranks in (2, 3, 4))
    assert three == pytest.approx((two + four) / 2)
    assert collective_time_s(cluster, "send", 1e6, Group(1)) == 0
    assert collective_time_s(cluster, "send", 0.0, Group(4)) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t["kernels"]["sums"]["gemm.fp32"].pop("mk_s"), "its coefficients must be"),
        (lambda t: t["kernels"]["sums"]["gemm.fp32"].update(mk_s=-1.0), "must be at least 0.0"),
        (lambda t: t["kernels"]["curves"].pop("plain"), "plain is missing"),
        (lambda t: t["kernels"]["curves"].update(gelu=[[2.0, 1.0], [3.0, 0.5]]), "times must not fall"),
        (lambda t: t["machine"].update(speed=3), "speed"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, change: Any, said: str) -> None:
    path = _with(tmp_path, change)
    with pytest.raises(InputError) as caught:
        catalog.load_cluster(str(path))
    assert said in str(caught.value)
    assert f"{path}:" in str(caught.value)


def test_more_ranks_than_were_measured_are_refused(machine: Path) -> None:
    with pytest.raises(InputError, match="1 to 4 ranks"):
        catalog.load_cluster(str(machine), nodes=8)


def test_a_precision_that_was_not_measured_is_refused(machine: Path) -> None:
    kernels = catalog.load_device(str(machine)).kernels.measured
    assert kernels is not None
    with pytest.raises(InputError, match="bf16 was not measured"):
        measured.gemm_time_s(kernels, "bf16", 64, 64, 64)


def test_ranks_that_share_the_machine_slow_each_other_as_the_reference_kernels_say(tmp_path: Path) -> None:
    """On 2 ranks products take 1.1 times as long and copies 1.5; 4 ranks on 2 cores also wait for their turn, which
    elapsed time counts and processor time does not."""
    table = copy.deepcopy(MACHINE)
    table["machine"]["cores"] = 2
    table["kernels"]["sharing"] = {"1": {"product": 1.0, "memory": 1.0}, "2": {"product": 1.1, "memory": 1.5},
                                   "4": {"product": 1.2, "memory": 1.5}}  # fmt: skip
    path = tmp_path / "shared.toml"
    path.write_text(toml_text(table), encoding="utf-8")
    seconds: dict[tuple[int, str], tuple[float, float]] = {}
    for ranks in (1, 2, 4):
        for clock in ("cpu", "wall"):
            kernels = read_machine(read_document(path), nodes=ranks, clock=clock).device.kernels.measured
            product = measured.gemm_time_s(kernels, "fp32", 64, 64, 64)
            seconds[ranks, clock] = (float(product), float(measured.pointwise_time_s(kernels, "plain", 1e6)))
    moved = 64 * 64 * (3e-10 + 1e-10 + 6e-10)
    multiplied = 5e-6 + 64**3 * 2e-11
    assert seconds[1, "wall"] == pytest.approx((multiplied + moved, 5e-5))
    assert seconds[2, "cpu"] == seconds[2, "wall"] == pytest.approx((1.1 * multiplied + 1.5 * moved, 7.5e-5))
    assert seconds[4, "cpu"] == pytest.approx((1.2 * multiplied + 1.5 * moved, 7.5e-5))
    assert seconds[4, "wall"] == pytest.approx((2.4 * multiplied + 3.0 * moved, 15e-5))


def test_kernels_measured_on_several_ranks_stand_for_themselves(tmp_path: Path) -> None:
    """Where whole products were timed beside other ranks, the reference kernels say no more; a pair of ranks among
    four busy ones slows as what moves bytes does from two ranks to four."""
    table = copy.deepcopy(MACHINE)
    table["kernels"]["sharing"] = {
        "1": dict.fromkeys(("product", "memory", "matrix", "moving"), 1.0),
        "2": {"product": 1.3, "memory": 1.4, "matrix": 1.1, "moving": 1.2},
        "4": {"product": 1.5, "memory": 1.6, "matrix": 1.15, "moving": 1.5},
    }  # fmt: skip
    path = tmp_path / "shared.toml"
    path.write_text(toml_text(table), encoding="utf-8")
    kernels = read_machine(read_document(path), nodes=2, clock="cpu").device.kernels.measured
    alone = 5e-6 + 64**3 * 2e-11 + 64 * 64 * (3e-10 + 1e-10 + 6e-10)
    assert float(measured.gemm_time_s(kernels, "fp32", 64, 64, 64)) == pytest.approx(1.1 * alone)
    assert float(measured.pointwise_time_s(kernels, "plain", 1e6)) == pytest.approx(1.2 * 5e-5)
    for nodes, factor in ((2, 1.0), (4, 1.5 / 1.2)):
        cluster = read_machine(read_document(path), nodes=nodes, clock="cpu")
        assert float(collective_time_s(cluster, "all_reduce", 1e6, Group(2))) == pytest.approx(factor * 5e-5)


def test_slowdowns_are_geometric_means_over_benches() -> None:
    """Two products at 1.0 and 1.21 of their time alone, one copy at 1.5; medians over turns, means over ranks."""
    alone = {"matrix 0": {"1": [1.0], "2": [0.9, 1.0, 5.0]}, "matrix 1": {"1": [2.0], "2": [2.42]},
             "moving 2": {"1": [1.0], "2": [1.4]}, "product": {"1": [1.0], "2": [1.0]}}  # fmt: skip
    other = {"matrix 0": {"2": [1.0]}, "matrix 1": {"2": [2.42]}, "moving 2": {"2": [1.6]}, "product": {"2": [1.0]}}
    found = slowdowns([alone, other])
    assert found["1"] == pytest.approx({"matrix": 1.0, "moving": 1.0, "product": 1.0})
    assert found["2"] == pytest.approx({"matrix": 1.1, "moving": 1.5, "product": 1.0})
