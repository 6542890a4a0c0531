"""Kernel times never fall when work grows, are continuous, and are the same for scalars and arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.catalog import load_device
from simulator.cluster.device import attention_time_s, gemm_time_s, grouped_gemm_time_s

NAMES = ("a100-sxm-80gb", "h100-sxm-80gb", "b200-sxm-180gb", "tpu-v4", "mi300x", "l40s-48gb", "gb200")
DEVICES = st.sampled_from(NAMES).map(load_device)
SIZE = st.one_of(st.integers(1, 70_000), st.sampled_from([2**i + d for i in range(5, 16) for d in (-1, 0, 1)]))
STEP = st.one_of(st.just(1), st.integers(1, 4096))
QUICK = settings(max_examples=150, deadline=None)


@QUICK
@given(DEVICES, st.tuples(SIZE, SIZE, SIZE, st.integers(1, 300)), st.integers(0, 3), STEP)
def test_gemm_time_never_falls_when_work_grows(device, sizes, which, step):
    shape = list(sizes)
    before = gemm_time_s(device, "bf16", *shape)
    shape[which] += step
    assert gemm_time_s(device, "bf16", *shape) >= before * (1 - 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gemm_time_is_monotone_along_every_step(name):
    device, sizes = load_device(name), np.arange(1, 3000)
    for fixed in ((4096, 4096), (512, 65536), (96, 1000)):
        for shape in ((sizes, *fixed), (fixed[0], sizes, fixed[1]), (*fixed, sizes)):
            steps = np.diff(gemm_time_s(device, "bf16", *shape))
            assert steps.min() >= -1e-15


@QUICK
@given(DEVICES, SIZE, SIZE, SIZE, st.integers(0, 2))
def test_gemm_time_is_continuous(device, m, n, k, which):
    shape = [float(m), float(n), float(k)]
    before = gemm_time_s(device, "bf16", *shape)
    shape[which] *= 1 + 1e-9
    assert gemm_time_s(device, "bf16", *shape) == pytest.approx(before, rel=1e-3)


@QUICK
@given(DEVICES, st.lists(st.tuples(SIZE, SIZE, SIZE), min_size=1, max_size=40))
def test_gemm_arrays_equal_scalars(device, shapes):
    together = gemm_time_s(device, "bf16", *np.array(shapes, dtype=float).T)
    alone = [gemm_time_s(device, "bf16", *shape) for shape in shapes]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@QUICK
@given(
    DEVICES,
    st.fixed_dictionaries({
        "batch": st.integers(1, 64), "heads": st.integers(1, 128), "kv_heads": st.integers(1, 16),
        "q_len": st.integers(1, 100_000), "kv_len": st.integers(1, 100_000), "head_dim": st.integers(16, 256),
        "value_head_dim": st.integers(16, 256),
    }),
    st.fixed_dictionaries({
        "causal": st.booleans(), "window": st.sampled_from([0, 1, 128, 4096]), "backward": st.booleans(),
    }),
    STEP,
    st.sampled_from(["batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim", "value_head_dim"]),
)  # fmt: skip
def test_attention_time_never_falls_when_work_grows(device, sizes, options, step, field):
    before = attention_time_s(device, "bf16", **sizes, **options)
    grown = attention_time_s(device, "bf16", **{**sizes, field: sizes[field] + step}, **options)
    assert grown >= before * (1 - 1e-12)


@QUICK
@given(
    DEVICES,
    st.fixed_dictionaries({
        "experts": st.integers(1, 256), "tokens": st.integers(1, 500_000), "n": SIZE, "k": SIZE,
        "imbalance": st.floats(1.0, 8.0),
    }),
    STEP, st.sampled_from(["experts", "tokens", "n", "k", "imbalance"]),
)  # fmt: skip
def test_grouped_time_never_falls_when_work_grows(device, sizes, step, field):
    before = grouped_gemm_time_s(device, "bf16", **sizes)
    grown = grouped_gemm_time_s(device, "bf16", **{**sizes, field: sizes[field] + step})
    assert grown >= before * (1 - 1e-12)
