"""The planner's answer is the optimum of every strategy run through the engine; its bounds and filters are safe."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

import simulator as sim
from simulator import catalog
from simulator.errors import Infeasible, InputError
from simulator.parallel.legal import check
from simulator.plan.balance import Balance, balanced_layers, layer_costs
from simulator.plan.fitted import fitted, fitted_on_its_split, one_stage_each
from simulator.plan.floors import Floors, fits, state_floor_bytes
from simulator.plan.ladder import FITTED
from simulator.plan.limits import Limits
from simulator.plan.menus import PP_INSIDE_DP
from simulator.plan.pool import Pool
from simulator.plan.question import Question
from simulator.plan.score import Sieve, fine_s, layout_scores
from simulator.plan.space import build_space
from simulator.schedule.make import check_sizes
from simulator.spec.strategy import SCHEDULES, Strategy
from tests.support import a100, dgx, gpt, mixture

TINY, SMALL, LARGE = 2.2e9, 4e9, 80e9
"""Device memory [B]."""


def _cluster(device, devices):
    whole = dgx(max(devices // 8, 1), device)
    if devices >= 8:
        return whole
    return replace(whole, devices_per_node=devices, tiers=(replace(whole.tiers[0], size=devices),))


def _with_shared_expert(model):
    (layer, count), *rest = model.stacks[0].runs
    layer = replace(layer, experts=replace(layer.experts, shared_hidden=1024))
    return replace(model, stacks=(replace(model.stacks[0], runs=((layer, count), *rest)),))


def _case(kind, memory_bytes, devices, batch):
    models = {
        "gpt": gpt(1024, 8, 16, vocab=8192, seq_len=1024),
        "uneven": gpt(512, 7, 8, vocab=50257, seq_len=512, tied=False),
        "deep": gpt(256, 12, 4, vocab=1024, seq_len=512),
        "mixture": mixture(512, 4, 8, experts=4, expert_hidden=1024),
        "wide": mixture(512, 6, 8, experts=8, expert_hidden=512),
        "shared": _with_shared_expert(mixture(512, 6, 8, experts=8, expert_hidden=512)),
    }
    device = replace(a100(), memory_bytes=memory_bytes)
    return models[kind], _cluster(device, devices), sim.Run(global_batch=batch, seq_len=512)


CASES = [
    ("gpt", TINY, 4, 8), ("gpt", SMALL, 8, 16), ("gpt", LARGE, 16, 16), ("gpt", LARGE, 2, 4), ("gpt", TINY, 16, 24),
    ("uneven", TINY, 4, 12), ("uneven", SMALL, 8, 16), ("uneven", LARGE, 16, 32), ("uneven", LARGE, 6, 12),
    ("deep", TINY, 2, 6), ("deep", SMALL, 8, 8), ("deep", LARGE, 4, 16), ("deep", LARGE, 12, 12),
    ("mixture", TINY, 4, 8), ("mixture", SMALL, 4, 12), ("mixture", LARGE, 4, 16), ("mixture", LARGE, 2, 8),
    ("wide", TINY, 4, 4), ("wide", SMALL, 4, 8), ("wide", LARGE, 4, 2), ("wide", TINY, 4, 12),
]  # fmt: skip
CUT = {
    "forbid": {"context_kind": ("ulysses", "all-gather"), "sequence_parallel": (False,), "recompute": ("selective",),
               "order": (PP_INSIDE_DP,)},
    "within": {"cp": (1, 2), "micro_batch": (1, 2), "vp": (1, 2), "etp": (1, 1)},
    "allow": {"zero": (1,)},
}  # fmt: skip
"""Spaces small enough to run whole."""


def _brute_force(model, cluster, run, limits):
    """Every legal strategy through the engine: all that fit, with their answers."""
    software = catalog.load_framework(run.framework)
    space = build_space(model, cluster, run, software, limits)
    listed = list(space.strategies())
    assert len(listed) == space.legal
    assert space.considered == space.legal + sum(space.rejected.values())
    question = Question(model=model, cluster=cluster, run=run, framework=software)
    worked_out = [(_worked_out(question, *entry), entry[2]) for entry in listed]
    alike, own = ([each for each, of in worked_out if of == stages and each] for stages in ("alike", "fitted"))
    assert len(set(alike)) == len(alike)
    assert len(set(own)) == len(own)
    strategies = [*alike, *own]
    found = {strategy: sim.estimate(model, cluster, run, strategy) for strategy in strategies}
    return {strategy: answer for strategy, answer in found.items() if answer.fits}, space


def _worked_out(question, strategy, split, stages) -> Strategy | None:
    """A strategy with its layers per stage and those recomputed; none where nothing fits or another entry says it."""
    if stages == "fitted":
        balanced = Balance(question, strategy, layer_costs(question, strategy))
        try:
            found = fitted(question, strategy) if split == "even" else fitted_on_its_split(balanced)[0]
        except Infeasible:
            return None
        said = found.recompute == "none" or (split == "even" and not isinstance(found.recompute_layers, tuple))
        return None if said else found
    if split == "even":
        return strategy
    try:
        layers = balanced_layers(question, strategy)
    except Infeasible:
        return None
    return replace(strategy, layers_per_stage=layers) if layers else None


def _fewest_recomputed(fitting) -> list:
    """Of strategies on the even split that differ in how many layers they recompute, the one with the fewest: of stages
    with numbers of their own before any number for all, where each rank has one stage.
    """
    fewest = {}
    for strategy, answer in fitting.items():
        number = {"none": 0, "full": strategy.recompute_layers or 10**6}.get(strategy.recompute)
        if isinstance(number, tuple):
            number = 0.5 if one_stage_each(strategy) else None
        if number is None or strategy.layers_per_stage:
            fewest[strategy] = (0, answer)
            continue
        key = replace(strategy, recompute="none", recompute_layers=0)
        if key not in fewest or number < fewest[key][0]:
            fewest[key] = (number, answer)
    return [answer for _, answer in fewest.values()]


@pytest.mark.parametrize(("kind", "memory_bytes", "devices", "batch"), CASES)
def test_the_answer_is_the_optimum_of_all_strategies_run(kind, memory_bytes, devices, batch) -> None:
    model, cluster, run = _case(kind, memory_bytes, devices, batch)
    recompute = ("selective", "full") if memory_bytes == LARGE else ("selective",)
    cut = {**CUT, "forbid": {**CUT["forbid"], "recompute": recompute}}
    fitting, _ = _brute_force(model, cluster, run, Limits(**cut))
    if not fitting:
        with pytest.raises(Infeasible):
            sim.plan(model, cluster, run, **cut)
        return
    plan = sim.plan(model, cluster, run, limit=3, **cut)
    best = sorted(answer.step_time_s for answer in _fewest_recomputed(fitting))[:3]
    assert [entry.estimate.step_time_s for entry in plan] == pytest.approx(best, rel=1e-9)
    assert plan.proof.optimal
    assert plan.proof.fits >= len(fitting)
    least = sim.plan(model, cluster, run, limit=1, objective="memory", **cut)
    least_bytes = min(answer.peak_memory_bytes for answer in fitting.values())
    fastest = min(answer.step_time_s for answer in fitting.values() if answer.peak_memory_bytes == least_bytes)
    assert (least[0].estimate.peak_memory_bytes, least[0].estimate.step_time_s) == (least_bytes, fastest)


@pytest.mark.parametrize("kind", ["gpt", "uneven", "mixture"])
def test_every_schedule_is_searched_to_its_optimum(kind) -> None:
    model, cluster, run = _case(kind, SMALL, 4, 16)
    limits = {
        "fix": {"micro_batch": 1, "sequence_parallel": True, "context_kind": "ring", "cp": 1, "etp": 1, "tp": 1},
        "allow": {"schedule": SCHEDULES, "zero": (2, 3)}, "within": {"pp": (2, 4), "vp": (1, 2)},
        "forbid": {"recompute": ("selective",), "order": (PP_INSIDE_DP,)},
    }  # fmt: skip
    fitting, space = _brute_force(model, cluster, run, Limits(**limits))
    assert {strategy.schedule for strategy in fitting} >= {"gpipe", "zbv", "dualpipe", "chimera"}
    plan = sim.plan(model, cluster, run, limit=5, **limits)
    best = sorted(answer.step_time_s for answer in _fewest_recomputed(fitting))[:5]
    assert [entry.estimate.step_time_s for entry in plan] == pytest.approx(best, rel=1e-9)
    _check_bounds(model, cluster, run, space)


@pytest.mark.parametrize("kind", ["gpt", "uneven", "deep", "wide", "shared"])
def test_bounds_never_exceed_the_engine_and_memory_never_exceeds_the_estimate(kind) -> None:
    model, cluster, run = _case(kind, LARGE, 8, 16)
    space = build_space(model, cluster, run, catalog.load_framework(run.framework), Limits())
    seen = _check_bounds(model, cluster, run, space)
    for limit_bytes in LIMITS[kind]:
        seen |= _check_bounds(model, cluster, run, space, limit_bytes=limit_bytes)
    assert {("even", again) for again in ("none", "selective", "partial", "fitted", "full")} <= seen, seen
    assert kind in ("gpt", "deep") or ("balanced", "none") in seen
    assert kind != "uneven" or {("balanced", "partial"), ("balanced", "fitted")} <= seen, seen


LIMITS = {"gpt": (1.9e9,), "uneven": (1.9e9, 2.0e9), "deep": (1.6e9,), "wide": (1.85e9,), "shared": (1.9e9,)}
"""Memory [B] at which some rows must recompute some layers."""


def _check_bounds(model, cluster, run, space, limit_bytes=np.inf) -> set[tuple[str, str]]:
    """Bounds and memories of a sample of what is scored, beside the engine's; the splits and recomputations seen."""
    seen = set()
    question = Question(model=model, cluster=cluster, run=run, framework=catalog.load_framework(run.framework))
    device = replace(cluster.device, memory_bytes=min(limit_bytes, cluster.device.memory_bytes))
    asked = replace(question, cluster=replace(cluster, device=device))
    chance = random.Random(7)
    checked = 0
    for layout, orders in Sieve(space, question, np.inf).layouts():
        base = layout.rows % space.bases
        zeros = {zero: offered[base] for zero, offered in space.options["zero"].items()}
        state_bytes = state_floor_bytes(question, layout.columns, zeros)
        floors = Floors(space, question, layout.columns, layout.chosen["order"])
        floor_s, working_bytes = floors.floors(layout.chosen, np.arange(len(layout.rows)))
        for scores in layout_scores(layout, orders, lambda: np.inf, limit_bytes=limit_bytes):
            pool = Pool()
            pool.add(layout, scores, np.inf)
            pool.close(np.inf)
            for index in chance.sample(range(len(pool)), min(1, len(pool))):
                position, layers = pool.position[index], pool.layers[index : index + 1]
                stages = "fitted" if layers[0] == FITTED else "alike"
                more = [int(layers[0])]
                if scores.chosen["split"] == "balanced" and layers[0] >= 0:
                    # What holds for the fewest layers holds for more.
                    more += range(more[0] + 1, pool.numbers(pool.name(index))[0] + 1)
                    chance.shuffle(more)
                every = (_worked_out(asked, pool.strategy(pool.name(index), number), scores.chosen["split"], stages)
                         for number in more)  # fmt: skip
                strategy = next((each for each in every if each is not None), None)
                if strategy is None:
                    continue
                answer = sim.estimate(model, cluster, run, strategy)
                again = stages if stages == "fitted" else "partial" if strategy.recompute_layers else strategy.recompute
                seen.add((scores.chosen["split"], again))
                fine = fine_s(layout, scores.chosen, np.array([position]), layers)[0]
                if strategy.layers_per_stage or stages == "fitted":
                    fine = max(fine, scores.bound_s[index]) if stages == "fitted" else scores.bound_s[index]
                assert floor_s[position] <= layout.least_s[position] * (1 + 1e-9), strategy
                peak_bytes = answer.peak_memory_bytes * (1 + 1e-9)
                assert fits(state_bytes[position], working_bytes[position], question, peak_bytes), strategy
                assert layout.least_s[position] <= answer.step_time_s * (1 + 1e-9), strategy
                assert scores.bound_s[index] <= fine * (1 + 1e-9), strategy
                assert fine <= answer.step_time_s * (1 + 1e-9), strategy
                if len(more) == 1:
                    assert scores.memory_bytes[index] <= answer.peak_memory_bytes * (1 + 1e-9), strategy
                checked += 1
    assert checked > 20
    return seen


