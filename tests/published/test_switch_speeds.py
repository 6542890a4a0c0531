"""Speeds of Switch Transformer's Table 1 (Fedus 2022, arXiv 2101.03961): examples per second on 32 TPU v3 cores.

Neither the model of the chip (datasheet peaks, assumed efficiencies) nor that of the software saw them.
"""

from __future__ import annotations

import pytest

import simulator as sim

CHIPS = 16
SEQUENCES = 2048
"""1,048,576 tokens in sequences of 512 (sec. 2.1 and 4.1)."""


def examples_per_s(model: str, capacity: float | None = None, **split: int) -> float:
    """The fastest of the recomputations that fit: the paper does not say which it used."""
    run = sim.Run(global_batch=SEQUENCES, optimizer="adafactor", framework="mesh-tensorflow", capacity_factor=capacity)
    cluster = sim.load_cluster("tpu-v3-pod", nodes=CHIPS // 4)
    strategies = [
        sim.Strategy(dp=CHIPS, micro_batch=SEQUENCES // CHIPS, recompute=kind, **split)
        for kind in ("none", "selective", "full")
    ]
    answers = [sim.estimate(sim.load_model(model), cluster, run, strategy) for strategy in strategies]
    return SEQUENCES / min(answer.step_time_s for answer in answers if answer.fits)


@pytest.mark.parametrize(
    ("model", "published"), [("t5-base-switch-baseline", 1600.0), ("t5-large-switch-baseline", 470.0)]
)
def test_dense_baselines(model: str, published: float) -> None:
    assert examples_per_s(model) == pytest.approx(published, rel=0.12)


@pytest.mark.parametrize(("capacity", "published"), [(1.0, 1000.0), (1.25, 910.0), (2.0, 860.0)])
def test_switch_base_by_capacity_factor(capacity: float, published: float) -> None:
    """Products with one-hot tensors are a third of the step: with copies it would be half as fast again."""
    assert examples_per_s("switch-base-64", capacity, ep=CHIPS) == pytest.approx(published, rel=0.15)
