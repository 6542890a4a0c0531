"""The end of the step, counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

import simulator as sw
from simulator.cluster.device import pointwise_time_s
from simulator.cluster.network import collective_time_s
from simulator.cluster.placement import Group
from simulator.count import count
from simulator.lowered import cost_step
from simulator.parallel.stage_cost import StageCost
from simulator.parallel.step_end import step_end
from simulator.parallel.timing import CHANNEL_SHARE

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


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_sharded_gradients_are_scattered_in_every_micro_batch(zero: int) -> None:
    """Four micro-batches of one sequence on eight ranks: 7/8 of the fp32 gradients leave a rank once under ZeRO-1 and
    four times under ZeRO-2 and 3, of the bf16 parameters once, and eight times under ZeRO-3."""
    model, cluster = sw.load_model("llama-2-7b"), replace(sw.load_cluster("dgx-a100"), nodes=1)
    run = sw.Run(global_batch=32, seq_len=2048, precision="bf16")
    answer = sw.estimate(model, cluster, run, sw.Strategy(dp=8, zero=zero, recompute="full"))
    scatters, gathers = {1: (1, 1), 2: (4, 1), 3: (4, 8)}[zero]
    expected = 7 / 8 * PARAMETERS * (4 * scatters + 2 * gathers)
    assert answer.traffic_bytes["dp"] == pytest.approx(expected, rel=1e-6)


def test_waiting_for_four_scatters_takes_four_times_one() -> None:
    """Without overlap, what ZeRO-2 takes longer than ZeRO-1 is its collectives: per layer and micro-batch against per
    bucket and step."""
    model, cluster = sw.load_model("llama-2-7b"), replace(sw.load_cluster("dgx-a100"), nodes=2)
    run = sw.Run(global_batch=64, seq_len=2048, precision="bf16")
    software = replace(sw.load_framework("megatron-core"), overlap_grad_reduce=False, bucket_bytes=0.0, launch_s=0.0)
    one, two = (
        sw.estimate(model, cluster, run, sw.Strategy(dp=16, zero=zero, recompute="full"), framework=software)
        for zero in (1, 2)
    )
    whole = float(collective_time_s(cluster, "reduce_scatter", 4.0 * PARAMETERS, Group(16, 1)))
    layer = float(collective_time_s(cluster, "reduce_scatter", 4.0 * PARAMETERS / 32, Group(16, 1)))
    assert two.step_time_s - one.step_time_s == pytest.approx(4 * 32 * layer - whole, rel=1e-6)


def test_software_that_defers_the_scatter_holds_whole_gradients() -> None:
    """Alpa's ZeRO-2 over micro-batches: the traffic of ZeRO-1, and its memory for gradients."""
    model, cluster = sw.load_model("llama-2-7b"), replace(sw.load_cluster("dgx-a100"), nodes=1)
    run = sw.Run(global_batch=32, seq_len=2048, precision="bf16")
    software = replace(sw.load_framework("megatron-core"), defers_gradient_scatter=True)
    one, two = (
        sw.estimate(model, cluster, run, sw.Strategy(dp=8, zero=zero, recompute="full"), framework=software)
        for zero in (1, 2)
    )
    assert two.traffic_bytes == one.traffic_bytes
    assert two.memory.parts["gradients"] == one.memory.parts["gradients"]


