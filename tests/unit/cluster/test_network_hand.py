"""Collectives between slices of a torus, columns of groups, and groups on a listed graph, from their parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulator.cluster.constants import network_constants
from simulator.cluster.graph import graph_time_s
from simulator.cluster.network import (
    KINDS,
    bus_bandwidth_bytes_per_s,
    collective_curve,
    collective_time_on_graph_s,
    collective_time_s,
    wire_bytes,
)
from simulator.cluster.placement import Group
from simulator.cluster.spans import efficiency, spans
from simulator.cluster.torus import group_slice, torus_time_s
from simulator.errors import InputError
from simulator.spec.hardware import Cluster, Link, Tier
from tests.support import a100, dgx

ICI = Tier(name="ici", kind="ici", topology="torus", size=16, bandwidth_bytes_per_s=160e9, latency_s=1e-6, shape=(4, 4))
DCN = Tier(name="dcn", kind="dcn", topology="fat-tree", size=64, bandwidth_bytes_per_s=6.25e9, latency_s=10e-6)
PODS = Cluster(name="pods", title="", device=replace(a100(), generation="tpu"), devices_per_node=16, nodes=4,
tiers=(ICI, DCN))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "stride", "slices"), [(16, 1, 1), (64, 1, 4), (32, 1, 2), (4, 16, 4)])
def test_slices_are_joined_by_a_ring_of_their_members_shares(kind: str, size: int, stride: int, slices: int) -> None:
    """Inside the slice on its torus; between s slices a hop and (s - 1) / s of the bytes at the members' joint rate,
    there and back for an all-reduce; a send, a broadcast and a reduction carry all bytes."""
    group, moved = Group(size, stride), 64e6
    per_slice = size // slices
    inside = 0.0
    if per_slice > 1:
        inside = float(torus_time_s(kind, moved, group_slice(ICI, Group(per_slice, min(stride, 16)))))
    between = 0.0
    if slices > 1:
        whole = kind in ("send", "broadcast", "reduce")
        rate = per_slice * 6.25e9 * efficiency(DCN)
        between = 10e-6 * (slices - 1) + (1.0 if whole else (slices - 1) / slices) * moved / rate
    expected = inside + (2 if kind == "all_reduce" else 1) * between
    found = collective_time_s(PODS, kind, moved, group)
    assert isinstance(found, float)
    assert found == pytest.approx(expected, rel=1e-9)
    assert collective_time_s(PODS, kind, 0.0, group) == collective_time_s(PODS, kind, moved, Group(1)) == 0
    column = collective_time_s(PODS, kind, np.array([0.0, moved]), Group(np.array([size, size]), stride))
    assert column.tolist() == pytest.approx([0.0, expected], rel=1e-9)
    assert collective_time_s(PODS, kind, moved, group, algorithm="torus") == found
    with pytest.raises(InputError, match="ring is not run on a torus"):
        collective_time_s(PODS, kind, moved, group, algorithm="ring")


def test_several_loads_share_a_tier() -> None:
    cluster, group = dgx(4), Group(16)
    one, two = spans(cluster, group), spans(cluster, group, 2)
    assert two.up_bytes_per_s == one.up_bytes_per_s / 2
    assert two.hop_bytes_per_s == one.hop_bytes_per_s / 2
    assert two.exchange_s_per_byte == 2 * one.exchange_s_per_byte
    curve = collective_curve(cluster, "all_gather", group, concurrent=2)
    assert collective_time_s(cluster, "all_gather", 1e9, group, concurrent=2) == curve.time_s(1e9)
    assert curve.time_s(1e9) > 1.5 * collective_curve(cluster, "all_gather", group).time_s(1e9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("concurrent", [1, 2])
@pytest.mark.parametrize("count", [6, 300])
def test_a_column_of_groups_takes_each_group_s_own_time(kind: str, concurrent: int, count: int) -> None:
    """Six groups as they are, 300 through the few distinct ones."""
    cluster = dgx(8)
    sizes, strides = np.resize([1, 2, 8, 16, 4, 32], count), np.resize([1, 8, 1, 4, 16, 2], count)
    moved = np.resize([1e3, 1e6, 64e6, 5e7], count)
    found = collective_time_s(cluster, kind, moved, Group(sizes, strides), concurrent=concurrent)
    assert found.shape == (count,)
    for place in range(0, count, 7 if count > 6 else 1):
        group = Group(int(sizes[place]), int(strides[place]))
        alone = collective_time_s(cluster, kind, float(moved[place]), group, concurrent=concurrent)
        assert found[place] == pytest.approx(alone, rel=1e-9), place


def test_columns_of_blocks_and_of_loads_are_not_folded() -> None:
    cluster = dgx(8)
    blocks = np.resize([1, 2], 300)
    found = collective_time_s(cluster, "all_gather", 64e6, Group(np.full(300, 8), 1, blocks, 32))
    for place in (0, 1):
        alone = collective_time_s(cluster, "all_gather", 64e6, Group(8, 1, int(blocks[place]), 32))
        assert found[place] == pytest.approx(alone, rel=1e-9)
    loads = np.resize([1.0, 4.0], 300)
    found = collective_time_s(cluster, "all_gather", 64e6, Group(np.full(300, 16), 1), concurrent=loads)
    alone = [collective_time_s(cluster, "all_gather", 64e6, Group(16), concurrent=int(load)) for load in (1, 4)]
    assert found[:2].tolist() == pytest.approx(alone, rel=1e-9)
    untiled = collective_time_s(cluster, "all_gather", 64e6, Group(np.full(300, 12), 1, tiled=False))
    assert untiled[0] == pytest.approx(collective_time_s(cluster, "all_gather", 64e6, Group(12, 1, tiled=False)))


def test_choices_and_bandwidths_of_nccl_tests() -> None:
    curve = collective_curve(dgx(2), "all_reduce", Group(16))
    assert collective_curve(dgx(2), "all_reduce", Group(1)).choice(1e6) == "none"
    assert curve.choice(1e9) in {candidate.name for candidate in curve.candidates}
    assert min(candidate.time_s(1e9) for candidate in curve.candidates) == curve.time_s(1e9)
    for kind, factor in (("broadcast", 1.0), ("reduce", 1.0), ("send", 1.0), ("all_reduce", 1.75), ("all_to_all",
    0.875)):
        assert bus_bandwidth_bytes_per_s(kind, 800.0, 8, 2.0) == factor * 400
    assert (wire_bytes("send", 8.0, 1), wire_bytes("send", 8.0, 2)) == (0.0, 8.0)
    assert wire_bytes("send", 8.0, np.array([1, 2])).tolist() == [0.0, 8.0]
    assert [wire_bytes(kind, 8.0, 4) for kind in KINDS] == [12, 6, 6, 6, 6, 6, 8]
    for asked in (wire_bytes, lambda kind, *_: collective_time_s(PODS, kind, 8.0, Group(4))):
        with pytest.raises(InputError, match="all_reduc is no collective") as refused:
            asked("all_reduc", 8.0, 4)
        assert "all_reduce" in refused.value.problems[0].hint


RING = tuple(Link(one=str(place), other=str((place + 1) % 4), bandwidth_bytes_per_s=100.0,
latency_s=2.0) for place in range(4))
HOST = Tier(name="host", kind="nvlink", topology="switch", size=4, bandwidth_bytes_per_s=100.0, latency_s=2.0)
LISTED = Cluster(name="listed", title="", device=a100(), devices_per_node=4, nodes=1, tiers=(HOST,), links=RING)


@pytest.mark.parametrize(
    ("kind", "family", "steps", "share", "way_s", "rate"),
    # Four devices in a ring of cables of 100 bytes per second and 2 s: three steps of a quarter, six for an all-reduce.
    # In an exchange every cable carries a neighbour's message and half of two opposite ones each way, 4 s apart.
    [("all_gather", "protocols", 3, 3 / 4, 2.0, 100.0), ("reduce_scatter", "protocols", 3, 3 / 4, 2.0, 100.0),
     ("all_reduce", "protocols", 6, 6 / 4, 2.0, 100.0), ("broadcast", "protocols", 3, 1.0, 2.0, 100.0),
     ("reduce", "protocols", 3, 1.0, 2.0, 100.0), ("send", "send", 1, 1.0, 2.0, 100.0),
     ("all_to_all", "all_to_all", 1, 1 / 4, 4.0, 50.0)],
)  # fmt: skip
def test_collectives_on_a_listed_ring(
    kind: str, family: str, steps: int, share: float, way_s: float, rate: float
) -> None:
    protocols = getattr(network_constants("ampere"), family).values()
    seconds = min(p.base_s + steps * (p.hop_s + way_s) + 400 * share / (p.link_fraction * rate) for p in protocols)
    found = collective_time_s(LISTED, kind, 400.0, Group(4))
    assert found == pytest.approx(seconds)
    assert collective_time_s(LISTED, kind, 400.0, Group(1)) == collective_time_s(LISTED, kind, 0.0, Group(4)) == 0
    assert graph_time_s(LISTED, kind, 400.0, [[0, 1, 2, 3]]) == pytest.approx(seconds)
    assert graph_time_s(LISTED, kind, 400.0, [[0], [1]]) == graph_time_s(LISTED, kind, 0.0, [[0, 1]]) == 0
    column = collective_time_s(LISTED, kind, np.array([400.0, 0.0]), Group(4))
    assert column.tolist() == pytest.approx([seconds, 0.0])
    groups = collective_time_s(LISTED, kind, 400.0, Group(np.array([[1], [4]])))
    assert groups.ravel().tolist() == pytest.approx([0.0, seconds])
    assert groups.shape == (2, 1)
    assert collective_time_s(LISTED, kind, 400.0, Group(4), algorithm="ring") == found
    with pytest.raises(InputError, match="tree is not run on a listed graph"):
        collective_time_s(LISTED, kind, 400.0, Group(4), algorithm="tree")


def test_links_solved_one_by_one_agree_with_the_closed_form() -> None:
    cluster = dgx(4)
    for kind in ("all_reduce", "all_to_all", "send"):
        for group in (Group(8), Group(32), Group(4, 8)):
            closed = collective_time_s(cluster, kind, 64e6, group)
            assert float(collective_time_on_graph_s(cluster, kind, 64e6, group)) == pytest.approx(float(closed),
            rel=1e-9)
    listed: Any = [list(range(16))]
    alone = collective_time_on_graph_s(cluster, "all_gather", 64e6, listed)
    assert float(alone) == pytest.approx(float(collective_time_s(cluster, "all_gather", 64e6, Group(16))), rel=1e-9)
