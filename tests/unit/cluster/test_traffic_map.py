"""Which tier an axis crosses, who shares it, and what its rings put on the links."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.cluster.contention import links_of
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import Group, axis_groups
from simulator.cluster.traffic_map import axis_placement, ring_loads_bytes, times_by_algorithm
from tests.unit.cluster.fabrics import cluster, pods


def test_axes_of_a_big_run() -> None:
    """Llama 3's 16,384: tp in the node, cp, pp and dp beyond; dp is thinly spread over the pods."""
    base = pods(7.0, nodes=1920)
    groups = axis_groups(base, tp=8, cp=2, dp=60, pp=16, order=("tp", "cp", "pp", "dp"))
    assert axis_placement(base, "tp", groups["tp"]).tier == "node"
    assert axis_placement(base, "cp", groups["cp"]).tier == "roce-3072"
    outer = axis_placement(base, "dp", groups["dp"])
    assert outer.tier == "roce-15360"
    assert outer.units["roce-3072"] == 5
    # 12 of a group's ranks in each pod of 3072: 256 groups share the pod's way up.
    assert outer.sharing["roce-15360"] == pytest.approx(256)
    assert outer.sharing["roce-3072"] == 8


def test_ring_loads_conserve_bytes() -> None:
    """Sent equals received, and both equal the wire volume that leaves the nodes."""
    base = cluster("hopper", 8)
    group = Group(16, 4)
    loads = ring_loads_bytes(base, "all_gather", 1e9, group)
    out, into = loads[: base.devices].sum(), loads[base.devices : 2 * base.devices].sum()
    assert out == pytest.approx(into)
    # Four groups over eight nodes each: eight node boundaries a ring, each with the ring's whole volume.
    assert out == pytest.approx(4 * 8 * 1e9 * 15 / 16)


def test_loads_over_capacity_bound_the_time() -> None:
    base = cluster("hopper", 8)
    loads = ring_loads_bytes(base, "all_gather", 1e10, Group(8, 8))
    bound = float(np.max(loads / links_of(base).capacity))
    time = collective_time_s(base, "all_gather", 1e10, Group(8, 8))
    assert bound <= time <= 1.1 * bound
    assert not ring_loads_bytes(base, "all_gather", 1e10, Group(8, 1)).any()


def test_times_by_algorithm_start_with_the_choice() -> None:
    base = cluster("hopper", 8)
    times = times_by_algorithm(base, "all_reduce", 1e8, Group(64, 1))
    assert next(iter(times.values())) == collective_time_s(base, "all_reduce", 1e8, Group(64, 1))
    assert {"ring/ll", "tree/simple", "nvls_tree/simple"} <= set(times)
