"""Closed forms of regular fabrics: hops, equal shortest paths, diameter and bisection, for any size in O(levels)."""

from __future__ import annotations

from math import comb, prod

from simulator.cluster.generators import (
    CUBE_MESH_LINKS,
    Dragonfly,
    Fabric,
    FatTree,
    HybridCubeMesh,
    SwitchedNode,
    Torus,
)
from simulator.errors import InputError


def hops(fabric: Fabric, one: int, other: int) -> int:
    """Cables on a shortest way between two devices.

    >>> hops(Torus(shape=(4, 4), wrap=(True, True), link_bytes_per_s=1.0), 0, 15)
    2
    """
    if one == other:
        return 0
    if isinstance(fabric, SwitchedNode):
        return 2
    if isinstance(fabric, HybridCubeMesh):
        return 1 if one // 4 == other // 4 or one % 4 == other % 4 else 2
    if isinstance(fabric, FatTree):
        return 2 * _common_level(fabric, one, other)
    if isinstance(fabric, Torus):
        return sum(_distance(fabric, dim, a, b) for dim, (a, b) in enumerate(_places(fabric, one, other)))
    return 2 + sum(_dragonfly_parts(fabric, one, other))


def shortest_paths(fabric: Fabric, one: int, other: int) -> int:
    """How many different shortest ways there are between two devices (path diversity)."""
    if one == other:
        return 1
    if isinstance(fabric, SwitchedNode):
        return fabric.switches
    if isinstance(fabric, HybridCubeMesh):
        return 1 if hops(fabric, one, other) == 1 else 2
    if isinstance(fabric, FatTree):
        return prod(fabric.up[: _common_level(fabric, one, other)])
    if isinstance(fabric, Torus):
        return _torus_paths(fabric, one, other)
    return _dragonfly_paths(fabric, one, other)


