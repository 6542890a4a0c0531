"""Collective times against published measurements; sources stand beside each table.

No constant was fitted to the single-node tables here (H200, B300, GB200, the DGX H100 log, vTrain's A100). Of the
multi-node points, one share of the NIC's rate is the mean (`spans.NET_EFFICIENCY`), EFA's crossing was set to its
five points, and broadcast's share to its one; the rest of each time is NCCL's own model.
"""

from __future__ import annotations

import numpy as np
import pytest

from simulator.cluster.network import bus_bandwidth_bytes_per_s, collective_time_s
from simulator.cluster.placement import single_node_group
from tests.unit.cluster.fabrics import cluster, net_tier, pods

KIB, MIB, GIB = 2**10, 2**20, 2**30
SIZES = (KIB, 64 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB, 512 * MIB)

# nccl-tests (fp16) on one node, ai-dynamo/aiconfigurator systems/data, NCCL 2.29.2: microseconds for SIZES.
ALL_REDUCE_US = {
    ("hopper", "H200", 8): (16.8, 19.9, 26.1, 51.4, 121.7, 319.6, 1052.6, 2040.3),
    ("blackwell", "B300", 8): (25.0, 27.5, 28.5, 52.7, 97.5, 272.8, 715.2, 1335.4),
    ("blackwell", "GB200", 4): (16.0, 17.2, 19.7, 36.5, 100.2, 182.4, 662.9, 1282.2),
}
ALL_TO_ALL_US = {
    ("hopper", "H200", 8): (7.4, 12.1, 16.2, 26.6, 73.4, 219.1, 770.8, 1509.9),
    ("blackwell", "B300", 8): (12.7, 12.6, 19.0, 23.5, 48.9, 130.8, 423.2, 809.9),
    ("blackwell", "GB200", 4): (10.8, 13.3, 17.9, 23.1, 46.7, 124.9, 428.0, 825.4),
}
# The same tables' bus bandwidth, GB/s, from 1 MiB.
ALL_GATHER_GBS = {
    ("hopper", "H200", 8): (54.1, 88.8, 219.4, 284.7, 323.6, 336.8),
    ("blackwell", "B300", 8): (48.0, 126.7, 146.2, 430.5, 600.8, 620.6),
    ("blackwell", "GB200", 4): (52.0, 121.4, 212.7, 464.9, 543.8, 563.6),
}
REDUCE_SCATTER_GBS = {
    ("hopper", "H200", 8): (63.7, 120.6, 211.4, 295.3, 327.9, 337.1),
    ("blackwell", "B300", 8): (49.4, 135.8, 153.8, 434.9, 599.8, 614.2),
    ("blackwell", "GB200", 4): (53.8, 125.7, 226.5, 465.3, 524.8, 549.1),
}


def errors(kind: str, generation: str, devices: int, sizes: tuple[int, ...], seconds: np.ndarray) -> np.ndarray:
    node = cluster(generation, 1)
    predicted = collective_time_s(node, kind, np.array(sizes, dtype=float), single_node_group(devices))
    return np.asarray(np.abs(predicted / seconds - 1.0))


@pytest.mark.parametrize(("kind", "table"), [("all_reduce", ALL_REDUCE_US), ("all_to_all", ALL_TO_ALL_US)])
def test_devices_without_their_own_calibration_by_time(kind: str, table: dict) -> None:
    for (generation, name, devices), us in table.items():
        error = errors(kind, generation, devices, SIZES, np.array(us) * 1e-6)
        assert error[2:].mean() <= 0.10, name
        assert error[:2].mean() <= 0.25, name


@pytest.mark.parametrize(("kind", "table"), [("all_gather", ALL_GATHER_GBS), ("reduce_scatter", REDUCE_SCATTER_GBS)])
def test_devices_without_their_own_calibration_by_bandwidth(kind: str, table: dict) -> None:
    for (generation, name, devices), gbs in table.items():
        sizes = np.array(SIZES[2:], dtype=float)
        seconds = sizes * (devices - 1) / devices / (np.array(gbs) * 1e9)
        error = errors(kind, generation, devices, SIZES[2:], seconds)
        assert error.mean() <= 0.12, name


def test_dgx_h100_log() -> None:
    """NVIDIA/dgxc-benchmarking nccl/README.md, 8 GPUs, all-reduce fp32 out of place, 1 KiB to 16 GiB."""
    sizes = (KIB, 64 * KIB, 512 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB, GIB, 4 * GIB, 16 * GIB)
    us = (16.9, 19.5, 20.7, 27.4, 54.2, 123.8, 324.7, 1112.5, 4029, 15749, 62648)
    error = errors("all_reduce", "hopper", 8, sizes, np.array(us) * 1e-6)
    assert error.mean() <= 0.08


# VIA-Research/vTrain trace/a100: nccl-tests all-reduce out of place on one A100 node, 16 MiB to 1 GiB by doublings, us.
VTRAIN_US = {
    2: (131.9, 230.0, 404.7, 763.6, 1455.8, 2838.4, 5442.8),
    4: (179.6, 284.2, 543.8, 998.6, 1929.0, 3720.0, 7259.4),
    5: (198.8, 322.2, 568.3, 1066.7, 2037.0, 3935.8, 7653.2),
    6: (203.2, 304.0, 565.7, 1120.8, 2115.9, 4020.6, 7883.3),
}


