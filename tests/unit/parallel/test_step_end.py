"""The end of the step, counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

import simulator as sw
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import Group

PARAMETERS = 6738415616  # Llama 2 7B, exact (Hugging Face safetensors index)


@pytest.mark.parametrize(("nodes", "each"), [(2, 27), (16, 128)])
def test_owners_of_whole_tensors_are_served_one_by_one(nodes: int, each: int) -> None:
    """ZeRO-1 without overlap moves 13.5 GB of gradients and of parameters: in 512 MB buckets that is 27 collectives
    of each kind, and never fewer than the owners."""
    model, cluster = sw.load_model("llama-2-7b"), replace(sw.load_cluster("dgx-a100"), nodes=nodes)
    ranks = 8 * nodes
    run = sw.Run(global_batch=4 * ranks, seq_len=2048, precision="bf16")
    strategy = sw.Strategy(dp=ranks, zero=1, micro_batch=4, recompute="full")
    even = replace(sw.load_framework("internevo"), zero_whole_tensors=False, overlap_grad_reduce=False)
    owned = replace(even, zero_whole_tensors=True)
    even_s, owned_s = (
        sw.estimate(model, cluster, run, strategy, framework=software).step_time_s for software in (even, owned)
    )

    def both_s(first: str, second: str, collectives: int) -> float:
        part_bytes = 2.0 * PARAMETERS / collectives
        return collectives * sum(
            float(collective_time_s(cluster, kind, part_bytes, Group(ranks, 1))) for kind in (first, second)
        )

    expected_s = both_s("reduce", "broadcast", each) - both_s("reduce_scatter", "all_gather", 27)
    assert owned_s - even_s == pytest.approx(expected_s, rel=1e-6)
    assert expected_s > 0
