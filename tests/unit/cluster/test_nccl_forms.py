"""NCCL's forms by hand: round constants, 4 nodes of 4 ranks behind two network tiers, every term counted."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulator.cluster import nccl
from simulator.cluster.constants import NetworkConstants, Protocol
from simulator.cluster.nccl import Candidate, Setting
from simulator.cluster.spans import Spans
from tests.unit.cluster.fabrics import cluster, net_tier

BASE = {"ll": 1e-3, "ll128": 2e-3, "part": 3e-3, "simple": 5e-3}
HOP = {"ll": 1e-4, "ll128": 2e-4, "part": 3e-4, "simple": 5e-4}
KIND = "infiniband"


def protocol(name: str, **changes: float) -> Protocol:
    """Binds at 200 GB/s where the link gives more."""
    return Protocol(**{"base_s": BASE[name], "hop_s": HOP[name], "rate_bytes_per_s": 200e9, "link_fraction": 0.8,
                       **changes})  # fmt: skip


CONSTANTS = NetworkConstants(
    generation="hopper", provenance="made up", protocols={name: protocol(name) for name in BASE},
    all_to_all={name: protocol(name) for name in ("ll", "simple")},
    send={name: protocol(name) for name in ("ll", "simple")},
    copy_bytes_per_s={"all_reduce": 1e12, "all_to_all": 2e12}, nvls_base_s=7e-3, nvls_link_fraction=0.6,
)  # fmt: skip


def spans(size: float = 16, nodes: float = 4, pods: float = 2, **changes: Any) -> Spans:
    """`nodes` of size / nodes ranks, in `pods`; 40 GB/s out of a node."""
    return Spans(**{"size": size, "units": (nodes, pods, 1), "members": (size / nodes, size / pods, size),
                    "up_bytes_per_s": 40e9, "exchange_s_per_byte": 1 / 30e9, "hop_bytes_per_s": 25e9,
                    **changes})  # fmt: skip


def setting(own: Spans | None = None, *, concurrent: float = 1, host: str = "x86-amd", kind: str = KIND,
            topology: str = "switch", **changes: Any) -> Setting:  # fmt: skip
    """Links of 450 GB/s; 1 us to a pod of two nodes, 3 us between pods."""
    whole = cluster("hopper", 4, net_tier(8, 50e9, kind=kind), net_tier(16, 50e9, kind=kind, latency_s=3e-6),
                    per_node=4)  # fmt: skip
    tiers = (replace(whole.tiers[0], topology=topology), *whole.tiers[1:])
    return Setting(replace(whole, host=host, tiers=tiers), replace(CONSTANTS, **changes), own or spans(), concurrent)


ALONE = spans(4, 1, 1)
"""Four ranks of one node."""


def found(candidates: Any) -> dict[str, Candidate]:
    return {each.name: each for each in candidates}


def near(value: float) -> Any:
    return pytest.approx(value, rel=1e-12, abs=0.0)


@pytest.mark.parametrize("kind", ["infiniband", "pcie"])
@pytest.mark.parametrize("host", ["x86-amd", "x86-intel", "other"])
@pytest.mark.parametrize(("name", "wire_us", "pci_us"), [("ll", 2.7, 1.0), ("ll128", 4.0, 2.5), ("part", 14.0, 5.7),
                                                        ("simple", 14.0, 5.7)])  # fmt: skip
def test_crossings_by_tier(kind: str, host: str, name: str, wire_us: float, pci_us: float) -> None:
    """Four nodes join two pods (2 units less), two pods one whole (1 less)."""
    each_s = (wire_us if kind == "infiniband" else pci_us) * 1e-6
    crossings = list(setting(host=host, kind=kind).crossings(name, nccl.NET_RING_LATENCY_S))
    assert crossings == [(2, near(each_s + 1e-6)), (1, near(each_s + 3e-6))]


@pytest.mark.parametrize(("name", "host", "overhead_us"), [("ll", "x86-amd", 2), ("ll", "x86-intel", 1), ("ll", "?", 1),
                         ("part", "x86-amd", 6), ("simple", "x86-intel", 3), ("ll128", "x86-amd", 2)])  # fmt: skip
def test_the_host_bounds_a_crossing(name: str, host: str, overhead_us: float) -> None:
    """A network operation takes the host so long, three times that in the Simple protocol."""
    fast = dict.fromkeys(nccl.PROTOCOLS, 0.0)
    assert [hop_s for _, hop_s in setting(host=host).crossings(name, fast)] == [
        near((overhead_us + 1) * 1e-6), near((overhead_us + 3) * 1e-6)
    ]  # fmt: skip


def test_elastic_fabrics_take_longer_but_for_single_messages() -> None:
    own = setting(kind="efa")
    assert [hop_s for _, hop_s in own.crossings("ll", nccl.NET_RING_LATENCY_S)] == [near(68.7e-6), near(70.7e-6)]
    assert [hop_s for _, hop_s in own.crossings("ll", nccl.NET_SEND_LATENCY_S)] == [near(3.7e-6), near(5.7e-6)]


@pytest.mark.parametrize(
    ("topology", "members", "share"),
    [("switch", 2, 1.0), ("full-mesh", 2, 1 / 3), ("full-mesh", 4, 1.0), ("full-mesh", 9, 1.0),
     ("full-mesh", 1, 0.25 / 3), ("hybrid-cube-mesh", 2, 1 / 6), ("hybrid-cube-mesh", 4, 3.8 / 6),
     ("hybrid-cube-mesh", 0, 1 / 6), ("hybrid-cube-mesh", 8, 1.0), ("hybrid-cube-mesh", 4.5, (3.8 + 1.65) / 12)],
)  # fmt: skip
def test_links_that_so_many_ranks_can_use(topology: str, members: float, share: float) -> None:
    assert setting(topology=topology, concurrent=3).link_bytes_per_s(members) == near(150e9 * share)


@pytest.mark.parametrize(("concurrent", "rate", "expected"), [(1, 200e9, 200e9), (2, 200e9, 100e9), (1, 1e12, 360e9),
                         (2, 1e12, 180e9)])  # fmt: skip
def test_the_rate_inside_a_node(concurrent: float, rate: float, expected: float) -> None:
    own = setting(concurrent=concurrent)
    assert own.inner_rate(protocol("simple", rate_bytes_per_s=rate)) == near(expected)
    assert setting(spans(4, 4, 1)).inner_rate(protocol("simple")) == math.inf
    assert setting(spans(8, 4, 1)).inner_rate(protocol("simple")) == near(200e9)


@pytest.mark.parametrize(("kind", "passes"), [("all_reduce", 2), ("reduce_scatter", 1), ("all_gather", 1)])
def test_rings(kind: str, passes: int) -> None:
    """12 steps inside nodes, 2 + 1 crossings; a node's 40 GB/s binds, of which LL carries half."""
    rings = found(nccl.ring(setting(copy_bytes_per_s={kind: 1e12}), kind))
    assert list(rings) == [f"ring/{name}" for name in nccl.PROTOCOLS]
    for name in nccl.PROTOCOLS:
        each = nccl.NET_RING_LATENCY_S[name]
        hops = 2 * (each + 1e-6) + (each + 3e-6)
        assert rings[f"ring/{name}"].latency_s == near(BASE[name] + passes * (12 * HOP[name] + hops))
        share = {"ll": 0.5, "ll128": 0.92}.get(name, 1.0)
        copied = 0.0 if name == "ll" else 1 / (16 * 1e12)
        assert rings[f"ring/{name}"].s_per_byte == near(passes * 15 / 16 / (40e9 * share) + copied)
        assert not rings[f"ring/{name}"].corrected


