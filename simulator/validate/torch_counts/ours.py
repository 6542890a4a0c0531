"""The same counts from our own program, in torch's conventions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from simulator.arch.flops import work_flops
from simulator.arch.layer import Segment, embedding_segment, head_segment, layer_segment, mtp_segment, norm_segment
from simulator.arch.operations import AttentionCore, Work
from simulator.arch.shard import Kernels, Shard
from simulator.parallel.recompute import Policy, recomputed_operations, saved_tensors
from simulator.spec.model import ModelSpec


def first_layers(model: ModelSpec, layers: int) -> ModelSpec:
    """The model with only the first layers of each stack: the shapes of the rest repeat."""
    stacks = []
    for stack in model.stacks:
        left, runs = layers, []
        for spec, count in stack.runs:
            runs.append((spec, min(count, left)))
            left -= min(count, left)
        stacks.append(replace(stack, runs=tuple((spec, count) for spec, count in runs if count)))
    return replace(model, stacks=tuple(stacks))


def one_of_each(model: ModelSpec) -> ModelSpec:
    """The model with every distinct layer of each stack once."""
    stacks = []
    for stack in model.stacks:
        kinds = dict.fromkeys(spec for spec, _ in stack.runs)
        stacks.append(replace(stack, runs=tuple((spec, 1) for spec in kinds)))
    return replace(model, stacks=tuple(stacks))


def segments(
    model: ModelSpec, kernels: Kernels, batch: int, seq_len: int, target_seq_len: int = 0, *, layers: int | None = None
) -> Iterator[tuple[Segment, int]]:
    """Every segment of an unsharded model with its count; `layers` keeps the first layers of each stack."""
    lengths = (seq_len, target_seq_len or seq_len)
    for index, stack in enumerate(model.stacks):
        shard = Shard(micro_batch=batch, seq_len=lengths[index], memory_seq_len=seq_len if index else 0)
        yield embedding_segment(model, shard=shard, kernels=kernels), 1
        left = layers
        for spec, count in stack.runs:
            kept = count if left is None else min(count, left)
            left = None if left is None else left - kept
            if kept:
                yield layer_segment(spec, model, shard=shard, kernels=kernels, name="layer"), kept
        yield norm_segment(model, stack, shard=shard, kernels=kernels), 1
    last = Shard(micro_batch=batch, seq_len=lengths[len(model.stacks) - 1])
    yield head_segment(model, shard=last, kernels=kernels), 1
    if model.head.mtp_layers:
        yield mtp_segment(model, shard=last, kernels=kernels), model.head.mtp_layers


def torch_flops(work: Work) -> int:
    """FLOPs of one kernel as torch counts them: an attention core over the full mask, five products in backward."""
    if isinstance(work, AttentionCore):
        pairs = 2 * work.batch * work.heads * work.q_len * work.kv_len
        qk, v = work.head_dim, work.value_head_dim
        return round(float(pairs * (3 * qk + 2 * v if work.backward else qk + v)))
    return round(float(work_flops(work)))


def flops(parts: Iterator[tuple[Segment, int]], policy: Policy) -> tuple[int, int]:
    """Forward and backward FLOPs of a model's segments; recomputed operations run their forward again in backward."""
    forward = backward = 0
    for segment, count in parts:
        again = {id(operation) for operation in recomputed_operations(segment, policy)}
        for operation in segment.operations:
            made = sum(torch_flops(work) for work in operation.forward)
            forward += count * made
            backward += count * (made if id(operation) in again else 0)
            backward += count * sum(torch_flops(work) for work in (*operation.input_grad, *operation.weight_grad))
    return forward, backward


def saved_sizes(parts: Iterator[tuple[Segment, int]], policy: Policy) -> list[int]:
    """Bytes of each tensor kept for backward, largest first."""
    return sorted(
        (
            round(float(saved.bytes))
            for segment, count in parts
            for saved in saved_tensors(segment, policy)
            for _ in range(count)
            if saved.bytes
        ),
        reverse=True,
    )
