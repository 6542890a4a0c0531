"""The balanced split against every contiguous split, and strategies that differ in nothing but their placement."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

import simulator as sim
from simulator import catalog
from simulator.errors import Infeasible
from simulator.lowered import cost_step
from simulator.parallel.lower import layers_of_stages
from simulator.plan.balance import balanced_layers
from simulator.plan.question import Question
from simulator.spec.strategy import Strategy
from tests.support import a100, dgx, gpt, mixture

MODELS = {
    "long": gpt(512, 16, 8, vocab=1024, seq_len=512),
    "gpt": gpt(512, 7, 8, vocab=50257, seq_len=512, tied=False),
    "mixture": mixture(512, 8, 8, experts=4),
}


def _question(kind: str, memory_bytes: float = 80e9) -> Question:
    run = sim.Run(global_batch=32, seq_len=512)
    cluster = dgx(1, replace(a100(), memory_bytes=memory_bytes))
    return Question(model=MODELS[kind], cluster=cluster, run=run, framework=catalog.load_framework(run.framework))


def _splits(layers: int, stages: int) -> list[tuple[int, ...]]:
    cuts = combinations(range(1, layers), stages - 1)
    return [tuple(b - a for a, b in zip((0, *cut), (*cut, layers), strict=True)) for cut in cuts]


def _slowest_s(question: Question, strategy: Strategy) -> float:
    costed = cost_step(question.model, question.cluster, question.run, strategy, question.framework)
    return max(
        sum(float(getattr(cost, phase).total_s) for phase in ("forward", "input_grad", "weight_grad", "recompute"))
        for cost in costed.costs
    )


@pytest.mark.parametrize("kind", ["gpt", "mixture"])
@pytest.mark.parametrize(("recompute", "number"), [("none", 0), ("full", 0), ("full", 1), ("selective", 0)])
def test_no_contiguous_split_has_a_faster_slowest_stage(kind, recompute, number) -> None:
    question = _question(kind)
    strategy = Strategy(pp=4, dp=2, recompute=recompute, recompute_layers=number)
    all_splits = {
        split: _slowest_s(question, replace(strategy, layers_per_stage=split))
        for split in _splits(question.model.layers, 4)
    }
    found = balanced_layers(question, strategy) or layers_of_stages(question.model.layers, 4)
    # What adding up gradients takes per stage is left out of the balance.
    assert all_splits[found] <= min(all_splits.values()) * 1.005


def test_the_split_leaves_memory_for_what_early_stages_keep() -> None:
    """1F1B's first rank keeps four micro-batches, its last one: on devices that the even split overfills, early stages
    have fewer layers."""
    strategy = Strategy(pp=4, dp=2, micro_batch=2)
    assert balanced_layers(_question("long"), strategy) == ()
    question = _question("long", 2.0e9)
    split = balanced_layers(question, strategy)
    assert split == (3, 4, 5, 4)
    for layers, fits in ((split, True), ((), False)):
        given = replace(strategy, layers_per_stage=layers)
        assert sim.estimate(question.model, question.cluster, question.run, given).fits == fits
    with pytest.raises(Infeasible):
        balanced_layers(_question("long", 1.9e9), strategy)


def test_placements_that_run_alike_are_one_entry() -> None:
    question = _question("gpt")
    plan = sim.plan(question.model, question.cluster, question.run, limit=6, within={"cp": (1, 1), "tp": (1, 2)})
    bare = [(replace(entry.strategy, order=()), entry.estimate.step_time_s) for entry in plan]
    assert len(set(bare)) == len(bare)
    named = [entry for entry in plan if entry.also]
    assert named
    for entry in named:
        for order in entry.also:
            other = replace(entry.strategy, order=order)
            answer = sim.estimate(question.model, question.cluster, question.run, other)
            assert answer.step_time_s == entry.estimate.step_time_s
            assert answer.peak_memory_bytes == entry.estimate.peak_memory_bytes
