"""Choices, limits and refusals of collective_time_s; unequal nodes; gloo."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest

from simulator.cluster.collectives import Wire
from simulator.cluster.constants import network_constants
from simulator.cluster.gloo import gloo_time_s, gloo_wire_bytes
from simulator.cluster.graph import MAX_VERTICES, Routes, cluster_graph, ring_pairs
from simulator.cluster.members import slowest_device, slowest_link, uniform
from simulator.cluster.network import (
    bus_bandwidth_bytes_per_s,
    collective_curve,
    collective_time_s,
    wire_bytes,
)
from simulator.cluster.placement import Group, all_groups, single_node_group
from simulator.errors import InputError
from simulator.spec.hardware import Link
from tests.unit.cluster.fabrics import cluster, device, net_tier, node_tier, pods


def test_protocols_switch_as_the_buffer_grows() -> None:
    """NCCL on one H100 node: LL for small, in-switch for large all-reduce (stas00: NVLS Simple from 2 MiB on H200)."""
    curve = collective_curve(cluster("hopper", 1), "all_reduce", single_node_group(8))
    assert curve.choice(1e3).startswith("ring/ll")
    assert curve.choice(1e9) == "nvls/simple"
    assert collective_curve(cluster("ampere", 1), "all_reduce", single_node_group(8)).choice(1e9) == "ring/simple"


def test_in_switch_reduction_needs_more_than_four_ranks_to_gain() -> None:
    """Published: no gain up to four ranks, 1.29 times at eight on H200 (stas00 network README)."""
    for ranks, gain in ((2, 1.0), (4, 1.0), (8, 1.29)):
        times = [
            collective_time_s(cluster("hopper", 1), "all_reduce", 8e9, single_node_group(ranks), algorithm=forced)
            for forced in ("ring", None)
        ]
        assert times[0] / times[1] == pytest.approx(gain, rel=0.08)


def test_forced_algorithms_are_never_faster_than_the_choice() -> None:
    base = cluster("hopper", 8)
    for size in (1e3, 1e6, 1e9):
        best = collective_time_s(base, "all_reduce", size, Group(64, 1))
        for algorithm in ("ring", "tree", "nvls_tree", "ring/ll"):
            assert collective_time_s(base, "all_reduce", size, Group(64, 1), algorithm=algorithm) >= best
    assert collective_time_s(base, "all_reduce", 1e9, Group(64, 1), algorithm="collnet") > 0


def test_trees_win_small_messages_on_many_nodes() -> None:
    curve = collective_curve(cluster("hopper", 128), "all_reduce", Group(1024, 1))
    assert curve.choice(1e4).startswith("tree")


@pytest.mark.parametrize(
    ("kind", "algorithm", "message"),
    [
        ("allreduce", None, "allreduce is no collective. Did you mean all_reduce?"),
        ("all_gather", "nvls", "nvls is no way to run all_gather here."),
        ("all_reduce", "trees", "Did you mean tree?"),
        ("send", "ring", "ring is no way to run send here."),
    ],
)
def test_refusals(kind: str, algorithm: str | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        collective_time_s(cluster(), kind, 1e6, Group(8, 1), algorithm=algorithm)
    assert message in str(caught.value)


def test_a_tree_on_one_node_is_refused() -> None:
    with pytest.raises(InputError, match="tree cannot run all_reduce on 4 ranks"):
        collective_time_s(cluster(), "all_reduce", 1e6, Group(4, 1), algorithm="tree")


def test_groups_that_straddle_nodes_pay_the_network() -> None:
    """Six ranks on nodes of eight: some groups lie on two nodes, and the slowest counts; a lone one does not."""
    base = cluster("hopper", 3)
    straddling = collective_time_s(base, "all_reduce", 1e9, Group(6, 1))
    assert straddling > 1.5 * collective_time_s(base, "all_reduce", 1e9, single_node_group(6))
    assert straddling > 1.5 * collective_time_s(base, "all_reduce", 1e9, Group(4, 1))


def test_tp_sixteen_over_two_nodes_costs_more_than_tp_eight() -> None:
    """The published contrast: tensor parallelism leaves the node (Narayanan 2021, section 5.4.1)."""
    base = cluster("ampere", 2)
    within, across = (collective_time_s(base, "all_reduce", 50e6, Group(n, 1)) for n in (8, 16))
    assert 1.15 < across / within < 4


def test_all_to_all_over_nodes_runs_at_one_nic() -> None:
    """NVIDIA engineers, nccl-tests issue 290: each rank's remote share leaves by its own NIC."""
    base = cluster("hopper", 8)
    time = collective_time_s(base, "all_to_all", 8e9, Group(64, 1))
    assert 8e9 * 56 / 64 / time == pytest.approx(50e9 * 0.915, rel=0.02)


