"""A cluster of 16,384 devices and every group of a five-axis strategy on it: in closed form, and on the graph."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.benchmark import Benchmark

SPLIT = {"tp": 8, "cp": 2, "dp": 64, "pp": 16, "ep": 8}
LOAD_BYTES = 1e8


def _closed() -> Callable[[], None]:
    from simulator.catalog import load_cluster
    from simulator.cluster.link_loads import AXIS_KINDS
    from simulator.cluster.network import collective_time_s
    from simulator.cluster.placement import axis_groups
    from simulator.cluster.traffic_map import axis_placement

    def call() -> None:
        cluster = load_cluster("llama3-24k-roce", nodes=2048)
        for axis, group in axis_groups(cluster, **SPLIT).items():
            collective_time_s(cluster, AXIS_KINDS[axis], LOAD_BYTES, group)
            axis_placement(cluster, axis, group)

    return call


def _graph() -> Callable[[], None]:
    from simulator.catalog import load_cluster
    from simulator.cluster.graph import cluster_graph
    from simulator.cluster.link_loads import AXIS_KINDS
    from simulator.cluster.network import collective_time_on_graph_s
    from simulator.cluster.placement import axis_groups

    def call() -> None:
        cluster = load_cluster("llama3-24k-roce", nodes=2048)
        cluster_graph(cluster)
        for axis, group in axis_groups(cluster, **SPLIT).items():
            collective_time_on_graph_s(cluster, AXIS_KINDS[axis], LOAD_BYTES, group)

    return call


BENCHMARKS = [
    Benchmark(name="network of 16,384 devices, closed form", prepare=_closed, target_s=0.05),
    Benchmark(name="network of 16,384 devices, on the graph", prepare=_graph, target_s=2.0, calls=1),
]