@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize("micro_batch", [1, 4, 16])
@pytest.mark.parametrize("bucket_bytes", [1e8, 1e9, 1e12])
def test_buckets_end_as_a_queue_of_them_does(nodes: int, micro_batch: int, bucket_bytes: float) -> None:
    """k equal buckets that become ready at w/k, 2w/k, ... of a backward of w seconds, first in, first out: the closed
    form starts the first one at 0, so it is at most w/k early; it is late by the compute that the channels displace."""
    ranks = 8 * nodes
    run = sw.Run(global_batch=ranks * micro_batch, seq_len=512)
    strategy = sw.Strategy(dp=ranks, micro_batch=micro_batch, overlap_grad_reduce=True)
    software = replace(sw.load_framework("megatron-core"), bucket_bytes=bucket_bytes)
    costed = cost_step(sw.load_model("gpt3-1.3b"), sw.load_cluster("dgx-a100", nodes=nodes), run, strategy, software)
    cost = costed.costs[0]
    end = step_end(costed.program.stages, costed.costs, costed.setting)
    backward_s = float(cost.input_grad.total_s + cost.weight_grad.total_s + cost.recompute.total_s)
    total_s = float(end.reduce_s + end.reduce_hidden_s)
    parameters = int(count(sw.load_model("gpt3-1.3b"))["parameters"]["total"])
    buckets = -(-4 * parameters // int(bucket_bytes))
    done_s = 0.0
    for number in range(1, buckets + 1):
        done_s = max(done_s, backward_s * number / buckets) + total_s / buckets
    exposed_s = done_s - backward_s
    displaced_s = CHANNEL_SHARE * total_s
    assert exposed_s - backward_s / buckets - 1e-9 <= float(end.reduce_s) <= exposed_s + displaced_s + 1e-9


@pytest.mark.parametrize(("copies", "accesses"), [("none", 0), ("gradients", 8), ("both", 12)])
def test_sharding_copies_what_fsdp_copies(copies: str, accesses: int) -> None:
    """FSDP on one micro-batch in bf16, gradients sent in bf16. FSDP1 joins gradients (2 + 2 B) and divides them
    (2 + 2 B); FSDP2 copies gathered parameters out twice (2 x (2 + 2) B) and gradients in (2 + 2 B)."""
    model, cluster = sw.load_model("llama-2-7b"), replace(sw.load_cluster("dgx-a100"), nodes=1)
    run = sw.Run(global_batch=8, seq_len=2048, precision="bf16")
    strategy = sw.Strategy(dp=8, zero=3)
    plain = replace(sw.load_framework("torch-fsdp"), sharded_copies="none", gradient_reduce_dtype="bf16")
    given = replace(plain, sharded_copies=copies)
    (without,), (with_copies,) = (
        cost_step(model, cluster, run, strategy, software).costs[:1] for software in (plain, given)
    )

    def moving_s(cost: StageCost) -> float:
        return float(cost.forward.parts["pointwise"] + cost.input_grad.parts["pointwise"])

    pieces, device = 32, cluster.device
    step_s = moving_s(with_copies) - moving_s(without)
    moved = accesses * PARAMETERS
    # Between streaming all of it at the memory's full speed and at three quarters of it plus a launch per piece.
    assert moved / device.memory_bandwidth_bytes_per_s <= step_s * (1 + 1e-9)
    assert step_s <= moved / (0.75 * device.memory_bandwidth_bytes_per_s) + 2 * pieces * 10e-6 * (accesses > 0)


@pytest.mark.parametrize(("dp", "cp"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 2)])
def test_separate_gradients_are_flattened_wherever_a_replica_or_a_context_rank_reduces_them(dp: int, cp: int) -> None:
    """Read and written three times in fp32 around the all-reduce of dp * cp ranks; a rank alone copies nothing."""
    model, cluster = sw.load_model("llama-2-7b"), replace(sw.load_cluster("dgx-a100"), nodes=1)
    run, strategy = sw.Run(global_batch=dp, seq_len=2048, precision="bf16"), sw.Strategy(dp=dp, cp=cp)
    views = replace(sw.load_framework("megatron-core"), sharded_copies="none", overlap_grad_reduce=False)
    ends = []
    for software in (views, replace(views, sharded_copies="flattened")):
        costed = cost_step(model, cluster, run, strategy, software)
        ends.append(step_end(costed.program.stages, costed.costs, costed.setting))
    copied_s = float(ends[1].reduce_s) - float(ends[0].reduce_s)
    moved_bytes = 3 * (4 + 4) * PARAMETERS if dp * cp > 1 else 0
    expected_s = float(pointwise_time_s(cluster.device, moved_bytes, kernel="copy")) if moved_bytes else 0.0
    assert copied_s == pytest.approx(expected_s, rel=1e-9)
