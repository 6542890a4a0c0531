"""What the engine is fed, put together by hand; which sizes a schedule refuses, word for word."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulator.arch.shard import Shard
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import Group
from simulator.errors import InputError
from simulator.parallel.lower import Program, Stage
from simulator.parallel.setting import Setting, groups_of
from simulator.parallel.stage_cost import StageCost
from simulator.parallel.timing import PhaseTime
from simulator.schedule.durations import durations_of, send_s, sends_block, transfers_of
from simulator.schedule.make import RECENT, check_sizes, make_order
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy
from tests.support import dgx
from tests.unit.arch.hand import kernels

CLUSTER = dgx(4)
PLAIN = Framework(name="plain", launch_s=0.5)


def _setting(strategy: Strategy, framework: Framework = PLAIN, **changes: Any) -> Setting:
    return Setting(run=Run(global_batch=8), strategy=strategy, framework=framework, cluster=CLUSTER,
                   groups=groups_of(CLUSTER, strategy), **changes)  # fmt: skip


def _phase(seconds: float, kernels_: float, experts: float = 0, **sent: float) -> PhaseTime:
    return PhaseTime(parts={"gemm": seconds, **sent}, hidden={"tp": 100.0}, kernels=kernels_, experts_kernels=experts)


ONE = StageCost(forward=_phase(1.0, 10, 1, tp=0.25, dp=0.5), input_grad=_phase(2.0, 20, 2, cp=0.125, ep=0.0625,
etp=0.5),
                weight_grad=_phase(4.0, 30, 3), recompute=_phase(8.0, 40, 4, tp=1.0))  # fmt: skip
TWO = StageCost(forward=_phase(3.0, 1), input_grad=_phase(5.0, 1), weight_grad=_phase(7.0, 1),
                               recompute=_phase(0.0, 0))  # fmt: skip


def test_tasks_take_their_device_s_seconds_and_their_host_s() -> None:
    """Recomputation opens the backward: 2 + 0.6875 + 8 + 1 s on the device, 60 launches on the host."""
    found = durations_of([ONE, TWO, ONE], _setting(Strategy(pp=3)))
    assert np.asarray(found.forward_s).tolist() == [1.75, 3, 1.75]
    assert np.asarray(found.input_grad_s).tolist() == [2.6875 + 9, 5, 2.6875 + 9]
    assert np.asarray(found.weight_grad_s).tolist() == [4, 7, 4]
    assert np.asarray(found.forward_host_s).tolist() == [5, 0.5, 5]
    assert np.asarray(found.input_grad_host_s).tolist() == [30, 0.5, 30]
    assert np.asarray(found.weight_grad_host_s).tolist() == [15, 0.5, 15]
    # Communication of tp, cp, ep and etp that shows, of B without what is recomputed.
    assert np.asarray(found.forward_comm_s).tolist() == [0.25, 0, 0.25]
    assert np.asarray(found.backward_comm_s).tolist() == [0.6875, 0, 0.6875]


def test_graphs_launch_experts_alone_and_slow_hosts_launch_slower() -> None:
    graphs = durations_of([ONE], _setting(Strategy(), replace(PLAIN, cuda_graphs=True, launch_s=5.0)))
    assert np.asarray(graphs.forward_host_s).tolist() == [5]
    assert np.asarray(graphs.input_grad_host_s).tolist() == [30]
    assert np.asarray(graphs.weight_grad_host_s).tolist() == [15]
    none = durations_of(
        [ONE], _setting(Strategy(), replace(PLAIN, cuda_graphs=True, launch_s=5.0, graphs_experts=True))
    )
    assert np.asarray(none.forward_host_s).tolist() == [0]
    eager = durations_of([ONE], _setting(Strategy(), replace(PLAIN, graphs_experts=True)))
    assert np.asarray(eager.forward_host_s).tolist() == [5]
    slow = replace(_setting(Strategy()), cluster=replace(CLUSTER, host_slowdown_factor=3.0))
    assert np.asarray(durations_of([ONE], slow).forward_host_s).tolist() == [15]


def test_a_host_that_always_runs_ahead_is_left_out() -> None:
    """Launches of 0.01 s: 0.1, 0.6 and 0.3 s of host beside 1.75, 11.7 and 4 s of device."""
    found = durations_of([ONE], _setting(Strategy(), replace(PLAIN, launch_s=0.01)))
    assert np.asarray(found.forward_host_s).tolist() == np.asarray(found.weight_grad_host_s).tolist() == [0]
    late = durations_of([ONE], _setting(Strategy(), replace(PLAIN, launch_s=0.176)))
    assert np.asarray(late.forward_host_s).tolist() == [pytest.approx(1.76)]


def test_a_host_as_slow_as_the_device_is_left_out_and_one_that_replays_all_launches_nothing() -> None:
    """10 launches of 1/8 s beside 1.25 s in every phase; replayed, none beside 1/4 s of one and 4 s of another."""
    phase = _phase(1.25, 10)
    equal = StageCost(forward=phase, input_grad=phase, weight_grad=phase, recompute=_phase(0.0, 0))
    found = durations_of([equal], _setting(Strategy(), replace(PLAIN, launch_s=0.125)))
    assert np.asarray(found.forward_host_s).tolist() == np.asarray(found.input_grad_host_s).tolist() == [0]
    short = StageCost(forward=_phase(0.25, 10), input_grad=_phase(4.0, 10), weight_grad=phase, recompute=phase)
    replayed = durations_of([short], _setting(Strategy(), replace(PLAIN, cuda_graphs=True, graphs_experts=True)))
    for name in ("forward_host_s", "input_grad_host_s", "weight_grad_host_s"):
        assert np.asarray(getattr(replayed, name)).tolist() == [0]


@pytest.mark.parametrize(("schedule", "overlap", "blocks"), [("1f1b", True, True), ("gpipe", True, True),
                                                             ("interleaved", True, False), ("zb-h1", True, False),
                                                             ("interleaved", False, True)])  # fmt: skip
def test_plain_schedules_wait_for_their_sends(schedule: str, overlap: bool, blocks: bool) -> None:
    software = replace(PLAIN, overlap_p2p=overlap)
    assert sends_block(schedule, software) is blocks
    vp = 2 if schedule == "interleaved" else 1
    setting = _setting(Strategy(pp=2, vp=vp, schedule=schedule), software)
    assert durations_of([ONE], setting).host_waits is blocks
    assert transfers_of(_program(1e6, 0.0), setting).blocking is blocks


def _program(*boundaries: float) -> Program:
    stages = tuple(Stage(index=i, parts=(), boundary_bytes=moved) for i, moved in enumerate(boundaries))
    return Program(
        stages=stages, segments=(), kernels=kernels(), shard=Shard(micro_batch=1, seq_len=1), micro_batches=8
    )


def test_sends_carry_an_activation_or_its_share_and_a_gather() -> None:
    strategy = Strategy(tp=4, pp=3, dp=2)
    groups = groups_of(CLUSTER, strategy)
    program = _program(64e6, 16e6, 0.0)
    whole = [float(collective_time_s(CLUSTER, "send", moved, groups["pp"])) for moved in (64e6, 16e6)]
    found = transfers_of(program, _setting(strategy))
    assert list(found.forward_s) == list(found.backward_s) == pytest.approx(whole)
    split = transfers_of(program, _setting(replace(strategy, sequence_parallel=False)))
    shares = [
        float(
            collective_time_s(CLUSTER, "send", moved / 4, groups["pp"])
            + collective_time_s(CLUSTER, "all_gather", moved, Group(4))
        )
        for moved in (64e6, 16e6)
    ]
    assert list(split.forward_s) == list(split.backward_s) == pytest.approx(shares)
    kept = transfers_of(program, _setting(replace(strategy, sequence_parallel=False),
                                          replace(PLAIN, scatter_gather_p2p=False)))  # fmt: skip
    assert list(kept.forward_s) == pytest.approx(whole)
    none = transfers_of(_program(64e6), _setting(Strategy()))
    assert (none.forward_s, none.backward_s, none.blocking) == (0.0, 0.0, False)


def test_sends_and_gathers_run_on_the_links_that_their_groups_feel() -> None:
    strategy = Strategy(tp=4, pp=2, dp=4)
    groups = groups_of(CLUSTER, strategy)
    slow = replace(CLUSTER, tiers=tuple(replace(tier, bandwidth_bytes_per_s=1e9) for tier in CLUSTER.tiers))
    sends, gathers = (
        (float(collective_time_s(cluster, "send", 16e6, groups["pp"])) for cluster in (CLUSTER, slow)),
        (float(collective_time_s(cluster, "all_gather", 64e6, Group(4))) for cluster in (CLUSTER, slow)),
    )
    (send, slow_send), (gather, slow_gather) = tuple(sends), tuple(gathers)
    assert send_s(64e6, _setting(strategy, links={"pp": slow}), split=True) == pytest.approx(slow_send + gather)
    assert send_s(64e6, _setting(strategy, links={"tp": slow}), split=True) == pytest.approx(send + slow_gather)


@pytest.mark.parametrize(
    ("schedule", "sizes", "where", "message", "hint"),
    [
        ("1f1b", {"pp": 0}, "--pp", "pp(0) must be at least 1", ""),
        ("1f1b", {"micro_batches": 0}, "micro_batches", "micro_batches(0) must be at least 1", ""),
        ("1f1b", {"group_size": 4}, "group_size", "1f1b has no group size (4 given)", ""),
        ("1f1b", {"vp": 2}, "--vp", "1f1b has one stage per rank, got vp(2)", "Use vp = 1."),
        ("interleaved-bfs", {}, "--vp", "interleaved-bfs needs vp >= 2, got vp(1)", "Use 1f1b for vp = 1."),
        ("zbv", {"vp": 3}, "--vp", "zbv needs vp = 2 (the V), got vp(3)", "Use vp = 2."),
        ("zb-h1", {"vp": 0}, "--vp", "zb-h1 needs vp >= 1, got vp(0)", ""),
        ("interleaved", {"pp": 1, "vp": 2}, "--pp", "interleaved with vp(2) needs pp >= 2, got pp(1)", ""),
        ("chimera", {"pp": 3, "micro_batches": 6}, "--pp", "chimera runs both ways and needs an even pp, got pp(3)",
         ""),
        ("chimera", {"micro_batches": 6}, "micro_batches",
         "chimera needs whole units of pp: micro_batches(6) mod pp(4) = 2", ""),
        ("dualpipe", {"micro_batches": 6}, "micro_batches", "dualpipe needs micro_batches(6) >= 2 pp(8)", ""),
        ("dualpipe", {"micro_batches": 9}, "micro_batches", "dualpipe needs an even micro_batches(9)", ""),
        ("interleaved", {"vp": 2, "group_size": 2}, "group_size",
         "interleaved needs pp(4) <= group_size(2) <= micro_batches(8)",
         "Use a group_size of 4 and at least 4 micro-batches."),
        ("interleaved", {"vp": 2, "group_size": 9}, "group_size",
         "interleaved needs pp(4) <= group_size(9) <= micro_batches(8)",
         "Use a group_size of 9 and at least 9 micro-batches."),
        ("interleaved", {"vp": 2, "micro_batches": 10}, "micro_batches",
         "micro_batches(10) mod group_size(4) = 2 must be 0 or at least pp(4)", "Use 8 or 12 micro-batches."),
        ("zb-h1", {"vp": 2, "micro_batches": 10}, "micro_batches",
         "micro_batches(10) mod group_size(4) = 2 must be 0 or at least pp(4)", "Use 8 or 12 micro-batches."),
    ],
)  # fmt: skip
def test_sizes_that_a_schedule_cannot_run_are_refused_word_for_word(
    schedule: str, sizes: dict[str, int], where: str, message: str, hint: str
) -> None:
    with pytest.raises(InputError) as refused:
        check_sizes(schedule, **{"pp": 4, "micro_batches": 8, **sizes})
    found = [(problem.where, problem.message, problem.hint) for problem in refused.value.problems]
    assert (where, message, hint) in found
    assert len(found) == 1


def test_sizes_at_the_edge_are_run() -> None:
    for schedule, sizes in (("1f1b", {"pp": 1, "micro_batches": 1}), ("dualpipe", {"micro_batches": 8}),
                            ("interleaved", {"vp": 2, "micro_batches": 4}), ("zb-h1", {"micro_batches": 1}),
                            ("interleaved", {"vp": 2, "micro_batches": 12, "group_size": 8}),
                            ("zb-h1", {"vp": 2}), ("chimera", {"pp": 2, "micro_batches": 2})):  # fmt: skip
        check_sizes(schedule, **{"pp": 4, "micro_batches": 8, **sizes})


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "zb-h1", "chimera"])
def test_only_some_schedules_pair_forwards_with_backwards(schedule: str) -> None:
    with pytest.raises(InputError, match=f"{schedule} cannot pair forwards with backwards"):
        make_order(schedule, pp=2, micro_batches=4, paired=True)


def test_paired_orders_and_the_orders_kept() -> None:
    assert make_order("dualpipe", pp=2, micro_batches=4, paired=True).paired.any()
    assert make_order("dualpipev", pp=2, vp=2, micro_batches=4, paired=True).paired.any()
    assert make_order("interleaved", pp=2, vp=2, micro_batches=4, paired=True).paired.any()
    assert not make_order("interleaved", pp=2, vp=2, micro_batches=4).paired.any()
    order = make_order("1f1b", pp=2, micro_batches=5)
    assert make_order("1f1b", pp=2, micro_batches=5) is order
    RECENT.clear()
    assert make_order("1f1b", pp=2, micro_batches=5) is not order


def test_orders_are_forgotten_oldest_first_beyond_a_number_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """1F1B on one rank: two tasks a micro-batch. Of 60 tasks, the last 50 stay; one order alone always stays."""
    RECENT.clear()
    monkeypatch.setattr(RECENT, "most_tasks", 50)
    orders = [make_order("1f1b", pp=1, micro_batches=count) for count in (5, 10, 15)]
    assert RECENT.tasks == 50
    assert make_order("1f1b", pp=1, micro_batches=10) is orders[1]
    assert make_order("1f1b", pp=1, micro_batches=5) is not orders[0]
    # The third was used longest ago now.
    assert [key[2] for key in RECENT.orders] == [10, 5]
    large = make_order("1f1b", pp=1, micro_batches=100)
    assert make_order("1f1b", pp=1, micro_batches=100) is large
    assert RECENT.tasks == 200
    RECENT.clear()
    assert (RECENT.tasks, len(RECENT.orders)) == (0, 0)
