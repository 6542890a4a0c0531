"""Seats of ranks on unequal nodes, against the groups that placement gives and against counts by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.cluster.members import kinds_of
from simulator.cluster.placement import Group, all_groups
from simulator.parallel.seats import (
    AXES,
    Seat,
    Seating,
    _seats,
    group_numbers,
    rank_numbers,
    seating,
    send_setting,
    setting_of,
)
from simulator.parallel.setting import groups_of
from simulator.spec.hardware import Cluster, Device
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy
from tests.support import a100, dgx

RUN, SOFTWARE = Run(global_batch=64), Framework(name="plain")
SLOW, FAST = a100(), replace(a100(), name="fast", peak_flops_per_s={"bf16": 2.0 * a100().peak_flops_per_s["bf16"]})


def nodes(*devices: Device, gbps: tuple[float, ...] = (), cards: tuple[float, ...] = ()) -> Cluster:
    """DGX nodes of these devices, with these rates inside and to the network [GB/s]."""
    base = dgx(len(devices))
    return replace(
        base,
        node_devices=devices,
        node_tiers=tuple(replace(base.tiers[0], bandwidth_bytes_per_s=1e9 * rate) for rate in gbps),
        node_uplinks=tuple(replace(base.tiers[1], bandwidth_bytes_per_s=1e9 * rate) for rate in cards),
    )


def seated(cluster: Cluster, *, tied: tuple[str, ...] = (), **degrees: object) -> Seating:
    return seating(cluster, Strategy(**degrees), tied=tied)


@pytest.mark.parametrize(
    "order", [("tp", "cp", "ep", "dp", "pp"), ("tp", "cp", "ep", "pp", "dp"), ("tp", "pp", "cp", "ep", "dp")]
)
@pytest.mark.parametrize(
    "degrees",
    [
        {"tp": 4, "pp": 2, "dp": 4},
        {"tp": 2, "cp": 2, "pp": 2, "dp": 4, "ep": 4},
        {"tp": 2, "pp": 2, "dp": 8, "ep": 4, "etp": 2, "shard_group": 4},
    ],
)
def test_group_numbers_are_those_of_placement(order: tuple[str, ...], degrees: dict[str, int]) -> None:
    """Two ranks share a number exactly where a communication group of `groups_of` holds both."""
    strategy = Strategy(order=order, **degrees)
    groups = groups_of(dgx(4), strategy)
    numbers = group_numbers(strategy)
    for axis in AXES:
        if axis in ("shard", "replicas") and order.index("dp") != order.index("cp") + 1 + ("ep" in order[:4]):
            continue
        expected = {frozenset(ranks) for ranks in all_groups(_whole(groups[axis]), strategy.devices)}
        found = {frozenset(np.flatnonzero(numbers[axis] == one).tolist()) for one in np.unique(numbers[axis])}
        assert found == expected, axis


def _whole(group: Group) -> Group:
    return Group(*(int(part) for part in (group.size, group.stride, group.blocks, group.block_stride)))


def test_rank_numbers_follow_the_order() -> None:
    number = rank_numbers(Strategy(tp=2, pp=2, dp=2, order=("tp", "cp", "ep", "pp", "dp")))
    assert number["tp"].tolist() == [0, 1] * 4
    assert number["pp"].tolist() == [0, 0, 1, 1] * 2
    assert number["dp"].tolist() == [0] * 4 + [1] * 4


def test_each_stage_sits_on_its_own_nodes() -> None:
    found = seated(nodes(FAST, FAST, SLOW, SLOW), tp=8, pp=4)
    assert [found.members(rank)[0].device.name for rank in range(4)] == ["fast", "fast", SLOW.name, SLOW.name]
    assert found.nodes == ((0,), (1,), (2,), (3,))
    assert len(found.replicas) == 1
    assert all(len(seats) == 1 for seats in found.replicas[0])


def test_replicas_apart_are_told_apart_and_only_the_reduction_meets_the_slow_one() -> None:
    """dp over nodes: one replica per node, alike in pairs; tp stays inside, dp_cp feels the slow node's links."""
    found = seated(nodes(FAST, SLOW, FAST, SLOW, gbps=(300, 100, 300, 100)), tp=8, dp=4)
    assert len(found.replicas) == 2
    for ((seat,),) in found.replicas:
        axis = dict(zip(AXES, seat.inside, strict=True))
        assert axis["tp"] == axis["cp"] == axis["ep"] == seat.node
        assert axis["dp_cp"] == axis["edp"] == axis["shard"] == 0


def test_expert_groups_and_sharded_parameters_tie_replicas() -> None:
    """ep 2 spans the two replicas of a pair of nodes; ZeRO-3 spans all; HSDP only its own shard group."""
    cluster = nodes(FAST, SLOW, FAST, FAST)
    assert len(seated(cluster, tp=8, dp=4).replicas) == 2
    pairs = seated(cluster, tp=8, dp=4, ep=16)
    assert sorted(_kinds(replica[0]) for replica in pairs.replicas) == [1, 2]
    whole = seated(cluster, tp=8, dp=4, tied=("shard",))
    assert len(whole.replicas) == 1
    shards = seated(cluster, tp=8, dp=4, shard_group=2, tied=("shard",))
    assert sorted(_kinds(replica[0]) for replica in shards.replicas) == [1, 2]
    # Experts are sharded over all their replicas, beyond the shard group.
    assert len(seated(cluster, tp=8, dp=4, ep=8, shard_group=2, tied=("shard", "edp")).replicas) == 1


def _kinds(seats: tuple[Seat, ...]) -> int:
    return len({seat.node for seat in seats})


