"""Jittered steps: which rank of which pipeline is slowed in which step, and what the step then takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.schedule import jitter as module
from simulator.schedule.engine import Durations, Transfers, simulate
from simulator.schedule.jitter import Jitter, StepTimes, jittered_steps
from simulator.schedule.make import make_order

# With one micro-batch the ranks work one after the other: the digits of a step time are the ranks' factors.
ONE = make_order("1f1b", pp=3, micro_batches=1)
DIGITS = Durations(forward_s=[0.25, 2.5, 25.0], input_grad_s=[0.75, 7.5, 75.0])


def test_the_same_share_of_ranks_is_slow_in_every_step() -> None:
    """0.4 of 2 pipelines of 3 ranks: 2.4 ranks, so 2; three times slower."""
    times = jittered_steps(ONE, DIGITS, jitter=Jitter(stragglers=0.4, straggler_factor=3.0, seed=7), steps=4,
                           replicas=2).alone_s  # fmt: skip
    assert times.shape == (4, 2)
    assert (times == times[0]).all()
    digits = [digit for seconds in times[0].tolist() for digit in str(int(seconds)).zfill(3)]
    assert sorted(digits) == ["1", "1", "1", "1", "3", "3"]
    drawn = {tuple(jittered_steps(ONE, DIGITS, jitter=Jitter(stragglers=0.17, straggler_factor=2.0, seed=seed),
                                  steps=1, replicas=2).alone_s[0].tolist()) for seed in range(60)}  # fmt: skip
    # Any one of the six, by the seed.
    one = {111 + 10**rank for rank in range(3)}
    assert drawn == {(slow, 111) for slow in one} | {(111, slow) for slow in one}


def test_none_and_all_may_be_slow() -> None:
    for share, seconds in ((0.0, 111), (1.0, 222), (0.16, 111)):
        jitter = Jitter(stragglers=share, straggler_factor=2.0)
        assert jittered_steps(ONE, DIGITS, jitter=jitter, steps=1).alone_s.tolist() == [[seconds]]


def test_a_straggler_is_slower_than_it_was_drawn() -> None:
    """All ranks twice as slow in every step: steps that differ take twice as long each."""
    drawn = jittered_steps(ONE, DIGITS, jitter=Jitter(sigma=0.5, seed=2), steps=3).alone_s
    slow = jittered_steps(ONE, DIGITS, jitter=Jitter(sigma=0.5, seed=2, stragglers=1.0, straggler_factor=2.0), steps=3)
    assert len(set(drawn[:, 0].tolist())) == 3
    assert slow.alone_s.tolist() == (2 * drawn).tolist()


@pytest.mark.parametrize("distribution", ["lognormal", "normal"])
@pytest.mark.parametrize("blocking", [False, True])
def test_each_step_of_each_pipeline_is_the_engine_with_its_ranks_slowed(distribution: str, blocking: bool) -> None:
    """Factors exp(sigma z) or 1 + sigma |z|, drawn step by step, in it pipeline by pipeline, in it rank by rank."""
    order = make_order("1f1b", pp=3, micro_batches=4)
    forward, back = np.array([1.0, 2.0, 3.0]), np.array([2.0, 5.0, 3.0])
    moves = Transfers(forward_s=[0.0, 2.0], backward_s=[0.5, 0.0], latency_s=[3.0, 0.0], blocking=blocking)
    z = np.random.default_rng(11).standard_normal(2 * 4 * 3).reshape(2, 4, 3)
    jitter = Jitter(distribution=distribution, sigma=0.25, seed=11)
    durations = Durations(forward_s=forward, input_grad_s=back)
    times = jittered_steps(order, durations, moves, jitter=jitter, steps=2, replicas=4)
    for step in range(2):
        for replica in range(4):
            factor = np.exp(z[step, replica] / 4) if distribution == "lognormal" else 1 + abs(z[step, replica]) / 4
            alone = simulate(order, Durations(forward_s=forward * factor, input_grad_s=back * factor), moves)
            assert times.alone_s[step, replica] == pytest.approx(alone.makespan_s, rel=1e-12)


@pytest.mark.parametrize(("name", "vp"), [("zbv", 2), ("dualpipe", 1), ("interleaved", 2), ("chimera", 1)])
@pytest.mark.parametrize("blocking", [False, True])
def test_without_jitter_any_order_takes_what_the_engine_says(name: str, vp: int, blocking: bool) -> None:
    order = make_order(name, pp=4, vp=vp, micro_batches=8)
    draw = np.random.default_rng(3)
    durations = Durations(**dict(zip(("forward_s", "input_grad_s", "weight_grad_s"),
                                     draw.integers(1, 9, (3, order.stages)).astype(float), strict=True)))  # fmt: skip
    for columns in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)):
        sends = draw.integers(0, 4, (3, order.stages - 1)) * np.array(columns)[:, None]
        moves = Transfers(**dict(zip(("forward_s", "backward_s", "latency_s"), sends.astype(float), strict=True)),
                          blocking=blocking)  # fmt: skip
        found = jittered_steps(order, durations, moves, jitter=Jitter(), steps=1)
        assert found.alone_s.tolist() == [[simulate(order, durations, moves).makespan_s]]


def test_steps_are_evaluated_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    whole = jittered_steps(ONE, DIGITS, jitter=Jitter(sigma=0.5), steps=5).alone_s
    makespans = module._makespans

    def counted(*given: Any) -> Any:
        seen.append(len(given[-1]))
        return makespans(*given)

    monkeypatch.setattr(module, "_makespans", counted)
    # Six tasks a run: two runs are 12 numbers, and one is run though it is more than 5.
    for most, lengths in ((12, [2, 2, 1]), (17, [2, 2, 1]), (18, [3, 2]), (5, [1] * 5), (10_000_000, [5])):
        seen.clear()
        monkeypatch.setattr(module, "_FLOATS_AT_ONCE", most)
        assert jittered_steps(ONE, DIGITS, jitter=Jitter(sigma=0.5), steps=5).alone_s.tolist() == whole.tolist()
        assert seen == lengths


def test_pipelines_wait_for_the_slowest_of_each_step() -> None:
    times = StepTimes(alone_s=np.array([[1.0, 3.0], [5.0, 2.0], [4.0, 4.0]]))
    assert times.together_s.tolist() == [3, 5, 4]
    assert times.sync_cost_s == 4 - 19 / 6
    assert [times.quantile_s(share) for share in (0.0, 0.25, 0.5, 1.0)] == [3, 3.5, 4, 5]


@pytest.mark.parametrize(
    "given", [{"distribution": "cauchy"}, {"sigma": -0.125}, {"stragglers": -0.125}, {"stragglers": 1.125}]
)
def test_each_impossible_number_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="jitter must be lognormal or normal with sigma >= 0 and 0 <= stragglers <= 1"):
        jittered_steps(ONE, DIGITS, jitter=Jitter(**given), steps=1)
