"""Activation memory of Korthikanti 2022 (arXiv 2205.05198), Table 2, Figure 1 and Figure 7, to the printed digit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.arch.layer import Segment, layer_segment
from simulator.arch.parameters import COUNTING
from simulator.arch.shard import Shard
from simulator.parallel.recompute import SELECTIVE, Policy, saved_tensors
from tests.support import gpt

KERNELS = replace(COUNTING, fused_attention=False, dropout=True)
GIB = 2.0**30
SELECTIVELY = Policy(modules=SELECTIVE)

# name: hidden, layers, heads, micro-batch, pipeline, virtual stages
SHAPES = {
    "22B": (6144, 48, 64, 4, 1, 1),
    "175B": (12288, 96, 96, 1, 8, 3),
    "530B": (20480, 105, 128, 1, 35, 3),
    "1T": (25600, 128, 160, 1, 64, 1),
}


def layer(name: str, *, sequence_parallel: bool) -> Segment:
    hidden, layers, heads, micro_batch, _, _ = SHAPES[name]
    model = gpt(hidden, layers, heads)
    shard = Shard(micro_batch=micro_batch, seq_len=2048, tp=8, sequence_parallel=sequence_parallel)
    spec = model.stacks[0].runs[0][0]
    return layer_segment(spec, model, shard=shard, kernels=KERNELS, name="layer")


def formula_bytes(segment: Segment, policy: Policy) -> float:
    """What the paper's formulas count: they leave out per-row statistics (its section 4.1)."""
    return float(sum(saved.bytes for saved in saved_tensors(segment, policy) if not saved.statistic))


@pytest.mark.parametrize("name", SHAPES)
def test_table_2_formulas_fall_out_of_the_tensors(name: str) -> None:
    hidden, _, heads, b, _, _ = SHAPES[name]
    s, t = 2048, 8
    sbh, scores = s * b * hidden, 5 * heads * s / hidden
    plain, split = layer(name, sequence_parallel=False), layer(name, sequence_parallel=True)
    assert formula_bytes(plain, Policy()) == pytest.approx(sbh * (10 + 24 / t + scores / t), rel=1e-12)
    assert formula_bytes(split, Policy()) == pytest.approx(sbh / t * (34 + scores), rel=1e-12)
    assert formula_bytes(plain, SELECTIVELY) == pytest.approx(sbh * (10 + 24 / t), rel=1e-12)
    assert formula_bytes(split, SELECTIVELY) == pytest.approx(sbh * 34 / t, rel=1e-12)
    assert formula_bytes(plain, Policy(full=True)) == 2 * sbh


@pytest.mark.parametrize(
    ("name", "none_gib", "present_gib"),
    [("22B", 59.25, 9.56), ("175B", 66.84, 12.35), ("530B", 114.02, 23.08), ("1T", 131.25, 26.56)],
)
def test_figure_1_activations_of_the_first_stage(name: str, none_gib: float, present_gib: float) -> None:
    _, layers, _, _, p, v = SHAPES[name]
    in_flight = layers * (1 + (p - 1) / (p * v)) if v > 1 else layers
    none = formula_bytes(layer(name, sequence_parallel=False), Policy()) * in_flight / GIB
    present = formula_bytes(layer(name, sequence_parallel=True), SELECTIVELY) * in_flight / GIB
    assert round(none, 2) == none_gib
    assert round(present, 2) == present_gib


@pytest.mark.parametrize(
    ("name", "sequence", "selective", "both", "full"),
    [
        ("22B", 66.8, 49.4, 16.1, 7.6),
        ("175B", 62.0, 56.5, 18.5, 8.7),
        ("530B", 58.3, 61.9, 20.2, 9.5),
        ("1T", 58.3, 61.9, 20.2, 9.5),
    ],
)
def test_figure_7_percentages_of_the_tensor_parallel_baseline(
    name: str, sequence: float, selective: float, both: float, full: float
) -> None:
    plain, split = layer(name, sequence_parallel=False), layer(name, sequence_parallel=True)
    base = formula_bytes(plain, Policy())

    def percent(segment: Segment, policy: Policy) -> float:
        return round(100 * formula_bytes(segment, policy) / base, 1)

    assert percent(split, Policy()) == sequence
    assert percent(plain, SELECTIVELY) == selective
    assert percent(split, SELECTIVELY) == both
    assert percent(plain, Policy(full=True)) == full
