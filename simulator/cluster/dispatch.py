"""Dispatch and combine of routed tokens that send one copy to a node, however many of its experts a token visits.

DeepEP and HybridEP (deepseek-ai/DeepEP README; DeepSeek-V3 report sec. 3.2.2) send a token once over the network to
each node that holds one of its experts, and forward it there over NVLink; both stages are pipelined.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from simulator.arch.operations import Number
from simulator.cluster.contention import placed_spans
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import Group
from simulator.spec.hardware import Cluster


def copies_kept(nodes: Number, copies: Number) -> Any:
    """Share of a token's k copies that cross the network when each node receives one at most.

    k experts drawn evenly from N nodes touch N (1 - (1 - 1/N)^k) of them on average, against k copies.

    >>> round(float(copies_kept(4, 8)), 4)
    0.4499
    """
    reached = nodes * (1.0 - (1.0 - 1.0 / nodes) ** copies)
    return np.where(np.asarray(nodes) > 1, reached / copies, 1.0)[()]


def deduplicated_exchange_s(cluster: Cluster, buffer_bytes: Number, copies: Number, group: Group) -> Any:
    """Seconds of one dispatch or combine [s]: the slower of the network stage and the stage inside nodes."""
    placed = placed_spans(cluster, group)
    network = collective_time_s(cluster, "all_to_all", buffer_bytes * copies_kept(placed.nodes, copies), group)
    near = replace(cluster, rank_devices=()) if cluster.rank_devices else cluster
    inside = collective_time_s(near, "all_to_all", buffer_bytes, Group(placed.per_node, group.stride))
    return np.maximum(network, inside)
