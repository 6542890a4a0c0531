"""How long a collective takes: the one function that schedules, estimates and planners call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from simulator.cluster import measured, nccl, torus
from simulator.cluster.constants import NetworkConstants, network_constants
from simulator.cluster.contention import graph_spans, placed_spans
from simulator.cluster.graph import explicit_time_s
from simulator.cluster.members import uniform
from simulator.cluster.placement import Group, Number
from simulator.cluster.spans import Spans, spans
from simulator.errors import InputError, Problem, did_you_mean
from simulator.spec.hardware import Cluster

KINDS = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "reduce", "send")
ALGORITHMS = ("ring", "tree", "nvls", "nvls_tree", "pat", "collnet", "pairwise", "send")


@dataclass(frozen=True, slots=True)
class Curve:
    """Time over size for one kind and group (or an array of groups): the cheapest of the candidates."""

    candidates: tuple[nccl.Candidate, ...]
    alone: Number
    """True where the group has one rank."""

    def time_s(self, size_bytes: Number) -> Number:
        """Seconds; 0 for one rank and for no bytes."""
        if isinstance(self.alone, bool) and not isinstance(size_bytes, np.ndarray):
            if self.alone or size_bytes <= 0:
                return 0.0
            return float(min(candidate.time_s(float(size_bytes)) for candidate in self.candidates))
        place = nccl.correction_place(size_bytes) if any(c.corrected for c in self.candidates) else None
        best = reduce(np.minimum, (candidate.time_s(size_bytes, place) for candidate in self.candidates))
        return np.where(self.alone | (size_bytes <= 0), 0.0, best)

    def choice(self, size_bytes: float) -> str:
        """Name of the cheapest algorithm and protocol at one size (scalar groups)."""
        if self.alone:
            return "none"
        return min(self.candidates, key=lambda candidate: float(candidate.time_s(size_bytes))).name


def wire_bytes(kind: str, size_bytes: Number, size: Number) -> Number:
    """Bytes that each rank sends, with the bandwidth-optimal algorithm (ring; pairwise for all-to-all).

    All-reduce 2 (n - 1) / n of the buffer, reduce-scatter, all-gather and all-to-all (n - 1) / n, a send the
    message; a broadcast's or reduction's ring passes the buffer through all ranks but one: (n - 1) / n a rank
    (nccl-tests doc/PERFORMANCE.md for the first four).

    >>> wire_bytes("all_reduce", 8.0, 4)
    12.0
    """
    _check_kind(kind)
    if kind == "send":
        return size_bytes * (size > 1)
    return size_bytes * (2 if kind == "all_reduce" else 1) * (size - 1) / size


def bus_bandwidth_bytes_per_s(kind: str, size_bytes: Number, size: Number, time_s: Number) -> Number:
    """nccl-tests' bus bandwidth: algorithm bandwidth times what the fullest link carries per byte of buffer.

    >>> bus_bandwidth_bytes_per_s("all_gather", 8e9, 8, 1.0)
    7000000000.0
    """
    factor = 1.0 if kind in ("broadcast", "reduce") else wire_bytes(kind, 1.0, size)
    return factor * size_bytes / time_s


def collective_curve(
    cluster: Cluster,
    kind: str,
    group: Group,
    *,
    algorithm: str | None = None,
    concurrent: Number = 1,
    constants: NetworkConstants | None = None,
    over: Spans | None = None,
) -> Curve:
    """Every way to run the collective on this group, for evaluation at many sizes.

    `constants` replaces the generation's, `over` the closed form of how the group lies over the tiers (with
    `contention.graph_spans`, which solves it on the links).
    """
    _check_kind(kind)
    cluster = uniform(cluster)
    setting = nccl.Setting(
        cluster,
        constants or network_constants(cluster.device.generation),
        over or spans(cluster, group, concurrent),
        concurrent,
    )
    found = _candidates(setting, kind, algorithm)
    if any(isinstance(part, np.ndarray) for c in found for part in (c.latency_s, c.s_per_byte, group.size)):
        possible = tuple(c for c in found if np.any(c.latency_s < math.inf))
        return Curve(possible or found, np.asarray(group.size) <= 1)
    plain = tuple(
        nccl.Candidate(c.algorithm, c.protocol, float(c.latency_s), float(c.s_per_byte), c.corrected)
        for c in found
        if c.latency_s < math.inf or group.size <= 1
    )
    if not plain:
        raise InputError([f"{algorithm} cannot run {kind} on {int(group.size)} ranks of {cluster.name}."])
    return Curve(plain, bool(group.size <= 1))


def _candidates(setting: nccl.Setting, kind: str, algorithm: str | None) -> tuple[nccl.Candidate, ...]:
    if kind == "send":
        found = list(nccl.send(setting))
    elif kind == "all_to_all":
        found = list(nccl.all_to_all(setting))
    else:
        found = list(nccl.ring(setting, kind))
        if kind == "all_reduce":
            found += [*nccl.tree(setting), *nccl.nvls(setting)]
            found += nccl.collnet(setting) if algorithm == "collnet" else ()
        elif kind in ("all_gather", "reduce_scatter"):
            found += nccl.pat(setting)
    if algorithm is None:
        return tuple(found)
    chosen = tuple(candidate for candidate in found if algorithm in (candidate.algorithm, candidate.name))
    if not chosen:
        known = {c.algorithm for c in found} | {c.name for c in found}
        raise InputError([Problem(f"{algorithm} is no way to run {kind} here.", hint=did_you_mean(algorithm, known))])
    return chosen


_curves: dict[tuple[Any, ...], tuple[Cluster, Curve]] = {}
"""Curves of scalar groups; the cluster is kept beside, so its id stays its own."""
_CURVES_KEPT = 4096
_COLUMN = 256
"""Columns at least this long are worked out by distinct group."""


def collective_time_s(
    cluster: Cluster,
    kind: str,
    size_bytes: Number,
    group: Group,
    *,
    algorithm: str | None = None,
    concurrent: Number = 1,
) -> Number:
    """Seconds that one collective takes when all groups of its axis run it at once.

    `size_bytes` is the full buffer in bytes, as nccl-tests counts it: what an all-reduce reduces, what an
    all-gather ends with, what a reduce-scatter starts with; for all_to_all what one rank holds; for send the
    message. Fields of `group`, `size_bytes` and `concurrent` (equal loads on the same links) may be arrays and
    broadcast. One rank costs exactly 0. `algorithm` forces one, as "ring" or "ring/ll128".

    Raises InputError for an unknown kind, or an algorithm that cannot run it.
    """
    if cluster.curves:
        return measured.collective_time_s(cluster, kind, size_bytes, group)
    if cluster.links:
        return _explicit_time_s(cluster, kind, size_bytes, group, algorithm)
    if torus.is_torus(cluster):
        return _torus_time_s(cluster, kind, size_bytes, group, algorithm, concurrent)
    try:
        key = (id(cluster), kind, group, algorithm, concurrent)
        found = _curves.get(key)
    except TypeError:
        return _column_curve(cluster, kind, group, algorithm, concurrent).time_s(size_bytes)
    if found is None:
        over = placed_spans(cluster, group) if cluster.rank_devices else None
        curve = collective_curve(cluster, kind, group, algorithm=algorithm, concurrent=concurrent, over=over)
        if len(_curves) >= _CURVES_KEPT:
            _curves.clear()
        _curves[key] = found = (cluster, curve)
    return found[1].time_s(size_bytes)


def _column_curve(cluster: Cluster, kind: str, group: Group, algorithm: str | None, concurrent: Number) -> Curve:
    """The curve of a column of groups, worked out once for each distinct group: strategies repeat few of them."""
    if cluster.rank_devices:
        raise InputError(["a rank file places one strategy, not a column of them."])
    if np.size(group.size) < _COLUMN or not isinstance(concurrent, int | float) or np.any(np.asarray(group.blocks) > 1):
        return collective_curve(cluster, kind, group, algorithm=algorithm, concurrent=concurrent)
    size, stride = (np.asarray(part).astype(np.int64) for part in np.broadcast_arrays(group.size, group.stride))
    distinct, place = np.unique((size << 32) | stride, return_inverse=True)
    few = Group(distinct >> 32, distinct & 0xFFFFFFFF, tiled=group.tiled)
    curve = collective_curve(cluster, kind, few, algorithm=algorithm, concurrent=concurrent)
    place = place.reshape(size.shape)

    def spread(value: Number) -> Number:
        return value[place] if isinstance(value, np.ndarray) and value.ndim else value

    candidates = tuple(
        nccl.Candidate(c.algorithm, c.protocol, spread(c.latency_s), spread(c.s_per_byte), c.corrected)
        for c in curve.candidates
    )
    return Curve(candidates, spread(curve.alone))


def collective_time_on_graph_s(
    cluster: Cluster, kind: str, size_bytes: Number, groups: Group | Sequence[Sequence[int]]
) -> Number:
    """As `collective_time_s`, with sharing solved on the links: for explicit lists of devices (a rank file), unequal
    nodes and groups that no closed form describes.

    A group's links are those of its slowest member.
    """
    if isinstance(groups, Group):
        size, ranks = int(groups.size), None
    else:
        size, ranks = len(groups[0]), [rank for group in groups for rank in group]
    slow = uniform(cluster, ranks)
    return collective_curve(slow, kind, Group(size), over=graph_spans(slow, groups)).time_s(size_bytes)


def _explicit_time_s(cluster: Cluster, kind: str, size_bytes: Number, group: Group, algorithm: str | None) -> Number:
    """Group by group on the listed graph (arrays one element at a time)."""
    _check_kind(kind)
    if algorithm not in (None, "ring", "pairwise"):
        raise InputError([f"{algorithm} is not run on a listed graph; {cluster.name} uses ring and pairwise."])
    cells = np.broadcast(size_bytes, group.size, group.stride, group.blocks, group.block_stride)
    times = [
        explicit_time_s(cluster, kind, float(size), Group(int(n), int(stride), int(blocks), int(apart)))
        for size, n, stride, blocks, apart in cells
    ]
    return np.array(times).reshape(cells.shape) if cells.shape else times[0]


def _torus_time_s(
    cluster: Cluster, kind: str, size_bytes: Number, group: Group, algorithm: str | None, concurrent: Number
) -> Number:
    """A slice's own links inside it, the data-centre network between slices."""
    _check_kind(kind)
    if algorithm not in (None, "torus"):
        raise InputError([f"{algorithm} is not run on a torus of direct links; {cluster.name} uses torus."])
    over = spans(cluster, group, concurrent)
    part = torus.group_slice(cluster.tiers[0], Group(over.per_node, group.stride), concurrent)
    inside = np.where(over.per_node > 1, torus.torus_time_s(kind, size_bytes, part), 0.0)
    total = np.where(size_bytes <= 0, 0.0, inside + _between_slices_s(cluster, kind, size_bytes, over))
    return float(total) if total.ndim == 0 else total


def _between_slices_s(cluster: Cluster, kind: str, size_bytes: Number, over: Spans) -> Number:
    """The part of a collective that crosses slices: a ring over slices of each member's share; nothing within one."""
    latency: Number = 0.0
    for inner, tier in enumerate(cluster.tiers[1:]):
        latency = latency + (over.units[inner] - over.units[inner + 1]) * tier.latency_s
    passes = 2.0 if kind == "all_reduce" else 1.0
    share = 1.0 if kind in ("send", "broadcast", "reduce") else (over.nodes - 1) / over.nodes
    return passes * (latency + share * size_bytes / over.up_bytes_per_s)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InputError([Problem(f"{kind} is no collective.", hint=did_you_mean(kind, KINDS))])
