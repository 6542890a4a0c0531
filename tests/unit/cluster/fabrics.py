"""Small clusters built by hand, for tests of the network, and the cables of a graph."""

from __future__ import annotations

import networkx as nx

from simulator.cluster.generators import Vertex
from simulator.spec.hardware import Cluster, Device, Tier
from simulator.spec.kernels import KernelModel

LINK_BYTES_PER_S = {"volta": 150e9, "ampere": 300e9, "hopper": 450e9, "blackwell": 900e9}
Cables = dict[frozenset[Vertex], tuple[float, float, str]]
NIC_BYTES_PER_S = {"volta": 12.5e9, "ampere": 25e9, "hopper": 50e9, "blackwell": 50e9}


def device(generation: str = "hopper") -> Device:
    return Device(
        name=generation,
        title=generation,
        vendor="nvidia",
        generation=generation,
        peak_flops_per_s={"bf16": 1e15},
        vector_flops_per_s=1e13,
        memory_bytes=8e10,
        memory_bandwidth_bytes_per_s=3e12,
        kernels=KernelModel(constants={}, provenance="assumed"),
    )


def node_tier(generation: str = "hopper", size: int = 8) -> Tier:
    return Tier(
        name="node",
        kind="nvswitch",
        topology="switch",
        size=size,
        bandwidth_bytes_per_s=LINK_BYTES_PER_S[generation],
        latency_s=0.0,
        reduce_in_switch=generation in ("hopper", "blackwell"),
    )


def net_tier(
    devices: int, bandwidth: float, *, kind: str = "infiniband", oversubscription: float = 1.0, latency_s: float = 1e-6
) -> Tier:
    return Tier(
        name=f"{kind}-{devices}",
        kind=kind,
        topology="fat-tree",
        size=devices,
        bandwidth_bytes_per_s=bandwidth,
        latency_s=latency_s,
        oversubscription=oversubscription,
    )


def cluster(
    generation: str = "hopper", nodes: int = 4, *tiers: Tier, per_node: int = 8, kind: str = "infiniband"
) -> Cluster:
    """Nodes of `per_node` under one network tier, or under the tiers given."""
    outer = tiers or ((net_tier(nodes * per_node, NIC_BYTES_PER_S[generation], kind=kind),) if nodes > 1 else ())
    return Cluster(
        name=f"{nodes}x{generation}",
        title=f"{nodes} x {generation}",
        device=device(generation),
        devices_per_node=per_node,
        nodes=nodes,
        tiers=(node_tier(generation, per_node), *outer),
    )


def pods(oversubscription: float, nodes: int = 2048, pod: int = 3072, latency_s: float = 5e-6) -> Cluster:
    """Llama 3's fabric: pods of 3072 at full bisection, an aggregation above them."""
    inner = net_tier(pod, 50e9, kind="roce", latency_s=latency_s)
    outer = net_tier(nodes * 8, 50e9, kind="roce", oversubscription=oversubscription, latency_s=latency_s)
    return cluster("hopper", nodes, inner, outer)


def cables_of(graph: nx.Graph) -> Cables:
    """Rate, latency and tier of every cable."""
    return {
        frozenset((one, other)): (data["bandwidth_bytes_per_s"], data["latency_s"], data["tier"])
        for one, other, data in graph.edges(data=True)
    }