def test_oversubscription_binds_what_crosses_it() -> None:
    full, thin = pods(1.0), pods(7.0)
    inside = Group(8, 8)
    across = Group(2, 8192)
    assert collective_time_s(thin, "all_to_all", 1e9, inside) == collective_time_s(full, "all_to_all", 1e9, inside)
    ratio = collective_time_s(thin, "all_to_all", 1e9, across) / collective_time_s(full, "all_to_all", 1e9, across)
    assert ratio == pytest.approx(7.0, rel=0.05)


def test_bus_bandwidth_convention() -> None:
    assert bus_bandwidth_bytes_per_s("all_reduce", 8.0, 8, 1.0) == 14.0
    assert bus_bandwidth_bytes_per_s("broadcast", 8.0, 8, 1.0) == 8.0
    assert wire_bytes("send", 5.0, 2) == 5.0
    assert wire_bytes("send", np.array([5.0, 5.0]), np.array([1, 4])).tolist() == [0.0, 5.0]


def test_generations_without_constants_take_a_neighbours() -> None:
    assert network_constants("ada").generation == "ampere"
    assert network_constants("cdna3").generation == "ampere"
    assert network_constants("hopper").provenance == "fitted"


def test_unequal_nodes_run_at_the_slowest_and_it_is_named() -> None:
    tiers = (node_tier("hopper"), node_tier("ampere"), node_tier("hopper"), node_tier("hopper"))
    slow_card = replace(device("ampere"), peak_flops_per_s={"bf16": 3e14})
    mixed = replace(cluster("hopper", 4), node_tiers=tiers, node_devices=(device(), slow_card, device(), device()))
    assert slowest_link(mixed).node == 1
    assert slowest_device(mixed).label == "node 1 (ampere, node at 300 GB/s)"
    assert slowest_device(mixed, devices=range(16, 32)).node == 2
    even = replace(cluster("hopper", 4), tiers=(node_tier("ampere"), *mixed.tiers[1:]), device=slow_card)
    for kind in ("all_reduce", "all_to_all", "send"):
        assert collective_time_s(mixed, kind, 1e8, Group(8, 1)) == collective_time_s(even, kind, 1e8, Group(8, 1))
    assert uniform(even) is even


def test_gloo_reduce_scatter_is_an_all_reduce_inside() -> None:
    wire = Wire(alpha_s=1e-5, beta_s_per_byte=1e-9, gamma_s_per_byte=1e-10)
    ratio = gloo_time_s("reduce_scatter", 1e9, 4, wire) / gloo_time_s("all_gather", 1e9, 4, wire)
    assert ratio == pytest.approx(2.1, rel=1e-3)
    assert gloo_wire_bytes("all_to_all", 8.0, 4) == 6.0
    with pytest.raises(InputError, match="gloo has no gather"):
        gloo_time_s("gather", 1.0, 4, wire)


def test_graph_of_a_cluster_counts() -> None:
    """Four nodes of eight under one switch: 32 devices and NICs, four node switches, one fabric."""
    graph = cluster_graph(cluster("hopper", 4))
    kinds = [data["kind"] for _, data in graph.nodes(data=True)]
    assert (kinds.count("device"), kinds.count("nic"), kinds.count("switch")) == (32, 32, 5)
    assert nx.is_connected(graph)
    assert nx.shortest_path_length(graph, 0, 7) == 2
    assert nx.shortest_path_length(graph, 0, 8) == 4


def test_graphs_stop_at_their_limit() -> None:
    with pytest.raises(InputError, match="too many for a graph"):
        cluster_graph(cluster("hopper", MAX_VERTICES))


def test_bottleneck_link_is_named() -> None:
    """Pairs across two thin pods: the pod's own up-link binds."""
    base = cluster("hopper", 4, net_tier(16, 50e9), net_tier(32, 50e9, oversubscription=4.0))
    routes = Routes(cluster_graph(base))
    one, other, rate = routes.bottleneck(ring_pairs(all_groups(Group(2, 16), 32)))
    assert {one, other} <= {"infiniband-16.0", "infiniband-16.1", "infiniband-32.0"}
    assert rate == pytest.approx(50e9 / 4)


def test_parts_of_a_listed_graph_that_do_not_meet_are_refused() -> None:
    links = (Link(one="0", other="1", bandwidth_bytes_per_s=1e9), Link(one="2", other="3", bandwidth_bytes_per_s=1e9))
    base = replace(cluster("hopper", 1, per_node=4), links=links)
    assert collective_time_s(base, "all_reduce", 1e6, Group(2, 1)) > 0
    with pytest.raises(InputError, match="cannot be reached"):
        collective_time_s(base, "all_reduce", 1e6, Group(4, 1))
    with pytest.raises(InputError, match="uses ring and pairwise"):
        collective_time_s(base, "all_reduce", 1e6, Group(2, 1), algorithm="tree")
