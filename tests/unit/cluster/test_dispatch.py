"""Routed tokens under a rank file: the network stage follows the file, the stage inside nodes the devices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.cluster.contention import placed_spans
from simulator.cluster.dispatch import copies_kept, deduplicated_exchange_s
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import Group
from simulator.spec.hardware import Cluster, Tier
from tests.support import a100, dgx

DEALT = tuple(rank // 16 * 16 + rank % 2 * 8 + rank // 2 % 8 for rank in range(32))
"""Ranks 0, 1, 2, ... on devices 0, 8, 1, 9, ...: eight neighbours are four devices of each of two nodes."""


def test_ranks_in_order_cost_what_no_file_costs() -> None:
    cluster = dgx(4)
    named = replace(cluster, rank_devices=tuple(range(32)))
    for size in (8, 16, 32):
        plain, placed = (float(deduplicated_exchange_s(each, 64e6, 4, Group(size))) for each in (cluster, named))
        assert placed == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("inside_bytes_per_s", [300e9, 2e9])
def test_a_rank_file_decides_how_many_nodes_a_token_visits(inside_bytes_per_s: float) -> None:
    """Four experts on two nodes touch 2 (1 - 1/16) = 15/8 of them: 15/32 of the copies; four devices forward them."""
    base = dgx(4)
    base = replace(base, tiers=(replace(base.tiers[0], bandwidth_bytes_per_s=inside_bytes_per_s), base.tiers[1]))
    dealt, group = replace(base, rank_devices=DEALT), Group(8)
    assert (placed_spans(dealt, group).nodes, placed_spans(dealt, group).per_node) == (2, 4)
    network = float(collective_time_s(dealt, "all_to_all", 64e6 * 15 / 32, group))
    inside = float(collective_time_s(base, "all_to_all", 64e6, Group(4)))
    assert (inside > network) == (inside_bytes_per_s == 2e9)
    assert float(deduplicated_exchange_s(dealt, 64e6, 4, group)) == pytest.approx(max(network, inside), rel=1e-12)


def test_members_inside_a_slice_stand_apart_as_the_group_does() -> None:
    """Two ranks in each of four slices, half of a ring of eight apart: four such pairs share its links, and take twice
    as long as neighbours. Of a token's 64 copies a slice gets one at most, so that the network stage is the shorter."""
    ici = Tier(name="ici", kind="ici", topology="torus", size=16, bandwidth_bytes_per_s=160e9, latency_s=1e-6,
               shape=(8, 2))  # fmt: skip
    dcn = Tier(name="dcn", kind="dcn", topology="fat-tree", size=64, bandwidth_bytes_per_s=1e15, latency_s=0.0)
    pods = Cluster(name="pods", title="", device=a100(), devices_per_node=16, nodes=4, tiers=(ici, dcn))
    apart, neighbours = (float(collective_time_s(pods, "all_to_all", 64e6, Group(2, stride))) for stride in (8, 1))
    assert apart == pytest.approx(2 * neighbours)
    assert float(deduplicated_exchange_s(pods, 64e6, 64, Group(8, 8))) == pytest.approx(apart, rel=1e-12)


def test_columns_of_nodes_and_copies() -> None:
    found = copies_kept(np.array([[1], [2], [3]]), np.array([1, 2]))
    # 2 nodes: 2 (1 - 1/4) / 2; 3 nodes: 3 (1 - 4/9) / 2.
    assert found == pytest.approx(np.array([[1, 1], [1, 3 / 4], [1, 5 / 6]]))