@pytest.mark.parametrize("ranks", VTRAIN_US)
def test_another_a100_machine(ranks: int) -> None:
    sizes = tuple(16 * MIB * 2**i for i in range(7))
    error = errors("all_reduce", "ampere", ranks, sizes, np.array(VTRAIN_US[ranks]) * 1e-6)
    assert error.mean() <= 0.06


# Bus bandwidth in GB/s of large messages over several nodes of eight: generation, nodes, kind, bytes, measured.
MULTI_NODE = [
    # Voltage Park / Georgia Tech report, 4 nodes x 8 H100, 3.2 Tb/s InfiniBand, NCCL 2.24.3.
    ("hopper", 4, "all_reduce", 8 * GIB, 331.0),
    ("hopper", 4, "all_gather", 8 * GIB, 324.0),
    ("hopper", 4, "broadcast", 8 * GIB, 286.0),
    # nccl-tests issue 283: 248 nodes x 8 H200, 512 MiB.
    ("hopper", 248, "all_reduce", 512 * MIB, 350.0),
    # An NVIDIA engineer in nccl issues 812 and 1576: DGX A100, 8 x 200G.
    ("ampere", 16, "all_reduce", 8 * GIB, 192.0),
]


@pytest.mark.parametrize(("generation", "nodes", "kind", "size", "gbs"), MULTI_NODE)
def test_several_nodes(generation: str, nodes: int, kind: str, size: int, gbs: float) -> None:
    many = cluster(generation, nodes)
    seconds = collective_time_s(many, kind, float(size), single_node_group(nodes * 8))
    assert bus_bandwidth_bytes_per_s(kind, size, nodes * 8, seconds) / 1e9 == pytest.approx(gbs, rel=0.15)


def test_efa() -> None:
    """4 x 8 B200 over EFA v4, all-reduce bus bandwidth (stas00/ml-engineering network/README.md)."""
    many = cluster("blackwell", 4, net_tier(32, 50e9, kind="efa", latency_s=10e-6))
    for size, gbs in ((MIB, 5.4), (16 * MIB, 64.0), (128 * MIB, 198.0), (GIB, 362.0), (16 * GIB, 382.0)):
        seconds = collective_time_s(many, "all_reduce", float(size), single_node_group(32))
        assert bus_bandwidth_bytes_per_s("all_reduce", size, 32, seconds) / 1e9 == pytest.approx(gbs, rel=0.15)


def test_one_gpu_per_node() -> None:
    """GH200 on InfiniBand NDR, one device per node: NCCL through PyTorch, all-reduce, microseconds."""
    many = cluster("hopper", 8, per_node=1)
    for ranks, size, us in ((2, 2.399635e9, 50299), (4, 2.399635e9, 74252), (8, 2.2076e9, 79827), (2, 4.194e7, 1021)):
        seconds = collective_time_s(many, "all_reduce", size, single_node_group(ranks))
        assert seconds * 1e6 == pytest.approx(us, rel=0.15)


def test_mi300x_full_mesh() -> None:
    """xGMI links go pairwise: two ranks have one link of seven (stas00: 312.9 GB/s with 8 GPUs, 47.7 with 2)."""
    from dataclasses import replace

    node = cluster("hopper", 1)
    mesh = replace(
        node.tiers[0], kind="xgmi", topology="full-mesh", bandwidth_bytes_per_s=448e9, reduce_in_switch=False
    )
    node = replace(node, tiers=(mesh,), device=replace(node.device, generation="cdna3"))
    for ranks, gbs in ((8, 312.9), (2, 47.7)):
        seconds = collective_time_s(node, "all_reduce", 4.0 * GIB, single_node_group(ranks))
        assert bus_bandwidth_bytes_per_s("all_reduce", 4 * GIB, ranks, seconds) / 1e9 == pytest.approx(gbs, rel=0.15)


def test_llama3_oversubscription_costs_rings_nothing_and_all_to_all_sevenfold() -> None:
    """Meta's 1:7 above the pod: rings cross a pod's edge once each, so data parallelism does not feel it
    (Llama 3 paper, section 3.3: order [tp, cp, pp, dp] with dp outermost over the aggregation)."""
    from simulator.cluster.placement import axis_groups

    order = ("tp", "cp", "pp", "dp")
    over, full = pods(7.0), pods(1.0)
    groups = axis_groups(over, tp=8, pp=16, dp=128, order=order)
    gradients = 405e9 * 4 / (8 * 16)
    ratio = collective_time_s(over, "reduce_scatter", gradients, groups["dp"]) / collective_time_s(
        full, "reduce_scatter", gradients, groups["dp"]
    )
    assert ratio == pytest.approx(1.0, abs=0.02)
    exchange = [collective_time_s(c, "all_to_all", 1e9, groups["dp"]) for c in (over, full)]
    assert exchange[0] / exchange[1] == pytest.approx(7.0, rel=0.3)
