"""What keeps replicas equal, counted by hand on a machine whose copies and collectives cost so much per byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simulator.calibrate.write import toml_text
from simulator.measure.predict import _lowered, cpu_seconds
from simulator.measure.suite import Case, case
from simulator.measure.wrappers import engine_replicas_s, replicas_s

COPY, REDUCE, GATHER, SCATTER = 1e-9, 5e-9, 2e-9, 3e-9
CALL_S, UNIT_S, TENSOR_S = 7e-3, 3e-3, 1e-4


def _per_byte(seconds: float) -> list[list[float]]:
    return [[1.0, seconds], [1e12, 1e12 * seconds]]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    product = dict.fromkeys(("call_s", "mnk_s", "mk_s", "kn_s", "mn_s"), 1e-12)
    core = dict.fromkeys(("call_s", "pair_width_s", "pair_s", "grid_s", "row_s"), 1e-12)
    rates = {"all_reduce": REDUCE, "all_gather": GATHER, "reduce_scatter": SCATTER, "send": 1e-9}
    table: dict[str, Any] = {
        "title": "by hand", "vendor": "none",
        "machine": {"processor": "p", "cores": 4, "system": "s", "python": "3", "torch": "2", "date": "d", "ranks": 4,
                    "wall_s": 1.0, "load_before": 0.0, "load_after": 0.0, "spread_fraction": 0.0,
                    "reference_s": {"product": 1e-3, "memory": 1e-3}},
        "device": {"memory": "16 GiB", "memory_bandwidth": "20 GB/s", "vector": "50 GFLOP/s",
                   "peak": {"fp32": "100 GFLOP/s"}},
        "kernels": {
            "sums": {"gemm.fp32": product, "batched_gemm.fp32": product,
                     "sharding": {"call_s": CALL_S, "unit_s": UNIT_S, "tensor_s": TENSOR_S},
                     **{f"attention{kind}.fp32": core for kind in ("", "_causal", "_grad", "_causal_grad")}},
            "curves": {"plain": _per_byte(1e-10), "lookup": _per_byte(1e-10), "copy": _per_byte(COPY)},
        },
        "collectives": {clock: {kind: {"2": _per_byte(rate), "4": _per_byte(rate)} for kind, rate in rates.items()}
                        for clock in ("wall", "cpu")},
    }  # fmt: skip
    path = tmp_path_factory.mktemp("machine") / "hand.toml"
    path.write_text(toml_text(table), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def sizes() -> dict[str, float]:
    """Parameters of gpt-1m as torch holds them: in layers, outside, and how many tensors."""
    import torch

    from simulator.measure.parallel import Groups, build_parts

    lone = Groups(by_axis=dict.fromkeys(("tp", "cp", "dp", "pp", "ep", "edp", "dp_cp")), place={"pp": 0})
    with torch.device("meta"):
        named = list(build_parts(case("gpt-1m", 2, 64), lone)[0].named_parameters())
    layers = float(sum(value.numel() for name, value in named if name.startswith("layers.")))
    return {"layers": layers, "all": float(sum(v.numel() for _, v in named)), "tensors": len(named)}


def _seconds(entry: Case, machine: Path, rank: int = 0) -> float:
    return replicas_s(_lowered(entry, machine, "cpu"), entry, rank)


def test_ddp_multiplies_gradients_into_buckets(machine: Path, sizes: dict[str, float]) -> None:
    """mul_out reads and writes every gradient once; two ranks all-reduce them."""
    found = _seconds(case("gpt-1m", 8, 64, dp=2), machine)
    assert found == pytest.approx(sizes["all"] * (8 * COPY + 4 * REDUCE), rel=1e-9)


def test_zero1_sends_the_flat_tensors_once(machine: Path, sizes: dict[str, float]) -> None:
    found = _seconds(case("gpt-1m", 8, 64, dp=2, zero=1), machine)
    assert found == pytest.approx(sizes["all"] * (8 * COPY + 4 * COPY + 4 * SCATTER + 4 * GATHER), rel=1e-9)


def test_fsdp_gathers_layers_twice_and_the_root_once(machine: Path, sizes: dict[str, float]) -> None:
    layers, root = sizes["layers"], sizes["all"] - sizes["layers"]
    gather = 8 / 2 * COPY + 4 * GATHER + 8 * COPY
    scatter = 8 * COPY + 4 * SCATTER + 8 * COPY
    host = CALL_S + 5 * UNIT_S + sizes["tensors"] * TENSOR_S
    found = _seconds(case("gpt-1m", 8, 64, dp=2, zero=3), machine)
    assert found == pytest.approx((2 * layers + root) * gather + (layers + root) * scatter + host, rel=1e-9)


def test_replicas_of_stages_join_divide_and_copy_back(machine: Path, sizes: dict[str, float]) -> None:
    """Both stages together: three copies and an all-reduce of every parameter."""
    entry = case("gpt-1m", 8, 64, dp=2, pp=2, micro_batch=2)
    found = sum(_seconds(entry, machine, rank) for rank in (0, 1))
    assert found == pytest.approx(sizes["all"] * (3 * 8 * COPY + 4 * REDUCE), rel=1e-9)


@pytest.mark.parametrize("how", [{}, {"tp": 2}, {"pp": 2, "micro_batch": 2}, {"tp": 2, "sequence_parallel": True}])
def test_without_replicas_there_is_nothing_to_keep_equal(machine: Path, how: dict[str, Any]) -> None:
    entry = case("gpt-1m", 8, 64, **how)
    lowered = _lowered(entry, machine, "cpu")
    for rank in range(entry.strategy.pp):
        assert replicas_s(lowered, entry, rank) == 0.0
        assert engine_replicas_s(lowered, rank) == pytest.approx(0.0, abs=1e-15)


def test_processor_seconds_hold_them_once_a_rank(machine: Path) -> None:
    """Two replicas cost what one process of the same micro-batch does, and what keeps them equal."""
    for zero in (0, 1, 3):
        entry, alone = case("gpt-1m", 8, 64, dp=2, zero=zero), case("gpt-1m", 4, 64)
        lowered, single = _lowered(entry, machine, "cpu"), _lowered(alone, machine, "cpu")
        saved = float(single.ends[0].optimizer_s - lowered.ends[0].optimizer_s)  # a shard is updated, not all
        expected = 2 * (cpu_seconds(single, alone) - saved + replicas_s(lowered, entry, 0))
        assert cpu_seconds(lowered, entry) == pytest.approx(expected, rel=1e-9)
