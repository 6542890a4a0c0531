"""Lowering conserves the model: stages and shards sum to the whole, whatever the split."""

from __future__ import annotations

import pytest

from simulator.arch.parameters import parameters
from simulator.parallel.lower import layers_of_stages, lower
from simulator.parallel.states import held_parameters
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy
from tests.support import gpt, mixture

PLAIN = Framework(name="plain", vocab_multiple=1)
RUN = Run(global_batch=64)


@pytest.mark.parametrize(("pp", "vp"), [(1, 1), (2, 1), (4, 2), (8, 1)])
def test_stages_hold_every_parameter_once_and_the_tied_table_twice(pp: int, vp: int) -> None:
    model = gpt(512, 8, 8)
    program = lower(model, RUN, Strategy(pp=pp, vp=vp), PLAIN)
    held = sum(float(held_parameters((stage,)).total) for stage in program.stages)
    copy = 51200 * 512 if pp * vp > 1 else 0
    assert held == parameters(model).total + copy


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_shards_sum_to_the_whole_with_norms_and_row_biases_replicated(tp: int) -> None:
    model = gpt(512, 4, 8)
    whole = held_parameters(lower(model, RUN, Strategy(), PLAIN).stages)
    shard = held_parameters(lower(model, RUN, Strategy(tp=tp), PLAIN).stages)
    # On every tp rank: norms (2 x 2 h a layer, 2 h at the end), row-parallel biases (2 h a layer), positions.
    replicated = 4 * (4 * 512 + 2 * 512) + 2 * 512 + 2048 * 512
    assert tp * float(shard.total) == float(whole.total) + (tp - 1) * replicated


@pytest.mark.parametrize(("ep", "etp"), [(1, 1), (4, 1), (2, 2), (8, 1)])
def test_experts_divide_by_ep_and_etp(ep: int, etp: int) -> None:
    model = mixture()
    held = held_parameters(lower(model, RUN, Strategy(tp=2, dp=4, ep=ep, etp=etp), PLAIN).stages)
    assert float(held.expert) * ep * etp == 8 * 8 * 3 * 1024 * 2048


def test_a_remainder_of_layers_goes_to_the_middle() -> None:
    assert layers_of_stages(61, 16) == (3, *[4] * 13, 3, 3)
    assert sum(layers_of_stages(61, 16)) == 61
    assert layers_of_stages(8, 2, (5, 3)) == (5, 3)