def test_rings_inside_one_node() -> None:
    rings = found(nccl.ring(setting(ALONE), "all_reduce"))
    assert rings["ring/simple"].latency_s == near(5e-3 + 2 * 3 * 5e-4)
    assert rings["ring/simple"].s_per_byte == near(1.5 / 200e9 + 1 / 4e12)
    assert rings["ring/ll"].s_per_byte == near(1.5 / 200e9)


@pytest.mark.parametrize(("generation", "share"), [("hopper", 35 / 141), ("ampere", 19 / 87.7), ("none", 0.25)])
def test_the_low_latency_protocol_has_a_limit_of_its_own_between_nodes(generation: str, share: float) -> None:
    own = setting(spans(up_bytes_per_s=1e12), concurrent=2, generation=generation)
    assert found(nccl.ring(own, "all_reduce"))["ring/ll"].s_per_byte == near(2 * 15 / 16 / (100e9 * share))


@pytest.mark.parametrize("kind", ["broadcast", "reduce"])
def test_a_ring_broadcast_moves_every_byte_once_at_its_measured_share(kind: str) -> None:
    simple = found(nccl.ring(setting(), kind))["ring/simple"]
    assert simple.s_per_byte == near(1 / (40e9 * 0.86))
    assert simple.latency_s == near(5e-3 + 12 * 5e-4 + 2 * 15e-6 + 17e-6)


