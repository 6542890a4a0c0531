"""Kernels and collectives of a calibrated machine, added up by hand from round coefficients and curves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulator.cluster import device, measured
from simulator.cluster.device import (
    attention_time_s,
    gemm_time_s,
    grouped_gemm_time_s,
    lookup_time_s,
    pointwise_time_s,
)
from simulator.cluster.grouped import trained_experts_time_s
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import Group
from simulator.errors import InputError
from simulator.spec.kernels import KernelModel, MeasuredKernels
from tests.support import a100, dgx

ONE = {"call_s": 1000.0, "mnk_s": 1.0, "mk_s": 10.0, "kn_s": 100.0, "mn_s": 0.5}
SEVERAL = {"call_s": 2000.0, "mnk_s": 2.0, "mk_s": 20.0, "kn_s": 200.0, "mn_s": 0.25}
CORE = {"call_s": 7.0, "pair_width_s": 0.5, "pair_s": 3.0, "grid_s": 0.25, "row_s": 0.125}
SUMS = {"gemm.fp32": ONE, "batched_gemm.fp32": SEVERAL, "attention.fp32": CORE,
        **{f"attention{kind}.fp32": {**CORE, "call_s": call} for kind, call in
           (("_causal", 70.0), ("_grad", 700.0), ("_causal_grad", 7000.0))}}  # fmt: skip
CURVE = ((10.0, 1.0), (1000.0, 100.0))
CURVES = {"plain": CURVE, "lookup": ((10.0, 3.0), (1000.0, 300.0)), "gelu": ((10.0, 2.0), (1000.0, 2.0))}
OWN = MeasuredKernels(sums=SUMS, curves=CURVES)
DEVICE = replace(a100(), kernels=KernelModel(constants=a100().kernels.constants, provenance="fitted", measured=OWN))


def test_a_product_is_a_call_and_four_terms() -> None:
    """2 x 3 x 5: 30 of mnk, 10 of mk, 15 of kn, 6 of mn."""
    assert gemm_time_s(DEVICE, "fp32", 2, 3, 5) == 1000 + 30 + 100 + 1500 + 3
    assert gemm_time_s(DEVICE, "fp32", 2, 3, 5, 4) == 2000 + 4 * (60 + 200 + 3000 + 1.5)
    column = gemm_time_s(DEVICE, "fp32", 2, 3, 5, np.array([1, 2, 4]))
    assert column.tolist() == [2633, 2000 + 2 * 3261.5, 2000 + 4 * 3261.5]
    assert measured.gemm_time_s(OWN, "fp32", 2, 3, 5) == 2633
    assert measured.product_terms(2, 3, 5) == {"call_s": 1, "mnk_s": 30, "mk_s": 10, "kn_s": 15, "mn_s": 6}
    assert measured.product_terms(2, 3, 5, 4) == {"call_s": 1, "mnk_s": 120, "mk_s": 40, "kn_s": 60, "mn_s": 24}


def test_experts_are_one_batched_product_over_equal_buffers() -> None:
    found = grouped_gemm_time_s(DEVICE, "fp32", experts=4, tokens=4, n=3, k=5, imbalance=2.0)
    assert found == gemm_time_s(DEVICE, "fp32", 2, 3, 5, 4)
    assert grouped_gemm_time_s(DEVICE, "fp32", experts=4, tokens=8, n=3, k=5) == found


@pytest.mark.parametrize(
    ("causal", "backward", "call", "pairs"), [(False, False, 7, 15), (True, False, 70, 12), (False, True, 700, 15),
                                              (True, True, 7000, 12)],
)  # fmt: skip
def test_an_attention_core_is_a_call_and_four_terms(causal: bool, backward: bool, call: float, pairs: float) -> None:
    """2 x 3 heads of width 4 + 6; 3 queries of 5 keys: 15 pairs, causally 3 + 4 + 5; 15 of grid, 8 rows."""
    sizes = {"batch": 2, "heads": 3, "kv_heads": 1, "q_len": 3, "kv_len": 5, "head_dim": 4, "value_head_dim": 6}
    found = attention_time_s(DEVICE, "fp32", causal=causal, backward=backward, **sizes)
    assert found == call + 6 * (pairs * 10 * 0.5 + pairs * 3 + 15 * 10 * 0.25 + 8 * 10 * 0.125)
    terms = measured.attention_terms(batch=2, heads=3, q_len=3, kv_len=5, width=10, causal=causal)
    assert terms == {"call_s": 1, "pair_width_s": 60 * pairs, "pair_s": 6 * pairs, "grid_s": 900, "row_s": 480}
    windowed = measured.attention_terms(batch=2, heads=3, q_len=3, kv_len=5, width=10, causal=causal, window=2)
    assert windowed["pair_s"] == 6 * 6
    assert attention_time_s(DEVICE, "fp32", causal=causal, backward=backward, window=2, **sizes) < found


def test_curves_are_straight_in_logarithms_flat_before_and_of_one_rate_beyond() -> None:
    steps = ((10.0, 1.0), (1000.0, 10.0), (100000.0, 10.0))
    found = [float(measured.curve_s(steps, size)) for size in (1, 10, 100, 1000, 5000, 100000, 200000)]
    assert found == pytest.approx([1, 1, 10**0.5, 10, 10, 10, 20])
    assert measured.curve_s(steps, np.array([10, 1000])).tolist() == pytest.approx([1, 10])


def test_passes_and_lookups_read_their_own_curves() -> None:
    assert float(pointwise_time_s(DEVICE, 100)) == pytest.approx(10)
    assert float(pointwise_time_s(DEVICE, 100, kernel="gelu")) == pytest.approx(2)
    assert float(pointwise_time_s(DEVICE, 100, kernel="other")) == pytest.approx(10)
    assert float(lookup_time_s(DEVICE, 5, 10)) == pytest.approx(30)


def test_what_was_not_measured_is_refused_with_what_was() -> None:
    with pytest.raises(InputError) as refused:
        gemm_time_s(DEVICE, "bf16", 2, 3, 5)
    (problem,) = refused.value.problems
    assert problem.message == "gemm in bf16 was not measured on this machine."
    assert (problem.where, problem.hint) == ("precision", "Measured: fp32.")
    none = replace(DEVICE.kernels, measured=MeasuredKernels(sums={}, curves=CURVES))
    with pytest.raises(InputError) as refused:
        gemm_time_s(replace(DEVICE, kernels=none), "bf16", 2, 3, 5)
    assert refused.value.problems[0].hint == "Measured: none."


BY_RANKS = {2: ((1.0, 10.0), (1e6, 10.0)), 4: ((1.0, 30.0), (1e6, 30.0)), 8: ((1.0, 130.0), (1e6, 130.0))}
HERE = replace(dgx(1), curves={"all_reduce": BY_RANKS, "send": {2: ((1.0, 5.0), (1e6, 5.0))}})


@pytest.mark.parametrize(("ranks", "seconds"), [(1, 0), (2, 10), (3, 20), (4, 30), (5, 55), (6, 80), (8, 130)])
def test_collectives_lie_straight_between_measured_numbers_of_ranks(ranks: int, seconds: float) -> None:
    found = collective_time_s(HERE, "all_reduce", 100.0, Group(ranks))
    assert isinstance(found, float)
    assert found == pytest.approx(seconds)
    assert collective_time_s(HERE, "all_reduce", 0.0, Group(ranks)) == 0
    many = collective_time_s(HERE, "all_reduce", np.array([0.0, 100.0]), Group(np.array([ranks, ranks])))
    assert many.tolist() == pytest.approx([0, seconds])


def test_collectives_beyond_what_was_measured_are_refused() -> None:
    with pytest.raises(InputError, match="9 ranks, but dgx-test was calibrated with at most 8") as refused:
        collective_time_s(HERE, "all_reduce", 1.0, Group(np.array([2, 9])))
    assert (refused.value.problems[0].where, "--ranks" in refused.value.problems[0].hint) == ("", True)
    with pytest.raises(InputError, match="all_reduc was not measured on dgx-test") as refused:
        collective_time_s(HERE, "all_reduc", 1.0, Group(2))
    assert (refused.value.problems[0].where, "all_reduce" in refused.value.problems[0].hint) == ("", True)


@pytest.mark.parametrize(("tokens", "imbalance"), [(4096, 1.0), (16, 1.0), (3000, 1.5)])
def test_trained_experts_are_no_quicker_than_a_batch_of_plain_products(tokens: int, imbalance: float) -> None:
    """8 experts, of which 8 (1 - e^(-rows / 8)) have any; the slower of both kernels."""
    sizes: dict[str, Any] = {"experts": 8, "tokens": tokens, "n": 1024, "k": 512, "imbalance": imbalance}
    device = a100()
    rows = tokens * imbalance
    filled = 8 * (1 - np.exp(-rows / 8))
    plain = gemm_time_s(device, "bf16", rows / filled, 1024, 512, filled)
    grouped = grouped_gemm_time_s(device, "bf16", **sizes)
    assert trained_experts_time_s(device, "bf16", **sizes) == pytest.approx(max(plain, grouped), rel=1e-12)
    constants = {**device.kernels.constants, "grouped_gemm.bf16": {**device.kernels.constants["gemm.bf16"],
                 "efficiency": 5.0, "ragged_tiles": 0.0, "latency_s": 0.0}}  # fmt: skip
    quick = replace(device, kernels=replace(device.kernels, constants=constants))
    assert grouped_gemm_time_s(quick, "bf16", **sizes) < plain
    assert trained_experts_time_s(quick, "bf16", **sizes) == pytest.approx(plain, rel=1e-12)
    assert isinstance(trained_experts_time_s(quick, "bf16", **sizes), float)
    assert trained_experts_time_s(device, "bf16", **{**sizes, "tokens": np.array([0, tokens])})[1] == pytest.approx(
        max(plain, grouped))  # fmt: skip


def test_a_calibrated_device_s_experts_in_training_run_its_own_batched_products() -> None:
    """Rows of 4 experts: 8 x 1.5 / 4 = 3 each: 4 x (2 x 45 + 20 x 15 + 200 x 15 + 0.25 x 9) after a call of 2000."""
    sizes: dict[str, Any] = {"experts": 4, "tokens": 8, "n": 3, "k": 5, "imbalance": 1.5}
    assert device.trained_experts_time_s(DEVICE, "fp32", **sizes) == 2000 + 4 * (90 + 300 + 3000 + 2.25)
    with pytest.raises(InputError, match="gemm in bf16 was not measured"):
        device.trained_experts_time_s(DEVICE, "bf16", **sizes)


def test_columns_of_no_groups_have_no_times() -> None:
    assert measured.collective_time_s(HERE, "all_reduce", np.array([]), Group(np.array([]))).shape == (0,)
    assert measured.collective_time_s(HERE, "send", np.array([1.0, 2.0]), Group(2)).tolist() == pytest.approx([5, 5])
