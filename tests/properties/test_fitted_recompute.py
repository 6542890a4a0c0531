"""Recomputation chosen to just fit: the fewest layers of each stage, against every list of numbers run through the
engine, and its bounds.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

import simulator as sim
from simulator import catalog
from simulator.parallel.lower import layers_of_stages
from simulator.plan.balance import Balance, layer_costs
from simulator.plan.fitted import fitted, fitted_on_its_split, one_stage_each, stated
from simulator.plan.ladder import FITTED
from simulator.plan.limits import Limits
from simulator.plan.pool import Pool
from simulator.plan.question import Question
from simulator.plan.score import Sieve, fine_s, layout_scores
from simulator.plan.space import build_space
from simulator.spec.strategy import SCHEDULES, Strategy
from tests.support import a100, dgx, gpt, mixture

RUN = sim.Run(global_batch=16, seq_len=1024)
DENSE = gpt(1024, 8, 16, vocab=8192, seq_len=1024)
MIXED = mixture(512, 8, 8, experts=4, expert_hidden=1024)


def _question(model, memory_bytes, devices=4, run=RUN):
    whole = dgx(1, replace(a100(), memory_bytes=memory_bytes))
    cluster = replace(whole, devices_per_node=devices, tiers=(replace(whole.tiers[0], size=devices),))
    return Question(model=model, cluster=cluster, run=run, framework=catalog.load_framework(run.framework))


def _estimate(question, strategy):
    return sim.estimate(question.model, question.cluster, question.run, strategy)


def _between(model, strategy, share):
    """A device's memory between what all recomputation needs and what none does [B]."""
    roomy = _question(model, 80e9, strategy.pp)
    all_bytes, none_bytes = (
        _estimate(roomy, replace(strategy, recompute=kind)).peak_memory_bytes for kind in ("full", "none")
    )
    assert all_bytes < none_bytes
    return all_bytes + share * (none_bytes - all_bytes)


@pytest.mark.parametrize("share", [0.15, 0.5, 0.85])
@pytest.mark.parametrize(
    ("schedule", "model", "layers"),
    [("1f1b", DENSE, ()), ("gpipe", DENSE, ()), ("eager-1f1b", DENSE, ()), ("zb-h1", DENSE, ()), ("1f1b", MIXED, ()),
     ("1f1b", DENSE, (1, 2, 3, 2))],
)  # fmt: skip
def test_of_all_lists_of_numbers_none_that_fits_is_faster(schedule, model, layers, share) -> None:
    base = Strategy(pp=4, schedule=schedule, micro_batch=2, recompute="full", layers_per_stage=layers)
    question = _question(model, _between(model, base, share))
    held = layers_of_stages(model.layers, 4, layers)
    every = {
        numbers: _estimate(question, replace(base, recompute_layers=numbers))
        for numbers in product(*(range(most + 1) for most in held))
    }
    fitting = {numbers: answer for numbers, answer in every.items() if answer.fits}
    found = fitted(question, base)
    answer = _estimate(question, found)
    assert answer.fits
    assert answer.step_time_s == min(each.step_time_s for each in fitting.values())
    alike = [_estimate(question, replace(base, recompute_layers=number)) for number in range(max(held) + 1)]
    assert answer.step_time_s <= min(each.step_time_s for each in alike if each.fits)
    for numbers, each in every.items():
        for stage, most in enumerate(held):
            if numbers[stage] < most:
                more = every[(*numbers[:stage], numbers[stage] + 1, *numbers[stage + 1 :])]
                assert more.step_time_s >= each.step_time_s * (1 - 1e-12)
                taken = zip(more.memory.per_stage, each.memory.per_stage, strict=True)
                assert all(one["total"] <= other["total"] for one, other in taken)


def test_some_list_is_faster_than_any_number_for_all() -> None:
    base = Strategy(pp=4, micro_batch=2, recompute="full")
    question = _question(DENSE, _between(DENSE, base, 0.5))
    found = fitted(question, base)
    assert isinstance(found.recompute_layers, tuple)
    assert list(found.recompute_layers) == sorted(found.recompute_layers, reverse=True)
    alike = [_estimate(question, replace(base, recompute_layers=number)) for number in range(3)]
    best_s = min(each.step_time_s for each in alike if each.fits)
    assert _estimate(question, found).step_time_s < 0.99 * best_s