@pytest.mark.parametrize(("nodes", "passes"), [(4, 2.0), (2, 1.0)])
def test_trees_are_chains_in_nodes_and_two_trees_above(nodes: float, passes: float) -> None:
    """Four ranks a node: 3 steps down the chain and back; one level to the pod, one above it (none of two nodes)."""
    trees = found(nccl.tree(setting(spans(4 * nodes, nodes, nodes / 2))))
    assert list(trees) == ["tree/ll", "tree/ll128", "tree/simple"]
    levels = math.log2(nodes / 2)
    for name, share in (("ll", 0.5), ("ll128", 0.92), ("simple", 1.0)):
        each = nccl.NET_TREE_LATENCY_S[name]
        above = 2 * (each + 1e-6) + 2 * levels * (each + 3e-6)
        assert trees[f"tree/{name}"].latency_s == near(BASE[name] + 6 * HOP[name] + above)
        assert trees[f"tree/{name}"].s_per_byte == near(passes / (40e9 * share))
        assert trees[f"tree/{name}"].corrected


def test_trees_need_two_nodes_and_may_be_bound_inside() -> None:
    assert found(nccl.tree(setting(ALONE)))["tree/simple"].latency_s == math.inf
    fast = found(nccl.tree(setting(spans(up_bytes_per_s=1e13))))["tree/simple"]
    assert fast.s_per_byte == near(2 / 200e9)
    single = found(nccl.tree(setting(spans(4, 4, 2))))["tree/simple"]
    assert single.latency_s == near(5e-3 + 2 * 15e-6 + 2 * 17e-6)


def test_reduction_in_the_switch() -> None:
    """Five quarters of the buffer cross a link of 0.6 x 450 GB/s."""
    alone = found(nccl.nvls(setting(ALONE)))
    assert alone["nvls/simple"] == Candidate("nvls", "simple", 7e-3, near(1.25 / 270e9))
    assert alone["nvls_tree/simple"].latency_s == math.inf
    shared = found(nccl.nvls(setting(concurrent=3)))
    assert shared["nvls/simple"].latency_s == math.inf
    tree = shared["nvls_tree/simple"]
    assert tree.latency_s == near(7e-3 + 2 * (20.9e-6 + 1e-6) + 2 * (20.9e-6 + 3e-6))
    assert tree.s_per_byte == near(2 / 40e9)
    assert found(nccl.nvls(setting(spans(8, 2, 1))))["nvls_tree/simple"].s_per_byte == near(1 / 40e9)
    wide = found(nccl.nvls(setting(spans(up_bytes_per_s=1e13), concurrent=3)))["nvls_tree/simple"]
    assert wide.s_per_byte == near(1.25 / 90e9)
    assert found(nccl.nvls(setting(spans(4, 4, 2))))["nvls_tree/simple"].latency_s == math.inf
    assert not found(nccl.nvls(setting(nvls_link_fraction=0.0)))
    own = setting()
    blind = replace(own.cluster, tiers=(replace(own.cluster.tiers[0], reduce_in_switch=False), *own.cluster.tiers[1:]))
    assert not found(nccl.nvls(replace(own, cluster=blind)))


