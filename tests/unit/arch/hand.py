"""Kernels and shards with sizes that are prime to each other, so that no two products of them are equal."""

from __future__ import annotations

from typing import Any

from simulator.arch.shard import Kernels, Shard


def kernels(**changes: Any) -> Kernels:
    """Everything fused, nothing overlapped, bf16."""
    fused = {"fused_attention": True, "fused_softmax": True, "fused_bias_activation": True, "fused_bias_dropout": True,
             "fused_norm": True, "fused_rope": True, "fused_cross_entropy": True,
             "parallel_cross_entropy": True}  # fmt: skip
    other = {"attention_kernel": "library", "compiled": False, "dropout": False, "activation_dtype": "bf16",
             "gemm_dtype": "bf16", "logits_dtype": "fp32", "overlap_tp_grad": False, "overlap_tp": False,
             "overlap_moe": False}  # fmt: skip
    return Kernels(**{**fused, **other, **changes})


def shard(**changes: Any) -> Shard:
    """3 sequences of 140 tokens, whole."""
    return Shard(**{"micro_batch": 3, "seq_len": 140, **changes})
