"""Recomputation counted stage by stage: what a strategy may say, and what each stage then keeps and runs again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import simulator as sim
from simulator import catalog
from simulator.errors import InputError
from simulator.parallel.lower import lower
from simulator.parallel.memory import memories_of, stage_memory
from simulator.parallel.recompute import Policy, policy_of, recomputed_parts
from simulator.parallel.setting import Setting, groups_of
from simulator.parallel.stage_cost import stage_costs
from simulator.spec.model import FeedForwardSpec
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy
from tests.support import dgx, gpt, mixture

MODEL, RUN = gpt(512, 8, 8, seq_len=1024), Run(global_batch=32, seq_len=1024)
BASE = Strategy(pp=4, dp=2, recompute="full")
SOFTWARE = catalog.load_framework("megatron-core")


def _estimate(layers, base=BASE, model=MODEL):
    return sim.estimate(model, dgx(1), RUN, replace(base, recompute_layers=layers))


def _setting(strategy):
    return Setting(run=RUN, strategy=strategy, framework=SOFTWARE, cluster=dgx(1), groups=groups_of(dgx(1), strategy))


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zb-h1", "zbv", "dualpipe"])
def test_equal_numbers_are_one_number_and_none_of_any_stage_is_no_recomputation(schedule) -> None:
    vp = {"interleaved": 2, "zbv": 2}.get(schedule, 1)
    base = replace(BASE, schedule=schedule, vp=vp, pp=4)
    model = gpt(512, 16, 8, seq_len=1024)
    for one, listed in ((1, (1,) * 4 * vp), (0, (16 // (4 * vp),) * 4 * vp)):
        said, stated = _estimate(one, base, model), _estimate(listed, base, model)
        assert stated.step_time_s == said.step_time_s
        assert [p["total"] for p in stated.memory.per_stage] == [p["total"] for p in said.memory.per_stage]
        assert stated.hfu == said.hfu
    none = sim.estimate(model, dgx(1), RUN, replace(base, recompute="none"))
    zeros = _estimate((0,) * 4 * vp, base, model)
    assert zeros.step_time_s == none.step_time_s
    assert [p["total"] for p in zeros.memory.per_stage] == [p["total"] for p in none.memory.per_stage]
    assert zeros.hfu == none.hfu


def test_each_stage_keeps_and_runs_again_by_its_own_number() -> None:
    """A stage keeps of a recomputed layer its input, 2 bytes an element; its forward runs once more."""
    strategy = replace(BASE, recompute_layers=(2, 1, 0, 2))
    program = lower(MODEL, RUN, strategy, SOFTWARE)
    costs = stage_costs(program, _setting(strategy))
    plain = stage_costs(program, _setting(replace(strategy, recompute="none", recompute_layers=0)))
    layer = next(s for s, _ in program.stages[1].parts if s.recomputable)
    memories = memories_of([s for stage in program.stages for s, _ in stage.parts], policy_of(strategy))
    spared = memories[layer.name].plain_bytes - 2 * 1024 * 512
    one_s = float(costs[1].recompute.total_s)
    for stage, cost, bare, again in zip(program.stages, costs, plain, (2, 1, 0, 2), strict=True):
        assert float(cost.recompute.total_s) == pytest.approx(again * one_s, rel=1e-12)
        assert float(cost.forward.total_s) == float(bare.forward.total_s)
        kept = stage_memory(stage, _setting(strategy), memories).activation_bytes
        whole = stage_memory(stage, _setting(replace(strategy, recompute_layers=(0,) * 4)), memories).activation_bytes
        assert whole - kept == again * spared
    assert one_s > 0


def test_layers_that_keep_all_let_go_of_it_before_the_first_ones_run_again() -> None:
    """Of four layers with the first one recomputed: three whole layers are free by then."""
    strategy = Strategy(pp=2, recompute="full", recompute_layers=1, dp=4)
    model = gpt(512, 8, 8, seq_len=1024)
    stage = lower(model, RUN, strategy, SOFTWARE).stages[0]
    memories = memories_of([s for s, _ in stage.parts], Policy(full=True))
    layer = next(memories[s.name] for s, _ in stage.parts if s.recomputable)
    held = {layers: stage_memory(stage, _setting(replace(strategy, recompute_layers=layers)), memories).backward_bytes
            for layers in (1, 3, 4)}  # fmt: skip
    spared = layer.plain_bytes - layer.saved_bytes
    assert held[4] == spared + layer.largest_bytes
    assert held[1] == layer.largest_bytes
    assert held[3] == max(spared + layer.largest_bytes - layer.plain_bytes, layer.largest_bytes)


def test_the_first_layers_of_a_stage_are_those_recomputed_whatever_their_kind() -> None:
    base = mixture(512, 6, 8, experts=4)
    ((layer, _),) = base.stacks[0].runs
    dense = replace(layer, experts=None, feed_forward=FeedForwardSpec(hidden=2048, gated=True))
    model = replace(base, stacks=(replace(base.stacks[0], runs=((dense, 2), (layer, 4))),))
    strategy = Strategy(pp=2, recompute="full", recompute_layers=(3, 1), layers_per_stage=(4, 2))
    first, last = lower(model, RUN, strategy, SOFTWARE).stages
    counts = [[(int(again), int(rest)) for s, again, rest in recomputed_parts(stage, strategy) if s.recomputable]
              for stage in (first, last)]  # fmt: skip
    assert counts == [[(2, 0), (1, 1)], [(1, 1)]]


def test_columns_of_numbers_agree_with_one_at_a_time() -> None:
    stage = lower(MODEL, RUN, BASE, SOFTWARE).stages[0]
    memories = memories_of([s for s, _ in stage.parts], Policy(full=True))
    column = _setting(replace(BASE, recompute_layers=np.array([1, 2, 0])))  # type: ignore[arg-type]
    many = stage_memory(stage, column, memories)
    for index, layers in enumerate((1, 2, 0)):
        one = stage_memory(stage, _setting(replace(BASE, recompute_layers=layers)), memories)
        assert np.broadcast_to(many.activation_bytes, 3)[index] == one.activation_bytes
        assert np.broadcast_to(many.backward_bytes, 3)[index] == one.backward_bytes


@pytest.mark.parametrize(
    ("layers", "words"),
    [((2, 1), "lists 2 stages, but pp(4) * vp(1) = 4"), ((1, 1, 1, -1), "1,1,1,-1"), ((), "lists 0 stages"),
     (-1, "whole numbers of at least 0"), ((1, 1, True, 1), "whole numbers")],
)  # fmt: skip
def test_lists_that_mean_nothing_are_refused(layers, words) -> None:
    with pytest.raises(InputError) as refused:
        _estimate(layers)
    assert words in str(refused.value)
    with pytest.raises(InputError, match="needs recompute = full"):
        _estimate((1, 1, 1, 1), replace(BASE, recompute="none"))