def test_parallel_aggregated_trees_run_with_one_rank_a_node() -> None:
    """3/4 of the rate; levels cost 1 / 3.5 of a crossing."""
    own = found(nccl.pat(setting(spans(4, 4, 2))))["pat/simple"]
    assert own.latency_s == near(8e-6 + 4 * 2.8e-6 + (14e-6 + 1e-6) / 3.5 + (14e-6 + 3e-6) / 3.5)
    assert own.s_per_byte == near(3 / 4 / (40e9 * 0.75))
    assert found(nccl.pat(setting()))["pat/simple"].latency_s == math.inf
    assert found(nccl.pat(setting(spans(1, 1, 1))))["pat/simple"].latency_s == math.inf
    inside = found(nccl.pat(setting(spans(8, 4, 2, up_bytes_per_s=1e13))))["pat/simple"]
    assert inside.s_per_byte == near(7 / 8 / (200e9 * 0.75))


def test_reduction_in_the_networks_switches() -> None:
    """One chain step each way at most, 0.8 us for each other rank of a node, 31 us and the outermost wire."""
    own = found(nccl.collnet(setting()))["collnet/simple"]
    assert own.latency_s == near(5e-3 + 2 * 5e-4 + 31e-6 + 3 * 0.8e-6 + 3e-6)
    assert own.s_per_byte == near(1 / 40e9)
    single = found(nccl.collnet(setting(spans(4, 4, 2))))["collnet/simple"]
    assert single.latency_s == near(5e-3 + 31e-6 + 3e-6)
    wide = found(nccl.collnet(setting(spans(up_bytes_per_s=1e13))))["collnet/simple"]
    assert wide.s_per_byte == near(2 * 3 / 4 / 200e9)
    assert found(nccl.collnet(setting(ALONE)))["collnet/simple"].latency_s == math.inf


def test_pairwise_exchanges() -> None:
    """3 peers inside, 12 outside at 2 us of the host each; every tier that is crossed is crossed once."""
    own = found(nccl.all_to_all(setting()))
    assert list(own) == ["pairwise/ll", "pairwise/simple"]
    for name, wire_us, share in (("ll", 2.7, 0.5), ("simple", 14.0, 1.0)):
        latency = BASE[name] + 3 * HOP[name] + 12 * 2e-6 + (2 * wire_us + 4) * 1e-6
        assert own[f"pairwise/{name}"].latency_s == near(latency)
        copied = 0.0 if name == "ll" else 1 / (16 * 2e12)
        assert own[f"pairwise/{name}"].s_per_byte == near(1 / (30e9 * share) + copied)
    other = found(nccl.all_to_all(setting(host="?")))["pairwise/ll"]
    assert other.latency_s == near(BASE["ll"] + 3 * HOP["ll"] + 12 * 1e-6 + 9.4e-6)
    alone = found(nccl.all_to_all(setting(replace(ALONE, exchange_s_per_byte=0.0))))["pairwise/ll"]
    assert alone.latency_s == near(BASE["ll"] + 3 * HOP["ll"])
    assert alone.s_per_byte == near(3 / 4 / 200e9)
    pod = found(nccl.all_to_all(setting(spans(8, 2, 1))))["pairwise/ll"]
    assert pod.latency_s == near(BASE["ll"] + 3 * HOP["ll"] + 4 * 2e-6 + 3.7e-6)


def test_single_messages() -> None:
    """A message crosses every tier once; two ranks use the link; the slowest hop binds."""
    own = found(nccl.send(setting()))
    assert list(own) == ["send/ll", "send/simple"]
    assert own["send/ll"] == Candidate("send", "ll", near(BASE["ll"] + 9.4e-6), near(1 / 12.5e9))
    assert own["send/simple"] == Candidate("send", "simple", near(BASE["simple"] + 32e-6), near(1 / 25e9))
    near_by = replace(ALONE, hop_bytes_per_s=math.inf)
    assert found(nccl.send(setting(near_by, concurrent=4)))["send/simple"] == Candidate(
        "send", "simple", BASE["simple"], near(1 / 50e9)
    )
    fast = {"simple": protocol("simple", rate_bytes_per_s=1e13)}
    assert found(nccl.send(setting(near_by, send=fast)))["send/simple"].s_per_byte == near(1 / 360e9)
    meshed = setting(near_by, topology="full-mesh", send=fast)
    assert found(nccl.send(meshed))["send/simple"].s_per_byte == near(1 / 120e9)


