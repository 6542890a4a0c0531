"""Relations between estimates of any split of a small model: what is conserved, may only fall, or changes nothing.

Models, degrees and options are drawn; strategies that cannot run are drawn again.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simulator.arch.parameters import parameters
from simulator.errors import InputError
from simulator.estimate import estimate
from simulator.parallel.lower import lower
from simulator.parallel.states import held_parameters
from simulator.project.training import Conditions, project
from simulator.result import Estimate
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec, StackSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy
from tests.support import a100, dgx, gpt, mixture

FEW = settings(max_examples=25)
FRAMEWORK = Framework(name="plain")
DENSE, UNTIED, SPARSE = gpt(512, 8, 8), gpt(512, 8, 8, tied=False), mixture(512, 8, 8, expert_hidden=512)
MODELS = st.sampled_from([DENSE, UNTIED, SPARSE])
EXACT = 1e-9


@st.composite
def splits(draw: st.DrawFn, **fixed: Any) -> Strategy:
    """A strategy of eight devices."""
    tp, pp, cp = (draw(st.sampled_from([1, 2, 4])) for _ in range(3))
    assume(tp * pp * cp <= 8)
    chosen = {
        "tp": tp, "pp": pp, "cp": cp, "dp": 8 // (tp * pp * cp), "micro_batch": draw(st.sampled_from([1, 2])),
        "zero": draw(st.sampled_from([0, 1] if pp > 1 else [0, 1, 2, 3])),
        "recompute": draw(st.sampled_from(["none", "selective", "full"])),
        "schedule": draw(st.sampled_from(["1f1b", "gpipe", "zb-h1"] if pp > 1 else ["1f1b"])),
        "sequence_parallel": draw(st.booleans()),
    }  # fmt: skip
    return Strategy(**{**chosen, **fixed})


def cost(model: ModelSpec, strategy: Strategy, cluster: Cluster | None = None, framework: Framework = FRAMEWORK,
         **run: Any) -> Estimate:  # fmt: skip
    """The estimate; a strategy that cannot run is no example."""
    try:
        return estimate(model, cluster or dgx(1), Run(**{"global_batch": 32, "seq_len": 512, **run}), strategy,
                        framework=framework)  # fmt: skip
    except InputError:
        assume(False)
        raise


def states(answer: Estimate) -> float:
    return sum(answer.memory.parts.get(name, 0.0) for name in ("weights", "gradients", "optimizer"))


@FEW
@given(MODELS, splits(tp=1, cp=1, sequence_parallel=True))
def test_parameters_of_all_stages_are_the_models(model: ModelSpec, strategy: Strategy) -> None:
    """A tied table is counted once; its copy on the last stage is a copy."""
    program = lower(model, Run(global_batch=32, seq_len=512), strategy, FRAMEWORK)
    held = sum(float(held_parameters((stage,)).total) for stage in program.stages)
    table = 51200 * 512 if model.head.tied and strategy.pp > 1 else 0
    assert held - table == parameters(model).total


@FEW
@given(MODELS, splits())
def test_parts_sum_to_their_totals(model: ModelSpec, strategy: Strategy) -> None:
    answer = cost(model, strategy)
    assert sum(answer.time.parts.values()) == pytest.approx(answer.step_time_s, rel=1e-12)
    assert min(answer.time.parts.values()) >= 0.0
    for rank in answer.memory.per_stage:
        assert sum(size for name, size in rank.items() if name != "total") == pytest.approx(rank["total"], rel=1e-12)


@FEW
@given(MODELS, splits())
def test_tokens_of_a_step_are_replicas_times_micro_batches(model: ModelSpec, strategy: Strategy) -> None:
    answer = cost(model, strategy)
    program = lower(model, Run(global_batch=32, seq_len=512), strategy, FRAMEWORK)
    tokens = strategy.dp * program.micro_batches * strategy.micro_batch * 512
    assert answer.tokens_per_s * answer.step_time_s == pytest.approx(tokens, rel=1e-12)
    assert answer.tokens_per_s == pytest.approx(answer.tokens_per_s_per_device * answer.devices, rel=1e-12)


@FEW
@given(splits(recompute="none"), splits(recompute="none"))
def test_flops_do_not_depend_on_the_split(one: Strategy, other: Strategy) -> None:
    """Executed FLOPs too: eight heads divide by every degree drawn, and the vocabulary needs no padding."""
    first, second = cost(DENSE, one), cost(DENSE, other)
    assert first.model_flops_per_step == second.model_flops_per_step
    assert first.hfu * first.step_time_s == pytest.approx(second.hfu * second.step_time_s, rel=EXACT)


@FEW
@given(splits(recompute="none"))
def test_recomputation_executes_the_layers_once_more(strategy: Strategy) -> None:
    """Full recomputation adds the forward of every layer. Products cost twice their forward backward, the fused causal
    core 2.5 times (it makes its scores again), and the head's forward, 2 t h v of its 6, is not repeated: with E
    executed and C in the cores' forward, E - head = 3 products + 3.5 C, so (E - head) / 3 - C / 6 is added.
    """
    once, again = cost(DENSE, strategy), cost(DENSE, replace(strategy, recompute="full"))
    peak = 8 * a100().peak_flops_per_s["bf16"]
    executed, more = (answer.hfu * answer.step_time_s * peak for answer in (once, again))
    head = 6 * 32 * 512 * 512 * 51200
    core = 32 * 8 * 4 * 512**2 * 512 / 2
    assert more - executed == pytest.approx((executed - head) / 3 - core / 6, rel=1e-9)


@FEW
@given(MODELS, splits())
def test_more_memory_never_makes_a_strategy_infeasible(model: ModelSpec, strategy: Strategy) -> None:
    sizes = [2.0**30 * size for size in (1, 2, 4, 8, 16, 80)]
    fits = [cost(model, strategy, dgx(1, replace(a100(), memory_bytes=size))).fits for size in sizes]
    assert fits == sorted(fits)
    assert fits[-1]


@FEW
@given(MODELS, splits(pp=1, zero=0))
def test_a_higher_zero_stage_never_holds_more_states(model: ModelSpec, strategy: Strategy) -> None:
    held = [states(cost(model, replace(strategy, zero=zero, dp=8 // (strategy.tp * strategy.cp)))) for zero in range(4)]
    assert all(low <= high * (1 + EXACT) for high, low in pairwise(held))


@FEW
@given(MODELS, splits())
def test_more_recomputation_keeps_less_and_works_more(model: ModelSpec, strategy: Strategy) -> None:
    none, selective, full = (cost(model, replace(strategy, recompute=kind)) for kind in ("none", "selective", "full"))
    kept = [answer.memory.parts["activations"] for answer in (none, selective, full)]
    work = [answer.hfu * answer.step_time_s for answer in (none, selective, full)]
    assert kept[0] >= kept[1] * (1 - EXACT) >= kept[2] * (1 - EXACT) ** 2
    assert work[0] <= work[1] * (1 + EXACT) <= work[2] * (1 + EXACT) ** 2


@FEW
@given(splits(), st.floats(min_value=1.0, max_value=20.0))
def test_faster_devices_and_links_are_never_slower(strategy: Strategy, factor: float) -> None:
    base, cluster = cost(DENSE, strategy).step_time_s, dgx(1)
    device = cluster.device
    quick = {name: factor * peak for name, peak in device.peak_flops_per_s.items()}
    links = tuple(replace(tier, bandwidth_bytes_per_s=factor * tier.bandwidth_bytes_per_s) for tier in cluster.tiers)
    for better in (
        replace(cluster, device=replace(device, peak_flops_per_s=quick)),
        replace(cluster, device=replace(device, memory_bandwidth_bytes_per_s=factor
                                        * device.memory_bandwidth_bytes_per_s)),
        replace(cluster, tiers=links),
    ):  # fmt: skip
        assert cost(DENSE, strategy, better).step_time_s <= base * (1 + EXACT)


@FEW
@given(splits(), st.floats(min_value=1.0, max_value=100.0))
def test_longer_latencies_are_never_faster(strategy: Strategy, factor: float) -> None:
    cluster = dgx(1)
    late = tuple(replace(tier, latency_s=factor * tier.latency_s) for tier in cluster.tiers)
    slow = cost(DENSE, strategy, replace(cluster, tiers=late)).step_time_s
    assert slow >= cost(DENSE, strategy).step_time_s * (1 - EXACT)


@FEW
@given(splits(), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3]))
def test_more_layers_tokens_or_words_are_never_faster(strategy: Strategy, longer: int, wider: int) -> None:
    base = cost(DENSE, strategy).step_time_s
    assert cost(gpt(512, 8 * longer, 8), strategy).step_time_s >= base * (1 - EXACT)
    assert cost(gpt(512, 8, 8, seq_len=2048), strategy, seq_len=512 * longer).step_time_s >= base * (1 - EXACT)
    assert cost(gpt(512, 8, 8, vocab=51200 * wider), strategy).step_time_s >= base * (1 - EXACT)


@FEW
@given(splits(pp=4, tp=2, cp=1, dp=1, schedule="1f1b", recompute="none"), st.sampled_from([1, 2, 4, 8]))
def test_more_micro_batches_never_leave_a_larger_share_idle(strategy: Strategy, factor: int) -> None:
    def idle(batch: int) -> float:
        answer = cost(DENSE, strategy, global_batch=batch)
        return answer.time.parts.get("bubble", 0.0) / answer.step_time_s

    assert idle(32 * factor) <= idle(32) * (1 + 1e-6)


@FEW
@given(MODELS, splits())
def test_allowed_overlap_is_never_slower(model: ModelSpec, strategy: Strategy) -> None:
    apart = replace(strategy, overlap_grad_reduce=False, overlap_param_gather=False)
    beside = replace(strategy, overlap_grad_reduce=True, overlap_param_gather=strategy.zero > 0)
    assert cost(model, beside).step_time_s <= cost(model, apart).step_time_s * (1 + EXACT)


@FEW
@given(MODELS, splits())
def test_a_step_lies_within_its_bracket(model: ModelSpec, strategy: Strategy) -> None:
    """Compute alone <= step <= compute, communication and waiting one after the other."""
    answer = cost(model, strategy)
    apart = sum(answer.time.parts.values()) + sum(answer.time.hidden.values())
    assert 0.0 < answer.bracket_s[0] <= answer.step_time_s <= answer.bracket_s[1]
    assert answer.bracket_s[1] == pytest.approx(apart, rel=1e-12)
    assert answer.step_time_low_s <= answer.step_time_high_s


@FEW
@given(MODELS, st.sampled_from([1, 2, 4]), st.sampled_from(["none", "selective", "full"]))
def test_one_device_sends_nothing(model: ModelSpec, size: int, recompute: str) -> None:
    whole = dgx(1)
    cluster = replace(whole, devices_per_node=1, tiers=(replace(whole.tiers[0], size=1),))
    alone = cost(model, Strategy(micro_batch=size, recompute=recompute), cluster)
    assert not alone.traffic_bytes
    assert not {"tp", "cp", "ep", "etp", "pp", "dp", "bubble"} & set(alone.time.parts)
    other = cost(model, Strategy(micro_batch=size, recompute=recompute, sequence_parallel=False, zero=3), cluster)
    assert other.step_time_s == pytest.approx(alone.step_time_s, rel=EXACT)


@FEW
@given(st.permutations([0, 0, 0, 1, 1, 0, 0, 1]), st.sampled_from(["none", "selective", "full"]))
def test_the_order_of_layers_inside_a_stage_changes_nothing(kinds: list[int], recompute: str) -> None:
    layers = (DENSE.stacks[0].runs[0][0], SPARSE.stacks[0].runs[0][0])
    strategy = Strategy(dp=8, ep=2, recompute=recompute)

    def of(order: list[int]) -> Estimate:
        stack = StackSpec(role="decoder", runs=tuple((layers[kind], 1) for kind in order))
        return cost(replace(SPARSE, stacks=(stack,)), strategy)

    found, sorted_one = of(kinds), of(sorted(kinds))
    assert found.step_time_s == pytest.approx(sorted_one.step_time_s, rel=1e-12)
    assert found.peak_memory_bytes == pytest.approx(sorted_one.peak_memory_bytes, rel=1e-12)


@FEW
@given(splits(), st.floats(min_value=0.01, max_value=100.0), st.floats(min_value=1e8, max_value=1e13))
def test_dollars_follow_the_price_and_tokens(strategy: Strategy, price: float, tokens: float) -> None:
    """100 times the price is 100 times the bill; twice the tokens take twice the steps, but for the last one."""
    try:
        bills = [
            project(DENSE, dgx(1), Run(global_batch=32, seq_len=512), strategy, framework=FRAMEWORK, tokens=count,
                    conditions=Conditions(price_usd_per_device_hour=dollars))
            for count, dollars in ((tokens, price), (tokens, 100 * price), (2 * tokens, price))
        ]  # fmt: skip
    except InputError:
        assume(False)
    one, hundred, twice = bills
    assert hundred.usd == pytest.approx(100 * one.usd, rel=1e-12)
    assert hundred.days == one.days
    assert 0 <= 2 * one.steps - twice.steps <= 1