@pytest.mark.parametrize("kind", ["gpt", "uneven", "mixture"])
def test_the_columns_follow_the_same_rules_as_a_single_strategy(kind) -> None:
    model, cluster, run = _case(kind, LARGE, 12, 24)
    limits = Limits(
        fix={"recompute": "none", "split": "even"},
        allow={"tp": (1, 2, 3, 4, 6, 12), "zero": (0, 1), "schedule": SCHEDULES, "etp": (1, 2, 3, 4)},
    )
    space = build_space(model, cluster, run, catalog.load_framework(run.framework), limits)
    legal = {strategy for strategy, _, _ in space.strategies()}
    chance = random.Random(3)
    for strategy in chance.sample(sorted(legal, key=repr), 60):
        assert _runs(model, cluster, run, strategy), strategy
    refused = 0
    for _ in range(400):
        strategy = _random_strategy(chance)
        if not _runs(model, cluster, run, strategy):
            refused += 1
            assert strategy not in legal
    assert refused > 100


def _random_strategy(chance) -> Strategy:
    tp, pp = chance.choice((1, 2, 3, 4)), chance.choice((1, 2, 3))
    return Strategy(
        tp=tp, pp=pp, dp=12 // (tp * pp) or 1, vp=chance.choice((1, 2, 3)), ep=chance.choice((1, 2, 4)),
        micro_batch=chance.choice((1, 2, 3)), schedule=chance.choice(SCHEDULES), zero=chance.choice((0, 1)),
    )  # fmt: skip


