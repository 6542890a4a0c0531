"""What an estimate is made of."""

from __future__ import annotations

import pytest

import simulator as sim
from simulator.spec.strategy import Strategy
from tests.support import dgx, gpt


def test_recomputing_some_layers_executes_their_share_of_what_all_would() -> None:
    """12 layers on 2 stages: 2 of 6 layers of each stage are a third of all."""
    model, run = gpt(512, 12, 8), sim.Run(global_batch=16, seq_len=512)

    def hardware_flops(recompute: str, layers: int = 0) -> float:
        strategy = Strategy(pp=2, dp=4, recompute=recompute, recompute_layers=layers)
        answer = sim.estimate(model, dgx(1), run, strategy)
        return answer.hfu / answer.mfu

    none, some, whole = hardware_flops("none"), hardware_flops("full", 2), hardware_flops("full")
    assert some - none == pytest.approx((whole - none) / 3, rel=1e-9)
    assert whole > none
