"""Which devices the ranks of each axis are: strides of regular groups, and explicit rank files.

Ranks are numbered as devices are: device r sits in node r // devices_per_node. An axis order, innermost first,
turns degrees into strides (Megatron-LM, `core/parallel_state.py`, class RankGenerator). Degrees may be arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from simulator.errors import Complaints, InputError, Problem, did_you_mean
from simulator.spec.hardware import Cluster

Number: TypeAlias = Any
"""A Python number or a numpy array of them, one per strategy."""

DEFAULT_ORDER = ("tp", "cp", "ep", "dp", "pp")
GROUP_AXES = ("tp", "cp", "dp", "pp", "dp_cp", "ep", "etp", "edp")


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks of one communicator, as a regular pattern of devices (fields may be arrays over strategies).

    `size` ranks stand in `blocks` equal runs. Within a run neighbours lie `stride` devices apart; the starts of
    neighbouring runs lie `block_stride` apart. All groups of the axis are shifts of this one, and all of them
    communicate at the same time.

    >>> Group(8, 4).ranks()
    (0, 4, 8, 12, 16, 20, 24, 28)
    >>> Group(4, 1, blocks=2, block_stride=16).ranks()
    (0, 1, 16, 17)
    """

    size: Number
    stride: Number = 1
    blocks: Number = 1
    block_stride: Number = 0
    tiled: bool = True
    """True: one of many groups that tile the cluster. False: the only one, from the first device of a node on."""

    def ranks(self, first: int = 0) -> tuple[int, ...]:
        """The devices of the group that starts at device `first` (scalar fields only)."""
        run = int(self.size) // int(self.blocks)
        starts = (first + block * int(self.block_stride) for block in range(int(self.blocks)))
        return tuple(start + i * int(self.stride) for start in starts for i in range(run))


def single_node_group(size: Number) -> Group:
    """`size` neighbouring devices from the first of a node on: the group of a benchmark."""
    return Group(size, tiled=False)


def axis_groups(
    cluster: Cluster,
    *,
    tp: Number = 1,
    cp: Number = 1,
    ep: Number = 1,
    etp: Number = 1,
    dp: Number = 1,
    pp: Number = 1,
    order: Sequence[str] = DEFAULT_ORDER,
) -> Mapping[str, Group]:
    """The group of every axis: tp, cp, dp, pp, dp_cp (dense gradients), ep, etp, edp (replicas of an expert).

    `order` lists tp, cp, dp and pp from the innermost outwards. Attention and dense layers stand in that order.
    Experts fold the same tp * cp * dp ranks of one pipeline stage (Megatron's parallel folding): expert-tensor
    ranks are neighbours, then expert-parallel ranks, then the expert's replicas, so `ep` in `order` changes
    nothing but may be there, as in Megatron's "tp-cp-ep-dp-pp". Where pp is not outermost, a stage's ranks are
    runs of the product of the axes inside pp, and expert groups may be several such runs.

    Raises InputError for an order that is not a permutation of the axes, and (scalar degrees) for degrees
    that need more devices than the cluster has.
    """
    _check_order(order)
    degree = {"tp": tp, "cp": cp, "dp": dp, "pp": pp}
    dense = [axis for axis in order if axis != "ep"]
    stride: dict[str, Number] = {}
    reach: Number = 1
    for axis in dense:
        stride[axis] = reach
        reach = reach * degree[axis]
    _check_devices(cluster, degree, reach)
    groups = {axis: Group(degree[axis], stride[axis]) for axis in dense}
    groups["dp_cp"] = _joined(dense, degree, stride)
    inner = stride["pp"]
    replicas = tp * cp * dp // (ep * etp)
    groups["etp"] = _folded(etp, 1, inner, pp)
    groups["ep"] = _folded(ep, etp, inner, pp)
    groups["edp"] = _folded(replicas, etp * ep, inner, pp)
    return groups


def _joined(dense: Sequence[str], degree: Mapping[str, Number], stride: Mapping[str, Number]) -> Group:
    """The ranks over which dense gradients are reduced: dp and cp together."""
    inner, outer = sorted(("dp", "cp"), key=dense.index)
    size = degree["dp"] * degree["cp"]
    if dense.index(outer) == dense.index(inner) + 1:
        return Group(size, stride[inner])
    return Group(size, stride[inner], degree[outer], stride[outer])