def test_a_plan_finds_the_list_and_says_without_it_what_one_number_takes() -> None:
    base = Strategy(pp=4, micro_batch=2, recompute="full")
    question = _question(DENSE, _between(DENSE, base, 0.5))
    fix = {"pp": 4, "micro_batch": 2, "schedule": "1f1b", "split": "even"}

    def plan(**more):
        return sim.plan(question.model, question.cluster, RUN, limit=1, fix={**fix, **more}, within={"vp": (1, 1)},
                        forbid={"recompute": ("selective",)})  # fmt: skip

    both, alike, own = plan(), plan(recompute_stages="alike"), plan(recompute_stages="fitted")
    assert isinstance(both[0].strategy.recompute_layers, tuple)
    assert own[0].strategy == both[0].strategy
    assert isinstance(alike[0].strategy.recompute_layers, int)
    assert both[0].estimate.step_time_s < alike[0].estimate.step_time_s
    # One list more; of alike stages no recomputation, one layer or both of each.
    assert (both.proof.legal, alike.proof.legal, own.proof.legal) == (4, 3, 3)
    assert all(each.proof.optimal for each in (both, alike, own))
    assert both[0].strategy.recompute_layers == (1, 0, 0, 0)


@pytest.mark.parametrize("share", [0.2, 0.6])
@pytest.mark.parametrize(
    ("schedule", "pp", "vp"),
    [("interleaved", 2, 2), ("interleaved", 2, 4), ("zbv", 2, 2), ("v-half", 2, 2), ("dualpipe", 4, 1)],
)
def test_ranks_with_several_stages_recompute_the_first_ones_first_and_no_fewer_fit(schedule, pp, vp, share) -> None:
    base = Strategy(pp=pp, vp=vp, schedule=schedule, micro_batch=1, recompute="full")
    question = _question(DENSE, _between(DENSE, base, share), pp)
    found = fitted(question, base)
    held = layers_of_stages(DENSE.layers, base.stages)
    answer = _estimate(question, found)
    assert answer.fits
    numbers = found.recompute_layers
    if found.recompute == "full" and isinstance(numbers, int):
        numbers = tuple(min(numbers or most, most) for most in held)
    ranks = {tuple(sorted(set(_stages(schedule, rank, pp, base.stages)))) for rank in range(pp)}
    for stages in ranks:
        some = [stage for stage in stages if numbers[stage]]
        if not some:
            continue
        assert all(numbers[stage] == held[stage] for stage in some[:-1])
        fewer = list(numbers)
        fewer[some[-1]] -= 1
        assert not _estimate(question, replace(base, recompute_layers=tuple(fewer))).fits


@pytest.mark.parametrize(
    ("schedule", "pp", "vp", "shares"),
    [("interleaved", 2, 2, (0.2, 0.6)), ("interleaved", 2, 4, (0.8,)), ("zbv", 2, 2, (0.5,)),
     ("dualpipe", 4, 1, (0.2, 0.6)), ("dualpipev", 2, 2, (0.2,))],
)  # fmt: skip
def test_of_ranks_with_several_stages_no_list_is_much_faster(schedule, pp, vp, shares) -> None:
    base = Strategy(pp=pp, vp=vp, schedule=schedule, recompute="full")
    held = layers_of_stages(DENSE.layers, base.stages)
    lists = list(product(*(range(most + 1) for most in held)))
    answers = {numbers: _estimate(_question(DENSE, 80e9, pp), replace(base, recompute_layers=numbers))
               for numbers in lists}  # fmt: skip
    for share in shares:
        question = _question(DENSE, _between(DENSE, base, share), pp)
        limit = question.cluster.device.memory_bytes
        fits = {numbers: each.step_time_s for numbers, each in answers.items() if each.peak_memory_bytes <= limit}
        found_s = _estimate(question, fitted(question, base)).step_time_s
        assert found_s <= 1.002 * min(fits.values())
        assert found_s < min(fits[numbers] for numbers in fits if len(set(numbers)) == 1)


def _worked_out(question, strategy, split) -> Strategy:
    if split == "even":
        return fitted(question, strategy)
    return fitted_on_its_split(Balance(question, strategy, layer_costs(question, strategy)))[0]


def _stages(schedule, rank, pp, stages):
    return range(rank, stages, pp) if schedule == "interleaved" else (rank, stages - 1 - rank)


