"""Who sits where in a cluster of unequal nodes: the node of every rank, and the slowest member of each of its groups.

A collective ends for all members of its group together, so a group runs at its slowest member. Replicas that share no
collective until the gradients are reduced run each at their own pace; expert groups, and ZeRO's collectives of every
micro-batch, tie the replicas they span.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from simulator.cluster.members import Kinds, Member, kinds_of
from simulator.parallel.setting import Setting, groups_of
from simulator.spec.hardware import Cluster
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy

Ints = npt.NDArray[np.int64]
AXES = ("tp", "cp", "ep", "etp", "dp_cp", "edp", "shard", "replicas")
"""Axes whose groups lie within one pipeline rank."""


@dataclass(frozen=True, slots=True, order=True)
class Seat:
    """What a rank computes on and communicates over, as kinds of nodes (`Kinds.members`)."""

    node: int
    inside: tuple[int, ...]
    """By axis of `AXES` the kind with the slowest links inside nodes among the members of the rank's group."""
    uplinks: tuple[int, ...]
    """Likewise the kind with the slowest links to the network."""


Replica = tuple[tuple[Seat, ...], ...]
"""By pipeline rank, the distinct seats of replicas that run in step with each other."""


@dataclass(frozen=True, slots=True)
class Seating:
    """The seats of a strategy."""

    kinds: Kinds
    replicas: tuple[Replica, ...]
    """Distinct ones only; in an order that does not depend on how nodes are numbered."""
    nodes: tuple[tuple[int, ...], ...]
    """By pipeline rank, the nodes that hold its ranks."""

    def members(self, rank: int) -> tuple[Member, ...]:
        """The first node of each kind among those of a pipeline rank, slowest links first."""
        first: dict[int, Member] = {}
        for node in self.nodes[rank]:
            kind = int(self.kinds.of_node[node])
            if kind not in first:
                first[kind] = replace(self.kinds.members[kind], node=node)
        return tuple(first[kind] for kind in sorted(first))

    def seats(self, rank: int) -> tuple[Seat, ...]:
        """Every seat of a pipeline rank, of all replicas."""
        return tuple(sorted({seat for replica in self.replicas for seat in replica[rank]}))

    def limit_bytes(self, rank: int) -> float:
        """Memory of a pipeline rank's smallest device [B]: replicas hold the same."""
        return min(member.device.memory_bytes for member in self.members(rank))


def seating(cluster: Cluster, strategy: Strategy, *, tied: Collection[str] = ()) -> Seating:
    """The seats of a strategy; on the axes `tied` replicas exchange gradients or parameters in every micro-batch."""
    kinds = kinds_of(cluster)
    ranks = np.arange(strategy.devices)
    device = np.asarray(cluster.rank_devices)[ranks] if cluster.rank_devices else ranks
    node = device // cluster.devices_per_node
    number = rank_numbers(strategy)
    groups = group_numbers(strategy)
    kind = kinds.of_node[node]
    place = np.argsort(kinds.by_uplink)
    inside = [_least(kind, groups[axis])[groups[axis]] for axis in AXES]
    uplinks = [kinds.by_uplink[_least(place[kind], groups[axis])[groups[axis]]] for axis in AXES]
    block = _tied(number["dp"], [groups[axis] for axis in ("ep", "etp", *tied)], strategy.dp)
    seat_of, seats = _seats(kind, inside, uplinks)
    held: dict[int, list[set[Seat]]] = defaultdict(lambda: [set() for _ in range(strategy.pp)])
    columns = np.unique(np.stack([block[number["dp"]], number["pp"], seat_of]), axis=1)
    for one, rank, seat in zip(*columns.tolist(), strict=True):
        held[one][rank].add(seats[seat])
    replicas = {tuple(tuple(sorted(found)) for found in by_rank) for by_rank in held.values()}
    return Seating(
        kinds=kinds,
        replicas=tuple(sorted(replicas)),
        nodes=tuple(tuple(np.unique(node[number["pp"] == rank]).tolist()) for rank in range(strategy.pp)),
    )


