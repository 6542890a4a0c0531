"""FLOP counts: what kernels execute, and the model FLOPs that MFU is defined on. The two are never mixed.

Conventions of model FLOPs (facts_formulas a; no recomputation, no capacity padding, unpadded vocabulary):
  megatron  three times the forward matmuls, logits included, routers not, causal attention cores halved
            (Megatron-LM megatron/training/training.py `num_floating_point_operations`)
  palm      6 N + 12 L a e s per token, N all parameters a token visits (Chowdhery 2022 App. B)
  torch     three times the forward matmuls as torch's FlopCounterMode counts them: full attention, routers too
            (equal to Narayanan 2021 eq. 3 without its recomputed forward, and to Korthikanti's MFU)
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from simulator.arch.layer import Segment, embedding_segment, head_segment, layer_segment, mtp_segment
from simulator.arch.operations import AttentionCore, Gemm, GroupedGemm, Number, Operation, Work
from simulator.arch.parameters import COUNTING, parameters
from simulator.arch.shard import Shard
from simulator.spec.model import ModelSpec


def work_flops(work: Work) -> Number:
    """FLOPs that one kernel executes on the matrix units; causal and windowed cores skip what they mask.

    >>> work_flops(Gemm(m=2, n=3, k=4))
    48
    """
    match work:
        case Gemm():
            return 2 * work.batch * work.m * work.n * work.k * work.repeat
        case GroupedGemm():
            return 2 * work.tokens * work.n * work.k
        case AttentionCore():
            # Backward runs five products where forward runs two (Dao 2022; facts h1, h2).
            return core_flops(work) * (2.5 if work.backward else 1.0)
    return 0.0


def core_flops(core: AttentionCore) -> Number:
    """Forward FLOPs of an attention core with masking skipped.

    A query sees at most w = min(window, kv) keys; causally w - w^2 / (2 kv) on average, which is kv / 2 without
    a window.
    """
    seen = np.minimum(core.window, core.kv_len) if core.window else core.kv_len
    visible = seen - seen * seen / (2.0 * core.kv_len) if core.causal else seen
    return 2 * core.batch * core.heads * core.q_len * visible * (core.head_dim + core.value_head_dim)


def executed_flops(operations: Iterable[Operation], phase: str) -> Number:
    """Executed FLOPs of one phase ("forward", "input_grad", "weight_grad") of some operations."""
    return sum(work_flops(work) for operation in operations for work in getattr(operation, phase))


def model_flops_per_sequence(model: ModelSpec, seq_len: int, target_seq_len: int, convention: str) -> float:
    """Forward and backward model FLOPs of one training sequence under a convention."""
    if convention == "palm":
        return _palm(model, seq_len, target_seq_len)
    halve, router = convention == "megatron", convention != "megatron"
    return 3.0 * forward_flops_per_sequence(model, seq_len, target_seq_len, halve_causal=halve, router=router)


def forward_flops_per_sequence(
    model: ModelSpec, seq_len: int, target_seq_len: int = 0, *, halve_causal: bool = False, router: bool = True
) -> float:
    """Forward matmul FLOPs of one sequence: every layer, both ends (a narrow token table's projection too)."""
    return _forward_flops(model, seq_len, target_seq_len, halve_causal=halve_causal, router=router)


@lru_cache(maxsize=256)
def _forward_flops(
    model: ModelSpec, seq_len: int, target_seq_len: int, *, halve_causal: bool, router: bool
) -> float:
    lengths = (seq_len, target_seq_len or seq_len)
    total = 0.0
    for index, stack in enumerate(model.stacks):
        encoder_len = seq_len if index else 0
        shard = Shard(micro_batch=1, seq_len=lengths[index], memory_seq_len=encoder_len, capacity_factor=0.0)
        embedded = embedding_segment(model, shard=shard, kernels=COUNTING)
        total += _forward(embedded, halve_causal=halve_causal, router=router)
        for spec, count in stack.runs:
            segment = layer_segment(spec, model, shard=shard, kernels=COUNTING, name="layer")
            total += count * _forward(segment, halve_causal=halve_causal, router=router)
    last = Shard(micro_batch=1, seq_len=lengths[len(model.stacks) - 1], capacity_factor=0.0)
    ends = [head_segment(model, shard=last, kernels=COUNTING)]
    if model.head.mtp_layers:
        ends += [mtp_segment(model, shard=last, kernels=COUNTING)] * model.head.mtp_layers
    return total + sum(_forward(segment, halve_causal=halve_causal, router=router) for segment in ends)


def _forward(segment: Segment, *, halve_causal: bool, router: bool) -> float:
    total = 0.0
    for operation in segment.operations:
        if not router and operation.name.endswith(".router"):
            continue
        for work in operation.forward:
            if isinstance(work, AttentionCore):
                total += float(_core_model_flops(work, halve_causal=halve_causal))
            else:
                total += float(work_flops(work))
    return total


def _core_model_flops(core: AttentionCore, *, halve_causal: bool) -> Number:
    if halve_causal:
        return core_flops(core)
    return 2 * core.batch * core.heads * core.q_len * core.kv_len * (core.head_dim + core.value_head_dim)


def _palm(model: ModelSpec, seq_len: int, target_seq_len: int) -> float:
    """6 N T + 12 a e s T per layer, T tokens of the stack that a layer stands in."""
    active = parameters(model).active
    tokens = seq_len if len(model.stacks) == 1 else (seq_len + (target_seq_len or seq_len)) / 2
    total = 6.0 * active * tokens
    for index, stack in enumerate(model.stacks):
        length = seq_len if index == 0 else (target_seq_len or seq_len)
        for spec, count in stack.runs:
            for attention, keys in ((spec.attention, length), (spec.cross_attention, seq_len)):
                if attention is not None:
                    width = attention.heads * (attention.head_dim + attention.value_head_dim) / 2
                    total += count * 12.0 * width * keys * length
    return total