def test_what_fits_is_stated_as_plainly_as_it_can_be() -> None:
    base = Strategy(pp=3, recompute="full")
    said = {
        (0, 0, 0): ("none", 0), (2, 3, 2): ("full", 0), (1, 1, 1): ("full", 1), (2, 2, 2): ("full", 2),
        (2, 1, 0): ("full", (2, 1, 0)), (0, 3, 0): ("full", (0, 3, 0)),
    }  # fmt: skip
    for numbers, (kind, layers) in said.items():
        found = stated(base, numbers, (2, 3, 2))
        assert (found.recompute, found.recompute_layers) == (kind, layers)
    tight = _question(DENSE, 1e9)
    with pytest.raises(sim.Infeasible):
        fitted(tight, Strategy(pp=4, recompute="full"))
    assert fitted(_question(DENSE, 80e9), Strategy(pp=4, recompute="full")).recompute == "none"


@pytest.mark.parametrize(("kind", "model"), [("dense", DENSE), ("mixed", MIXED)])
def test_the_balanced_split_of_what_is_recomputed_has_no_slower_slowest_stage(kind, model) -> None:
    """Beside the balanced splits of every single number, as the dynamic programme counts seconds."""
    base = Strategy(pp=4, micro_batch=2, recompute="full")
    seen = 0
    for share in (0.3, 0.6, 0.9):
        question = _question(model, 1.08 * _between(model, base, share))
        balance = Balance(question, base, layer_costs(question, base))
        slowest_s = balance.fitted_split().slowest_s
        for number in range(1, model.layers):
            try:
                assert slowest_s <= balance.split(number).slowest_s * (1 + 1e-8)
                seen += 1
            except sim.Infeasible:
                continue
        found, floor_s = fitted_on_its_split(balance)
        if found.layers_per_stage:
            answer = _estimate(question, found)
            assert answer.fits
            assert floor_s <= answer.step_time_s * (1 + 1e-9)
            least = balance.least_recomputed(found.layers_per_stage)
            numbers = found.recompute_layers
            assert not isinstance(numbers, tuple) or all(a <= b for a, b in zip(least, numbers, strict=True))
    assert seen, kind


@pytest.mark.parametrize("model", [DENSE, MIXED])
def test_bounds_of_what_just_fits_never_exceed_the_engine(model) -> None:
    """Every schedule, at several memories; coarse and fine bounds of whole columns against each strategy's run."""
    seen = set()
    for memory_bytes in (2.35e9, 2.58e9, 2.8e9, 3.05e9):
        run = replace(RUN, global_batch=16)
        question = _question(model, memory_bytes, 4, run)
        limits = Limits(
            fix={"sequence_parallel": True, "context_kind": "ring", "cp": 1, "etp": 1, "tp": 1, "ep": 1},
            allow={"schedule": SCHEDULES, "zero": (0, 1, 3), "recompute": ("none", "full")}, within={"vp": (1, 4)},
        )  # fmt: skip
        space = build_space(model, question.cluster, run, question.framework, limits)
        for layout, orders in Sieve(space, question, np.inf).layouts():
            for scores in layout_scores(layout, orders, lambda: np.inf, limit_bytes=memory_bytes):
                pool = Pool()
                pool.add(layout, scores, np.inf)
                pool.close(np.inf)
                for index in np.flatnonzero(pool.layers == FITTED).tolist():
                    strategy = pool.strategy(pool.name(index), FITTED)
                    try:
                        found = _worked_out(question, strategy, scores.chosen["split"])
                    except sim.Infeasible:
                        continue
                    if not isinstance(found.recompute_layers, tuple):
                        continue
                    answer = _estimate(question, found)
                    seen.add((strategy.schedule, scores.chosen["split"]))
                    fine = fine_s(layout, scores.chosen, pool.position[index : index + 1], np.array([FITTED]))[0]
                    assert pool.bound_s[index] <= answer.step_time_s * (1 + 1e-9), found
                    assert answer.fits
                    if scores.chosen["split"] == "even":
                        assert fine <= answer.step_time_s * (1 + 1e-9), found
                        assert one_stage_each(found) or found.vp > 1 or found.schedule in ("dualpipe", "chimera")
    assert len({schedule for schedule, _ in seen} & {"1f1b", "eager-1f1b", "interleaved", "zb-h1"}) == 4, seen
    assert "balanced" in {split for _, split in seen}, seen