def test_links_inside_and_to_the_network_are_told_apart() -> None:
    """A node with the faster network card and the slower switch: a group that spans both feels the slower of each."""
    found = seated(nodes(SLOW, SLOW, gbps=(100, 300), cards=(50, 25)), tp=16)
    (seats,) = found.replicas[0]
    kinds = found.kinds
    assert [member.tier.bandwidth_bytes_per_s for member in kinds.members] == [100e9, 300e9]
    for seat in seats:
        assert kinds.members[seat.inside[0]].tier.bandwidth_bytes_per_s == 100e9
        assert (kinds.members[seat.uplinks[0]].uplink or found.kinds.cluster.tiers[1]).bandwidth_bytes_per_s == 25e9


def test_a_rank_file_moves_ranks_between_kinds() -> None:
    moved = tuple(range(8, 16)) + tuple(range(8))
    plain, dealt = nodes(FAST, SLOW), replace(nodes(FAST, SLOW), rank_devices=moved)
    assert [member.device.name for member in seated(plain, tp=8, pp=2).members(0)] == ["fast"]
    assert [member.device.name for member in seated(dealt, tp=8, pp=2).members(0)] == [SLOW.name]


def test_kinds_do_not_depend_on_numbers_of_nodes() -> None:
    one, other = kinds_of(nodes(FAST, SLOW, FAST)), kinds_of(nodes(SLOW, FAST, FAST))
    assert [m.device for m in one.members] == [m.device for m in other.members] == [SLOW, FAST]
    assert one.of_node.tolist() == [1, 0, 1]
    assert other.of_node.tolist() == [0, 1, 1]
    assert one.felt(0, 1, 0) is one.felt(0, 1, 0)


UNLIKE = nodes(SLOW, SLOW, gbps=(100, 300), cards=(50, 25))
"""Kind 0 has the slower switch, kind 1 the slower cards."""


def test_a_seat_says_of_every_axis_whose_links_its_group_feels() -> None:
    """One tensor group over both nodes, and as many replicas of what experts there were; all other groups are single
    ranks, on their own node's links. By axis: tp, cp, ep, etp, dp_cp, edp, shard, replicas.
    """
    found = seated(UNLIKE, tp=16)
    here = Seat(0, inside=(0, 0, 0, 0, 0, 0, 0, 0), uplinks=(1, 0, 0, 0, 0, 1, 0, 0))
    there = Seat(1, inside=(0, 1, 1, 1, 1, 0, 1, 1), uplinks=(1, 1, 1, 1, 1, 1, 1, 1))
    assert found.seats(0) == (here, there)
    assert found.replicas == (((here, there),),)


def test_the_setting_of_a_seat_has_other_links_for_the_axes_that_reach_further() -> None:
    strategy = Strategy(tp=16)
    kinds = seating(UNLIKE, strategy).kinds
    here, there = seating(UNLIKE, strategy).seats(0)
    for seat, rates in ((here, (100e9, 50e9)), (there, (300e9, 25e9))):
        found = setting_of(seat, kinds, RUN, strategy, SOFTWARE)
        assert (found.run, found.strategy, found.framework) == (RUN, strategy, SOFTWARE)
        assert (_rates(found.cluster), found.groups) == (rates, groups_of(found.cluster, strategy))
        assert {axis: _rates(felt) for axis, felt in found.links.items()} == {"tp": (100e9, 25e9), "edp": (100e9, 25e9)}


def test_a_send_feels_the_slower_switch_and_the_slower_card_of_its_ends() -> None:
    strategy = Strategy(tp=16)
    kinds = seating(UNLIKE, strategy).kinds
    here, there = seating(UNLIKE, strategy).seats(0)
    setting = setting_of(there, kinds, RUN, strategy, SOFTWARE)
    for one, other, rates in (
        (here, there, (100e9, 25e9)), (there, here, (100e9, 25e9)), (here, here, (100e9, 50e9)),
        (there, there, (300e9, 25e9)),
    ):  # fmt: skip
        found = send_setting(setting, kinds, [one], [other])
        assert _rates(found.links["pp"]) == rates
        assert {axis: felt for axis, felt in found.links.items() if axis != "pp"} == setting.links
        assert replace(found, links=setting.links) == setting


def _rates(cluster: Cluster) -> tuple[float, ...]:
    assert not cluster.node_tiers
    assert not cluster.node_uplinks
    return tuple(tier.bandwidth_bytes_per_s for tier in cluster.tiers)


def test_every_rank_finds_its_own_seat_among_the_distinct_ones() -> None:
    """Of kinds 3, 1, 3 and 0, whose groups feel 0, 1, 0 and 0 inside, and 2, 2, 2 and 5 outside."""
    kind, inside, uplink = (np.array(column) for column in ((3, 1, 3, 0), (0, 1, 0, 0), (2, 2, 2, 5)))
    place, seats = _seats(kind, [inside], [uplink])
    assert [seats[at] for at in place] == [
        Seat(3, (0,), (2,)), Seat(1, (1,), (2,)), Seat(3, (0,), (2,)), Seat(0, (0,), (5,))]  # fmt: skip
    assert len(seats) == 3


def test_a_rank_s_members_are_its_own_first_nodes_and_its_limit_their_smallest() -> None:
    small = replace(SLOW, name="small", memory_bytes=40 * 2.0**30)
    found = seated(nodes(FAST, small, small, FAST, FAST, FAST), tp=8, dp=3, pp=2)
    assert [(member.node, member.device.name) for member in found.members(0)] == [(1, "small"), (0, "fast")]
    assert [(member.node, member.device.name) for member in found.members(1)] == [(3, "fast")]
    assert [found.limit_bytes(rank) for rank in (0, 1)] == [40 * 2.0**30, 80 * 2.0**30]
