"""Kernel times of sizes that arrive as narrow columns: whole numbers of 32 bits and single floats are worked in double.

The sizes are exact in every type, so the seconds must be the same to the last bit. Products of them are not: 70000 x
65535 does not fit 32 bits, and singles keep 7 digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulator.cluster import attention, collectives, gemm, grouped, measured, memory
from simulator.cluster.collectives import Wire
from simulator.cluster.placement import Group
from simulator.spec.hardware import Device
from simulator.spec.kernels import KernelModel, MeasuredKernels
from tests.support import a100, dgx

SUMS = {family: {"call_s": 0.1, "mnk_s": 0.3, "mk_s": 0.7, "kn_s": 1.1, "mn_s": 1.3}
        for family in ("gemm.bf16", "batched_gemm.bf16")}  # fmt: skip
CORE = {"call_s": 0.1, "pair_width_s": 0.3, "pair_s": 0.7, "grid_s": 1.1, "row_s": 1.3}
CURVE = ((10.0, 1.1), (1e12, 300.7))
OWN = MeasuredKernels(sums={**SUMS, "attention.bf16": CORE, "attention_causal.bf16": CORE},
                      curves={"plain": CURVE, "lookup": CURVE})  # fmt: skip
MACHINE = replace(dgx(1), curves={"all_reduce": {2: CURVE, 8: ((10.0, 2.3), (1e12, 700.9))}})
PLAIN = {**a100().kernels.constants["gemm.bf16"], "prologue_k": 150.3}


def _device(**changes: float) -> Device:
    """With a prologue that single floats round."""
    constants = {"gemm.bf16": PLAIN, "grouped_gemm.bf16": {**PLAIN, "ragged_tiles": 0.5, **changes}}
    return replace(a100(), kernels=KernelModel(constants=constants, provenance="assumed"))


QUICK = _device(efficiency=50.0, ragged_tiles=0.0, latency_s=0.0)
"""Grouped kernels so quick that in training plain products are the slower."""
PRODUCT = {"m": [70000, 12289], "n": [65535, 4099], "k": [61, 50021], "batch": [3, 7]}
EXPERTS = {"experts": [7, 61], "tokens": [70001, 12289], "n": [65535, 4099], "k": [611, 50021]}
HEADS = {"batch": [3, 7], "heads": [31, 257], "kv_heads": [5, 2], "q_len": [4099, 70001], "kv_len": [65537, 70003],
         "head_dim": [61, 128], "value_head_dim": [67, 64]}  # fmt: skip
CASES: dict[str, tuple[Callable[..., Any], dict[str, list[int]]]] = {
    "gemm": (lambda **sizes: gemm.gemm_time_s(_device(), "bf16", **sizes), PRODUCT),
    "grouped": (lambda **sizes: grouped.grouped_gemm_time_s(_device(), "bf16", imbalance=1.3, **sizes), EXPERTS),
    "padded": (lambda **sizes: grouped.grouped_gemm_time_s(_device(), "bf16", ragged=False, **sizes), EXPERTS),
    "trained": (lambda **sizes: grouped.trained_experts_time_s(QUICK, "bf16", imbalance=1.3, **sizes), EXPERTS),
    "attention": (lambda **sizes: attention.attention_time_s(a100(), "bf16", causal=False, **sizes), HEADS),
    "causal": (lambda **sizes: attention.attention_time_s(a100(), "bf16", causal=True, window=511, **sizes), HEADS),
    "pairs": (lambda **sizes: attention.visible_pairs(**sizes, causal=True, window=511),
              {"q_len": [4099, 70001], "kv_len": [65537, 70003]}),
    "pass": (lambda **sizes: memory.pointwise_time_s(a100(), **sizes), {"bytes": [70001, 3], "flops": [7, 1000003]}),
    "lookup": (lambda **sizes: memory.lookup_time_s(a100(), **sizes), {"rows": [65539, 7], "width_bytes": [65537, 3]}),
    "measured product": (lambda **sizes: measured.gemm_time_s(OWN, "bf16", **sizes), PRODUCT),
    "measured experts": (lambda **sizes: measured.grouped_gemm_time_s(OWN, "bf16", **sizes), EXPERTS),
    "measured attention": (lambda **sizes: measured.attention_time_s(OWN, "bf16", causal=False, **sizes), HEADS),
    "measured causal": (lambda **sizes: measured.attention_time_s(OWN, "bf16", causal=True, **sizes), HEADS),
    "measured pass": (lambda **sizes: measured.pointwise_time_s(OWN, "gelu", **sizes), {"size_bytes": [70001, 3]}),
    "measured lookup": (lambda **sizes: measured.lookup_time_s(OWN, **sizes),
                        {"rows": [65539, 7], "width_bytes": [65537, 3]}),
    "measured collective": (lambda ranks, size_bytes: measured.collective_time_s(
        MACHINE, "all_reduce", size_bytes, Group(ranks)), {"ranks": [3, 7], "size_bytes": [1234567, 77]}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@pytest.mark.parametrize("case", CASES)
def test_narrow_columns_take_the_seconds_of_wide_ones(case: str, dtype: Any) -> None:
    seconds, sizes = CASES[case]
    wide = seconds(**{name: np.array(values, dtype=np.float64) for name, values in sizes.items()})
    narrow = seconds(**{name: np.array(values, dtype=dtype) for name, values in sizes.items()})
    assert np.asarray(narrow).dtype == np.float64
    assert np.asarray(narrow).tolist() == np.asarray(wide).tolist()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_a_table_of_narrow_parts_is_exchanged_as_a_wide_one_is(dtype: Any) -> None:
    parts = np.array([[0, 1234567], [7654321, 0]], dtype=dtype)
    assert collectives.all_to_all_v_s(parts, Wire(alpha_s=0.0, beta_s_per_byte=0.1)) == 7654321 * 0.1