def _folded(size: Number, stride: Number, inner: Number, pp: Number) -> Group:
    """A group of the stage's own numbering on devices: stage rank r is r % inner + (r // inner) * inner * pp."""
    scalar = not any(isinstance(value, np.ndarray) for value in (size, stride, inner, pp))
    within = np.minimum(np.maximum(inner // stride, 1), size)
    blocks = np.where(stride >= inner, 1, -(-size // within))
    step = np.where(stride >= inner, stride * pp, stride)
    block_stride = np.where(blocks > 1, inner * pp, 0)
    if scalar:
        return Group(size, int(step), int(blocks), int(block_stride))
    return Group(size, step, blocks, block_stride)


def _check_order(order: Sequence[str]) -> None:
    complaints = Complaints()
    for axis in order:
        if axis not in DEFAULT_ORDER:
            complaints.add(f"{axis} is no axis of a placement.", where="order", hint=did_you_mean(axis, DEFAULT_ORDER))
    for axis in ("tp", "cp", "dp", "pp"):
        complaints.require(
            list(order).count(axis) == 1,
            f"{axis} stands {list(order).count(axis)} times in {'-'.join(order)}; it must stand once.",
            where="order",
        )
    complaints.raise_if_any()


def _check_devices(cluster: Cluster, degree: Mapping[str, Number], reach: Number) -> None:
    if isinstance(reach, np.ndarray):
        return
    if reach > cluster.devices:
        product = " * ".join(f"{axis}({value})" for axis, value in degree.items())
        raise InputError([f"{product} = {reach} ranks need more than the {cluster.devices} devices of {cluster.name}."])


def read_rank_file(path: Path, devices: int) -> tuple[int, ...]:
    """The device of each rank, from a file with one device number a line (# starts a comment).

    Raises InputError that names every line that is no number, out of range, or a device used twice.
    """
    complaints = Complaints()
    placed: dict[int, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        where = f"{path}:{number}"
        if not text.isdecimal():
            complaints.add(f"{text!r} is no device number.", where=where)
        elif int(text) >= devices:
            complaints.add(f"device {text} is outside 0..{devices - 1}.", where=where)
        elif int(text) in placed:
            complaints.add(f"device {text} is used already, in line {placed[int(text)]}.", where=where)
        else:
            placed[int(text)] = number
    complaints.require(bool(placed), "no device is listed.", where=str(path))
    complaints.raise_if_any()
    return tuple(placed)


def placed_ranks(group: Group, rank_file: Sequence[int], first: int = 0) -> tuple[int, ...]:
    """The devices of a group under an explicit placement.

    >>> placed_ranks(Group(2, 1), (3, 1, 0, 2))
    (3, 1)
    """
    return tuple(rank_file[rank] for rank in group.ranks(first))


def with_rank_file(cluster: Cluster, path: Path) -> Cluster:
    """The cluster with its ranks where a rank file puts them; every collective is then solved on the links.

    Raises InputError where the file does not place every device once, and on tori, whose closed forms need the axis
    order.
    """
    if cluster.tiers[0].shape and not cluster.links:
        raise InputError([Problem(f"rank files on a torus ({cluster.name}) are not modelled.", str(path),
                                  "Use --order.")])  # fmt: skip
    ranks = read_rank_file(path, cluster.devices)
    if len(ranks) != cluster.devices:
        message = f"{len(ranks)} ranks are listed, but {cluster.name} has {cluster.devices} devices: one line each."
        raise InputError([Problem(message, str(path))])
    return replace(cluster, rank_devices=ranks)


def axis_ranks(cluster: Cluster, group: Group) -> tuple[tuple[int, ...], ...]:
    """The devices of every group of an axis, under the cluster's rank file where it has one (scalar fields only).

    Raises InputError where the groups do not tile the devices.
    """
    tiles = all_groups(group, cluster.devices)
    if not cluster.rank_devices:
        return tiles
    return tuple(placed_ranks(group, cluster.rank_devices, ranks[0]) for ranks in tiles)


def all_groups(group: Group, devices: int) -> tuple[tuple[int, ...], ...]:
    """Every group of an axis over `devices` devices: the shifts of `group` that tile them.

    >>> all_groups(Group(2, 2), 4)
    ((0, 2), (1, 3))
    """
    seen: set[int] = set()
    tiles = []
    for first in range(devices):
        if first in seen:
            continue
        ranks = group.ranks(first)
        if ranks[-1] >= devices or seen.intersection(ranks):
            raise InputError([f"groups of {group.size} with stride {group.stride} do not tile {devices} devices."])
        seen.update(ranks)
        tiles.append(ranks)
    return tuple(tiles)
