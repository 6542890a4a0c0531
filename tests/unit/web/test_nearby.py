"""What one step of a dial takes at least: never above its estimate, and close to it, for any model and schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simulator.errors import InputError
from simulator.estimate import estimate
from simulator.result import Estimate
from simulator.web.nearby import bounds, neighbours
from simulator.web.state import START, Case, read_case

SMALL: dict[str, Any] = {
    "model": "gpt3-6.7b", "cluster": "dgx-a100", "nodes": 2, "global_batch": 64, "tp": 2, "pp": 2, "seq_len": 2048,
}  # fmt: skip
MIXTURE = {**SMALL, "model": "mixtral-8x7b", "seq_len": 4096, "nodes": 4, "tp": 2, "ep": 4}


def simulated(case: Case) -> Estimate:
    return estimate(case.model, case.cluster, case.run, case.strategy, framework=case.framework)


@pytest.mark.parametrize(
    "state",
    [
        {**SMALL, "pp": 4, "schedule": "zb-h1", "zero": 1},
        {**SMALL, "schedule": "zbv", "vp": 2},
        {**SMALL, "pp": 4, "schedule": "dualpipe"},
        {**SMALL, "pp": 1, "framework": "torch-fsdp", "zero": 3},
        {**SMALL, "cp": 2, "recompute": "full", "sequence_parallel": False},
        {**MIXTURE, "pp": 4},
        {**MIXTURE, "model": "deepseek-v3", "nodes": 32, "global_batch": 512, "tp": 1, "pp": 8, "ep": 32},
        {**SMALL, "model": "t5-11b", "seq_len": 512, "pp": 1},
        {**SMALL, "model": "bert-large", "seq_len": 512, "tp": 1, "pp": 1},
        {**SMALL, "model": "moe-32", "cluster": "k40-server", "seq_len": 20, "precision": "fp32", "tp": 1, "pp": 1},
    ],
    ids=["zb-h1", "zbv", "dualpipe", "fsdp", "context", "mixture", "deepseek", "t5", "bert", "lstm"],
)
def test_a_bound_is_below_its_estimate_and_close(state: dict[str, Any]) -> None:
    case = read_case(state)
    near = neighbours(case, state)
    found = bounds(case, near)
    assert len(found) == len(near) > 2
    for each, bound in zip(near, found, strict=True):
        answer = simulated(each.case)
        # What a device waits for its host's launches is in no bound.
        work_s, held_bytes = answer.step_time_s - answer.time.parts.get("host", 0.0), answer.peak_memory_bytes
        assert 0.7 * work_s < bound.step_time_s <= answer.step_time_s * (1 + 1e-9), each.label
        assert 0.7 * held_bytes < bound.peak_bytes <= held_bytes * (1 + 1e-9), each.label


def test_a_plain_pipeline_is_bounded_to_a_percent() -> None:
    case = read_case(START)
    near = neighbours(case, START)
    for each, bound in zip(near, bounds(case, near), strict=True):
        answer = simulated(each.case)
        step_s, held_bytes = answer.step_time_s, answer.peak_memory_bytes
        assert (bound.step_time_s, bound.peak_bytes) == pytest.approx((step_s, held_bytes), rel=0.02), each.label


def test_a_neighbour_differs_in_one_dial_and_can_run() -> None:
    case = read_case(SMALL)
    near = neighbours(case, SMALL)
    assert {"tp": 4} in [each.change for each in near]
    assert {"vp": 2, "schedule": "interleaved"} in [each.change for each in near]
    assert not [each for each in near if each.change.get("ep", 1) > 1]
    for each in near:
        assert each.case == read_case({**SMALL, **each.change})
        assert simulated(each.case).step_time_s > 0


def test_what_cannot_run_is_no_neighbour() -> None:
    # 12 micro-batches do not come in groups of 8 ranks, as 24 do.
    state = {**START, "global_batch": 384}
    with pytest.raises(InputError, match="micro_batches"):
        simulated(read_case({**state, "micro_batch": 2}))
    changes = [each.change for each in neighbours(read_case(state), state)]
    assert {"micro_batch": 2} not in changes
    assert {"recompute": "full"} in changes


def test_recomputing_some_layers_only_is_not_bounded() -> None:
    state = {**SMALL, "recompute": "full", "recompute_layers": 4}
    case = read_case(state)
    assert bounds(case, neighbours(case, state)) == []


def test_unequal_nodes_are_not_bounded() -> None:
    case = read_case(SMALL)
    slow = replace(case.cluster.device, memory_bytes=40 * 2.0**30)
    unequal = replace(case, cluster=replace(case.cluster, node_devices=(slow, case.cluster.device)))
    assert bounds(unequal, neighbours(case, SMALL)) == []
