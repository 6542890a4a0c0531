"""What axes put on links: the closed form against flows on the links, and rank files from the file to the time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulator.catalog import load_cluster
from simulator.cluster.contention import links_of
from simulator.cluster.graph import Routes, cluster_graph, exchange_pairs, ring_pairs
from simulator.cluster.link_loads import bottleneck, link_loads
from simulator.cluster.network import KINDS, collective_time_s
from simulator.cluster.placement import Group, all_groups, axis_ranks, with_rank_file
from simulator.cluster.traffic_map import axis_placement, ring_loads_bytes
from simulator.errors import InputError
from simulator.spec.hardware import Cluster
from tests.unit.cluster.fabrics import cluster, net_tier, pods

THIN = cluster("hopper", 16, net_tier(32, 50e9), net_tier(128, 50e9, oversubscription=4.0))


@pytest.mark.parametrize(
    ("base", "group"),
    [
        (cluster("hopper", 8), Group(8, 8)),
        (cluster("hopper", 8), Group(16, 4)),
        (THIN, Group(8, 16)),
        (THIN, Group(16, 8)),
        (THIN, Group(128, 1)),
    ],
)
def test_ring_loads_are_those_of_the_flows(base: Cluster, group: Group) -> None:
    """Link by link: NICs first, then the units' ways up, as `links_of` orders them."""
    solved = ring_loads_bytes(base, "all_gather", 1e9, group)
    closed = [load for load in link_loads(base, "all_gather", 1e9, group) if load.tier != "node"]
    links = links_of(base)
    starts = [0, *links.unit_starts]
    assert len(closed) <= len(starts)
    for load, start in zip(closed, starts, strict=False):
        assert solved[start] == pytest.approx(load.load_bytes, rel=1e-12)
        assert solved[start : start + 8].max() == pytest.approx(load.load_bytes, rel=1e-12)
        assert links.capacity[start] == pytest.approx(load.capacity_bytes_per_s * load.usable_fraction)


@pytest.mark.parametrize("group", [Group(8, 8), Group(16, 4), Group(64, 1), Group(8, 1)])
def test_exchange_loads_are_those_of_the_routes(group: Group) -> None:
    """All pairs over the graph's shortest ways: what leaves a device over its NIC, and inside its node."""
    base = cluster("hopper", 8)
    routes = Routes(cluster_graph(base))
    pairs = exchange_pairs(all_groups(group, 64))
    _, link, share = routes._uses(pairs)
    loads = np.bincount(link, weights=share, minlength=len(routes.capacity)) * 1e9 / group.size
    closed = {load.tier: load.load_bytes for load in link_loads(base, "all_to_all", 1e9, group)}
    if "node" in closed:
        assert loads[routes.number[0, "node.0"]] == pytest.approx(closed["node"], rel=1e-9)
    if "infiniband-64" in closed:
        assert loads[routes.number[0, "nic0"]] == pytest.approx(closed["infiniband-64"], rel=1e-9)


def test_torus_loads_are_those_of_the_routes() -> None:
    """Rings both ways over a row, a column, and rings that interleave on a row."""
    base = load_cluster("tpu-v3-pod", nodes=256)
    for group in (Group(32, 1), Group(32, 32), Group(8, 4)):
        routes = Routes(cluster_graph(base))
        tiles = all_groups(group, base.devices)[:64]
        pairs = [*ring_pairs(tiles), *((b, a) for a, b in ring_pairs(tiles))]
        _, link, share = routes._uses(pairs)
        loads = np.bincount(link, weights=share) * 1e9 * (group.size - 1) / group.size / 2
        closed = link_loads(base, "all_gather", 1e9, group)
        assert [load.load_bytes for load in closed] == [pytest.approx(loads.max(), rel=1e-9)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [Group(8, 1), Group(16, 8), Group(128, 1), Group(4, 32)])
def test_no_collective_is_faster_than_its_bottleneck(kind: str, group: Group) -> None:
    slowest = bottleneck(THIN, kind, group)
    assert slowest is not None
    time = collective_time_s(THIN, kind, 1e10, group)
    # Reduction in the switch (NVLS) sends less than a ring does over the same links.
    assert 1e10 * slowest.drain_s <= time * 1.3
    assert bottleneck(THIN, kind, Group(1, 1)) is None


def test_the_bottleneck_moves_outwards() -> None:
    base = pods(7.0, nodes=768)
    assert bottleneck(base, "all_reduce", Group(8, 1)).tier == "node"  # type: ignore[union-attr]
    assert bottleneck(base, "all_reduce", Group(16, 8)).link == "a device's link into roce-3072"  # type: ignore[union-attr]
    far = bottleneck(base, "all_reduce", Group(2, 3072))
    assert far is not None
    assert (far.link, far.sharing_factor) == ("a unit of 3072 devices into roce-6144", 3072)
    # One of two members in each pod: every pair shares the pod's way up, at a seventh of the rate.
    assert far.capacity_bytes_per_s == pytest.approx(3072 * 50e9 / 7)


def _file(path: Path, ranks: list[int]) -> Path:
    path.write_text("# device of each rank\n" + "\n".join(map(str, ranks)) + "\n", encoding="utf-8")
    return path


def test_a_rank_file_that_changes_nothing_changes_nothing(tmp_path: Path) -> None:
    base = cluster("hopper", 8)
    same = with_rank_file(base, _file(tmp_path / "ranks", list(range(64))))
    for group in (Group(8, 1), Group(8, 8), Group(16, 4), Group(64, 1)):
        for kind in KINDS:
            assert collective_time_s(same, kind, 1e8, group) == pytest.approx(
                collective_time_s(base, kind, 1e8, group), rel=1e-9
            )


def test_a_rank_file_that_scatters_a_group_costs(tmp_path: Path) -> None:
    """Neighbouring ranks dealt over the nodes: tp of eight then runs over NICs, as a group of stride eight would."""
    base = cluster("hopper", 8)
    dealt = with_rank_file(base, _file(tmp_path / "ranks", [r % 8 * 8 + r // 8 for r in range(64)]))
    assert axis_ranks(dealt, Group(8, 1))[0] == (0, 8, 16, 24, 32, 40, 48, 56)
    assert axis_placement(dealt, "tp", Group(8, 1)).tier == "infiniband-64"
    scattered = collective_time_s(dealt, "all_reduce", 1e8, Group(8, 1))
    assert scattered == pytest.approx(collective_time_s(base, "all_reduce", 1e8, Group(8, 8)), rel=1e-9)
    assert scattered > 4 * collective_time_s(base, "all_reduce", 1e8, Group(8, 1))
    renamed = replace(dealt, rank_devices=tuple((d + 8) % 64 for d in dealt.rank_devices))
    assert collective_time_s(renamed, "all_reduce", 1e8, Group(8, 1)) == scattered


def test_rank_files_must_place_every_device(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="63 ranks are listed, but 8xhopper has 64 devices"):
        with_rank_file(cluster("hopper", 8), _file(tmp_path / "ranks", list(range(63))))
    with pytest.raises(InputError, match="not modelled"):
        with_rank_file(load_cluster("tpu-v3-pod", nodes=4), _file(tmp_path / "ranks", list(range(16))))