def _runs(model, cluster, run, strategy) -> bool:
    try:
        check(model, cluster, run, strategy)
        check_sizes(strategy.schedule, pp=strategy.pp, vp=strategy.vp,
                    micro_batches=run.global_batch // (strategy.dp * strategy.micro_batch))  # fmt: skip
    except InputError:
        return False
    return True


def test_a_larger_space_never_gives_a_worse_best_and_equal_input_gives_equal_bytes() -> None:
    model, cluster, run = _case("gpt", SMALL, 4, 8)
    within = {"cp": (1, 1), "vp": (1, 2), "micro_batch": (1, 2)}
    small = sim.plan(
        model, cluster, run, limit=2, within={**within, "tp": (1, 2)}, forbid={"recompute": ("none",)}
    )
    large = sim.plan(model, cluster, run, limit=2, within=within, allow={"schedule": SCHEDULES})
    assert large[0].estimate.step_time_s <= small[0].estimate.step_time_s
    again = sim.plan(model, cluster, run, limit=2, within=within, allow={"schedule": SCHEDULES})
    first, second = ({**plan.to_dict(), "wall_s": 0.0} for plan in (large, again))
    assert first == second


@pytest.mark.parametrize("kind", ["gpt", "uneven"])
def test_large_spaces_are_cut_early_without_losing_the_best(kind) -> None:
    from simulator.plan.objectives import OBJECTIVES
    from simulator.plan.search import search

    model, cluster, run = _case(kind, LARGE, 16, 64)
    software = catalog.load_framework(run.framework)
    limits = Limits(forbid={"context_kind": ("ulysses", "all-gather"), "recompute": ("selective",)})
    space = build_space(model, cluster, run, software, limits)
    question = Question(model=model, cluster=cluster, run=run, framework=software)
    whole, cut = (
        search(space, question, OBJECTIVES["step_time"], limit=2, time_limit_s=1e9, exhaustive=size)
        for size in (10**9, 0)
    )
    assert [each.key for each in whole.found] == [each.key for each in cut.found]
    assert cut.scored < whole.scored


def test_a_plan_cut_short_says_so_and_its_gap_covers_the_optimum() -> None:
    model, cluster, run = _case("mixture", LARGE, 8, 16)
    whole = sim.plan(model, cluster, run, limit=1, **CUT)
    short = sim.plan(model, cluster, run, limit=1, time_limit_s=0.0, **CUT)
    assert whole.proof.optimal
    assert not short.proof.optimal
    assert short.proof.bounded < short.proof.legal
    assert short.proof.engine_runs == 1
    least_s = (1.0 - short.proof.gap) * short[0].estimate.step_time_s
    assert least_s <= whole[0].estimate.step_time_s <= short[0].estimate.step_time_s
