"""Relations that every estimate keeps: sums, signs, limits, and what more of a resource may do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.estimate import estimate
from simulator.result import Estimate
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import SCHEDULES, Strategy
from tests.support import a100, dgx, gpt, mixture

FRAMEWORK = Framework(name="plain", overlap_grad_reduce=True, overlap_param_gather=True)
TWO_CHUNKS = ("interleaved", "interleaved-bfs", "zbv", "v-half", "v-min", "dualpipev")
DENSE, MIXTURE = gpt(1024, 16, 16), mixture(layers=16)


def cost(model: ModelSpec, strategy: Strategy, *, cluster: Cluster | None = None, **run: object) -> Estimate:
    options = {"global_batch": 64, "seq_len": 1024, **run}
    return estimate(model, cluster or dgx(1), Run(**options), strategy, framework=FRAMEWORK)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("model", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_parts_are_never_negative_and_sum_to_their_totals(model: ModelSpec, schedule: str) -> None:
    ep = 2 if model.mixture else 1
    strategy = Strategy(tp=1, pp=4, dp=2, ep=ep, vp=2 if schedule in TWO_CHUNKS else 1, schedule=schedule)
    answer = cost(model, strategy)
    assert all(seconds >= 0.0 for seconds in answer.time.parts.values())
    assert all(seconds >= 0.0 for seconds in answer.time.hidden.values())
    assert sum(answer.time.parts.values()) == pytest.approx(answer.step_time_s, rel=1e-12)
    for rank in answer.memory.per_stage:
        parts = [value for name, value in rank.items() if name != "total"]
        assert all(value >= 0.0 for value in parts)
        assert sum(parts) == pytest.approx(rank["total"], rel=1e-12)
    assert answer.bracket_s[0] <= answer.step_time_s <= answer.bracket_s[1]


STRATEGIES = [
    Strategy(dp=8),
    Strategy(dp=8, zero=3),
    Strategy(tp=4, dp=2, zero=1),
    Strategy(tp=2, pp=2, dp=2, recompute="full"),
    Strategy(tp=2, cp=2, pp=2, vp=2, schedule="interleaved", recompute="selective"),
]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("model", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_more_of_any_resource_is_never_slower(model: ModelSpec, strategy: Strategy) -> None:
    base = cost(model, strategy).step_time_s
    device = a100()
    faster = [
        replace(device, peak_flops_per_s={name: 2 * peak for name, peak in device.peak_flops_per_s.items()}),
        replace(device, memory_bandwidth_bytes_per_s=2 * device.memory_bandwidth_bytes_per_s),
    ]
    for better in faster:
        assert cost(model, strategy, cluster=dgx(1, better)).step_time_s <= base * (1 + 1e-12)
    cluster = dgx(1)
    wide = replace(cluster, tiers=tuple(
        replace(tier, bandwidth_bytes_per_s=2 * tier.bandwidth_bytes_per_s) for tier in cluster.tiers
    ))  # fmt: skip
    assert cost(model, strategy, cluster=wide).step_time_s <= base * (1 + 1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_more_work_is_never_faster(strategy: Strategy) -> None:
    base = cost(DENSE, strategy).step_time_s
    assert cost(gpt(1024, 32, 16), strategy).step_time_s > base
    assert cost(DENSE, strategy, global_batch=128).step_time_s > base
    assert cost(DENSE, strategy, seq_len=2048).step_time_s > base
    assert cost(gpt(1024, 16, 16, vocab=128_000), strategy).step_time_s > base


def test_recomputation_trades_flops_for_activations() -> None:
    none, selective, full = (
        cost(DENSE, Strategy(dp=8, recompute=kind), attention="unfused") for kind in ("none", "selective", "full")
    )
    assert none.hfu * none.step_time_s < selective.hfu * selective.step_time_s < full.hfu * full.step_time_s
    assert none.memory.parts["activations"] > selective.memory.parts["activations"] > full.memory.parts["activations"]
    assert none.model_flops_per_step == full.model_flops_per_step


def test_a_higher_zero_stage_never_holds_more_states() -> None:
    held = []
    for zero in (0, 1, 2, 3):
        parts = cost(DENSE, Strategy(dp=8, zero=zero)).memory.parts
        held.append(parts["weights"] + parts["gradients"] + parts["optimizer"])
    assert held == sorted(held, reverse=True)
    assert held[3] == pytest.approx(held[0] / 8, rel=1e-12)


def test_tokens_and_flops_do_not_depend_on_the_split() -> None:
    answers = [cost(DENSE, strategy) for strategy in STRATEGIES]
    assert len({answer.model_flops_per_step for answer in answers}) == 1
    for answer in answers:
        assert answer.tokens_per_s * answer.step_time_s == pytest.approx(64 * 1024, rel=1e-12)


def test_the_same_question_has_the_same_answer() -> None:
    strategy = Strategy(tp=2, pp=2, dp=2, zero=1)
    assert cost(MIXTURE, strategy).to_dict() == cost(MIXTURE, strategy).to_dict()


@pytest.mark.parametrize("split", [False, True], ids=["replicated", "sequence-parallel"])
@pytest.mark.parametrize(("tp", "ep", "etp"), [(1, 2, 1), (1, 1, 4), (2, 1, 8), (4, 2, 4), (8, 1, 8), (4, 1, 2)])
def test_no_work_of_the_model_goes_missing(tp: int, ep: int, etp: int, *, split: bool) -> None:
    """However experts are laid out, the devices together execute at least the model's FLOPs (PaLM's MFU <= HFU)."""
    strategy = Strategy(tp=tp, dp=8 // tp, ep=ep, etp=etp, sequence_parallel=split)
    answer = cost(MIXTURE, strategy)
    assert answer.hfu >= answer.mfu * (1 - 1e-9)
    if tp == 1:
        other = replace(strategy, sequence_parallel=not split)
        assert answer.step_time_s == cost(MIXTURE, other).step_time_s