def rank_numbers(strategy: Strategy) -> dict[str, Ints]:
    """The place of every rank along tp, cp, dp and pp."""
    left = np.arange(strategy.devices)
    found = {}
    for axis in strategy.order:
        if axis != "ep":
            left, found[axis] = np.divmod(left, getattr(strategy, axis))
    return found


def group_numbers(strategy: Strategy) -> dict[str, Ints]:
    """For every rank and axis of `AXES` the number of its group (numbers of different axes mean nothing together)."""
    number = rank_numbers(strategy)
    tp, cp, dp, pp = (number[axis] for axis in ("tp", "cp", "dp", "pp"))
    # A stage's own numbering leaves pp out of the order (parallel folding).
    stage, reach = np.zeros_like(tp), 1
    for axis in strategy.order:
        if axis not in ("ep", "pp"):
            stage = stage + reach * number[axis]
            reach *= getattr(strategy, axis)
    each = strategy.ep * strategy.etp
    ours = strategy.shard_group or strategy.dp

    def joined(*parts: tuple[Ints, int]) -> Ints:
        code = pp
        for value, size in parts:
            code = code * size + value
        return code

    t, c, d = (tp, strategy.tp), (cp, strategy.cp), (dp, strategy.dp)
    return {
        "tp": joined(c, d),
        "cp": joined(t, d),
        "ep": joined((stage // each, reach // each), (stage % strategy.etp, strategy.etp)),
        "etp": joined((stage // strategy.etp, reach // strategy.etp)),
        "edp": joined((stage % each, each)),
        "dp_cp": joined(t),
        "shard": joined(t, (dp // ours, strategy.dp // ours)),
        "replicas": joined(t, c, (dp % ours, ours)),
    }


def _least(values: Ints, group: Ints) -> Ints:
    """The least value of each group."""
    least = np.full(int(group.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(least, group, values)
    return least


def _tied(dp: Ints, groups: Sequence[Ints], replicas: int) -> Ints:
    """For each replica the first of those that it shares groups with, directly or through others."""
    block = np.arange(replicas)
    while True:
        before = block.copy()
        for group in groups:
            block = np.minimum(block, _least(_least(block[dp], group)[group], dp))
        if (block == before).all():
            return block


def _seats(kind: Ints, inside: Sequence[Ints], uplinks: Sequence[Ints]) -> tuple[Ints, list[Seat]]:
    """The seat of every rank, as a number, and the seats."""
    code = kind
    for column in (*inside, *uplinks):
        code = np.unique(code * (int(column.max()) + 1) + column, return_inverse=True)[1]
    _, first, place = np.unique(code, return_index=True, return_inverse=True)
    seats = [
        Seat(int(kind[at]), *(tuple(int(column[at]) for column in columns) for columns in (inside, uplinks)))
        for at in first.tolist()
    ]
    return place, seats


def setting_of(seat: Seat, kinds: Kinds, run: Run, strategy: Strategy, framework: Framework) -> Setting:
    """What the costs of a rank on this seat depend on."""
    cluster = kinds.felt(seat.node, seat.node, seat.node)
    links: Mapping[str, Cluster] = {
        axis: kinds.felt(inside, inside, uplink)
        for axis, inside, uplink in zip(AXES, seat.inside, seat.uplinks, strict=True)
        if (inside, uplink) != (seat.node, seat.node)
    }
    return Setting(run=run, strategy=strategy, framework=framework, cluster=cluster,
                   groups=groups_of(cluster, strategy), links=links)  # fmt: skip


def send_setting(setting: Setting, kinds: Kinds, one: Sequence[Seat], other: Sequence[Seat]) -> Setting:
    """The setting of a send between ranks on these seats: its links are those of the slower end."""
    nodes = {seat.node for seat in (*one, *other)}
    inside = min(nodes)
    felt = kinds.felt(inside, inside, next(kind for kind in kinds.by_uplink.tolist() if kind in nodes))
    return Setting(run=setting.run, strategy=setting.strategy, framework=setting.framework, cluster=setting.cluster,
                   groups=setting.groups, links={**setting.links, "pp": felt})  # fmt: skip
