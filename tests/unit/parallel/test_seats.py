"""Seats of ranks on unequal nodes, against the groups that placement gives and against counts by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.cluster.members import kinds_of
from simulator.cluster.placement import Group, all_groups
from simulator.parallel.seats import AXES, Seat, Seating, group_numbers, rank_numbers, seating
from simulator.parallel.setting import groups_of
from simulator.spec.hardware import Cluster, Device
from simulator.spec.strategy import Strategy
from tests.support import a100, dgx

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