def test_two_nodes_are_enough_for_the_network_and_three_for_a_whole_tree() -> None:
    two, three = spans(8, 2, 1), spans(12, 3, 1)
    assert found(nccl.ring(setting(two), "all_reduce"))["ring/simple"].s_per_byte == near(1.75 / 40e9 + 1 / 8e12)
    assert found(nccl.tree(setting(three)))["tree/simple"].s_per_byte == near(2 / 40e9)
    assert found(nccl.nvls(setting(two)))["nvls/simple"].latency_s == math.inf
    assert found(nccl.nvls(setting(two)))["nvls_tree/simple"].latency_s < math.inf
    assert found(nccl.nvls(setting(spans(4, 2, 1))))["nvls_tree/simple"].latency_s < math.inf
    assert found(nccl.nvls(setting(three)))["nvls_tree/simple"].s_per_byte == near(2 / 40e9)
    assert found(nccl.pat(setting(spans(2, 2, 1))))["pat/simple"].latency_s < math.inf
    assert found(nccl.collnet(setting(two)))["collnet/simple"].latency_s < math.inf


def test_one_rank_a_ring_and_kinds_without_a_copy() -> None:
    alone = found(nccl.ring(setting(spans(1, 1, 1)), "all_reduce"))["ring/simple"]
    assert alone.latency_s == BASE["simple"]
    plain = found(nccl.ring(setting(), "all_gather"))["ring/simple"]
    assert plain.s_per_byte == near(15 / 16 / 40e9)


@pytest.mark.parametrize(("size", "index", "part"), [(1, 0, 0.0), (64, 0, 0.0), (128, 1, 0.0), (192, 1, math.log2(1.5)),
                         (2**20, 14, 0.0), (2.0**40, 24, 0.0)])  # fmt: skip
def test_places_in_the_tables_of_corrections(size: float, index: int, part: float) -> None:
    """One entry for each doubling of 64 bytes, the last for all that is longer."""
    assert nccl.correction_place(size) == (index, pytest.approx(part, abs=1e-12))
    indices, parts = nccl.correction_place(np.array([size, 64.0]))
    assert (list(indices), list(parts)) == ([index, 0], [pytest.approx(part, abs=1e-12), 0.0])


def test_trees_lose_by_the_table_and_others_do_not() -> None:
    """1 MiB (entry 14) of Simple reaches half; between 512 KiB and 1 MiB of LL 0.4 rises to 0.5."""
    tree = Candidate("tree", "simple", 3.0, 1e-6, corrected=True)
    assert tree.time_s(2.0**20) == near(3.0 + 2**20 * 1e-6 / 0.5)
    low = Candidate("tree", "ll", 3.0, 1e-6, corrected=True)
    assert low.time_s(1.5 * 2**19) == near(3.0 + 1.5 * 2**19 * 1e-6 / (0.4 + 0.1 * math.log2(1.5)))
    assert low.time_s(2.0**20, (12, 0.0)) == near(3.0 + 2**20 * 1e-6 / 0.4)
    assert replace(tree, corrected=False).time_s(2.0**20) == near(3.0 + 2**20 * 1e-6)
    assert tree.name == "tree/simple"


def test_rings_in_a_mesh_use_the_links_among_their_members() -> None:
    """Two of four ranks have one of three cables; two that are all there are have theirs."""
    own = setting(spans(8, 4, 2), topology="full-mesh")
    assert own.inner_rate(protocol("simple", rate_bytes_per_s=1e13)) == near(0.8 * 150e9)
    pair = replace(own.cluster, tiers=(replace(own.cluster.tiers[0], size=2), *own.cluster.tiers[1:]))
    assert replace(own, cluster=pair).link_bytes_per_s(2) == near(450e9)