def diameter(fabric: Fabric) -> int:
    """The most hops between any two devices."""
    if isinstance(fabric, SwitchedNode | HybridCubeMesh):
        return 2
    if isinstance(fabric, FatTree):
        return 2 * fabric.levels
    if isinstance(fabric, Torus):
        return sum(length // 2 if fabric.around(dim) else length - 1 for dim, length in enumerate(fabric.shape))
    return 2 + 1 + (2 if fabric.routers > 1 else 0)


def bisection_bytes_per_s(fabric: Fabric) -> float:
    """Bytes per second, one way, between the lower and the upper half of the devices.

    The halves are whole units of the outermost level (odd counts leave the larger half one more).
    """
    if isinstance(fabric, SwitchedNode):
        return fabric.devices // 2 * fabric.bandwidth_bytes_per_s
    if isinstance(fabric, HybridCubeMesh):
        return sum(n for a, b, n in CUBE_MESH_LINKS if a // 4 != b // 4) * fabric.link_bytes_per_s
    if isinstance(fabric, FatTree):
        half = fabric.down[-1] // 2
        return min(
            half * prod(fabric.down[level:-1]) * prod(fabric.up[: level + 1]) * fabric.bandwidth_bytes_per_s[level]
            for level in range(fabric.levels)
        )
    if isinstance(fabric, Torus):
        rows = fabric.devices // fabric.shape[0]
        return rows * (2 if fabric.around(0) else 1) * fabric.link_bytes_per_s
    return _dragonfly_bisection(fabric)


def cables(fabric: Fabric) -> int:
    """Edges of the graph."""
    if isinstance(fabric, SwitchedNode):
        return fabric.devices * fabric.switches
    if isinstance(fabric, HybridCubeMesh):
        return len(CUBE_MESH_LINKS)
    if isinstance(fabric, FatTree):
        return sum(prod(fabric.down[level:]) * prod(fabric.up[: level + 1]) for level in range(fabric.levels))
    if isinstance(fabric, Torus):
        return sum(
            fabric.devices // length * (length if fabric.around(dim) else length - 1)
            for dim, length in enumerate(fabric.shape)
        )
    return fabric.devices + fabric.groups * comb(fabric.routers, 2) + comb(fabric.groups, 2)


def _common_level(fabric: FatTree, one: int, other: int) -> int:
    """The level of the lowest common ancestor."""
    a, b = fabric.position(one), fabric.position(other)
    for level, children in enumerate(fabric.down):
        a, b = a // children, b // children
        if a == b:
            return level + 1
    raise InputError([f"device {max(one, other)} is outside the {fabric.devices} devices of the fabric."])


def _places(fabric: Torus, one: int, other: int) -> list[tuple[int, int]]:
    return list(zip(fabric.place(one), fabric.place(other), strict=True))


def _distance(fabric: Torus, dim: int, a: int, b: int) -> int:
    direct = abs(a - b)
    return min(direct, fabric.shape[dim] - direct) if fabric.around(dim) else direct


def _torus_paths(fabric: Torus, one: int, other: int) -> int:
    """Interleavings of the steps in each dimension, twice for each half-way around a ring."""
    paths, steps = 1, 0
    for dim, (a, b) in enumerate(_places(fabric, one, other)):
        distance = _distance(fabric, dim, a, b)
        steps += distance
        halfway = fabric.around(dim) and 2 * distance == fabric.shape[dim]
        paths *= comb(steps, distance) * (2 if halfway else 1)
    return paths


def _router(fabric: Dragonfly, device: int) -> tuple[int, int]:
    return divmod(device // fabric.per_router, fabric.routers)


def _dragonfly_parts(fabric: Dragonfly, one: int, other: int) -> tuple[int, int, int]:
    """Hops before the global cable, over it, and after it.

    A way over two global cables is never shorter: it needs two of them and at least one local hop, or lands
    at the right router by luck with two hops only where the direct way has three.
    """
    (group_a, a), (group_b, b) = _router(fabric, one), _router(fabric, other)
    if group_a == group_b:
        return (int(a != b), 0, 0)
    before = int(a != fabric.gateway(group_a, group_b))
    after = int(b != fabric.gateway(group_b, group_a))
    if before + after == 2 and _two_global_ways(fabric, one, other):
        return (0, 2, 0)
    return (before, 1, after)


def _two_global_ways(fabric: Dragonfly, one: int, other: int) -> int:
    """Third groups that both routers own a cable to, landing at one router there."""
    (group_a, a), (group_b, b) = _router(fabric, one), _router(fabric, other)
    count = 0
    for link in range(fabric.global_links):
        middle = (group_a + 1 + a * fabric.global_links + link) % fabric.groups
        if middle == group_b or fabric.gateway(group_b, middle) != b:
            continue
        count += fabric.gateway(middle, group_a) == fabric.gateway(middle, group_b)
    return count


def _dragonfly_paths(fabric: Dragonfly, one: int, other: int) -> int:
    """One minimal way, or the ways over two global cables, or both where they are equally long.

    The direct way with both local hops has three cables between routers; a way over a third group has two
    cables with no local hop, or three with one (before, inside or after).
    """
    (group_a, a), (group_b, b) = _router(fabric, one), _router(fabric, other)
    if group_a == group_b:
        return 1
    before, across, after = _dragonfly_parts(fabric, one, other)
    length = before + across + after
    if across == 2:
        return _two_global_ways(fabric, one, other)
    direct = 1
    if length == 1:
        return direct
    if length == 2:
        return direct + _two_global_ways(fabric, one, other)
    return direct + _three_hop_detours(fabric, (group_a, a), (group_b, b))


def _three_hop_detours(fabric: Dragonfly, start: tuple[int, int], end: tuple[int, int]) -> int:
    """Ways of three router cables that visit third groups: two global cables and one local, or three global."""
    (group_a, a), (group_b, b) = start, end
    count = 0
    for middle in range(fabric.groups):
        if middle in (group_a, group_b):
            continue
        leaves = fabric.gateway(group_a, middle) == a
        arrives = fabric.gateway(group_b, middle) == b
        same = fabric.gateway(middle, group_a) == fabric.gateway(middle, group_b)
        count += leaves and arrives and not same
        count += same and (leaves != arrives)
    return count + _three_global(fabric, start, end)


def _three_global(fabric: Dragonfly, start: tuple[int, int], end: tuple[int, int]) -> int:
    """Ways over three global cables without a local hop."""
    (group_a, a), (group_b, b) = start, end
    count = 0
    for first in range(fabric.groups):
        if first in (group_a, group_b) or fabric.gateway(group_a, first) != a:
            continue
        router = fabric.gateway(first, group_a)
        for second in range(fabric.groups):
            if second in (group_a, group_b, first) or fabric.gateway(group_b, second) != b:
                continue
            count += fabric.gateway(first, second) == router and fabric.gateway(second, first) == fabric.gateway(
                second, group_b
            )
    return count


def _dragonfly_bisection(fabric: Dragonfly) -> float:
    """Global cables between the two halves of the groups, or what the smaller half's devices can send."""
    low = fabric.groups // 2
    crossing = low * (fabric.groups - low) * fabric.global_bytes_per_s
    return min(crossing, low * fabric.routers * fabric.per_router * fabric.bandwidth_bytes_per_s)
