"""What a framework profile and a run say about kernels, and the small numbers of a shard."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from simulator import catalog
from simulator.arch.operations import largest
from simulator.arch.shard import Shard, kernels_for, padded_vocab
from simulator.spec.run import Run

COPIED = (
    "attention_kernel", "fused_softmax", "fused_bias_activation", "fused_bias_dropout", "fused_norm", "fused_rope",
    "fused_cross_entropy", "parallel_cross_entropy", "compiled", "logits_dtype", "overlap_tp_grad", "expert_dispatch",
    "logits_fraction", "gates_in_activation", "experts_pointwise", "narrow_attention",
    "activation_input_dtype", "attention_output_dtype", "pads_experts",
    "softmax_dtype", "copies_heads", "separate_qkv", "fuses_reductions",
)  # fmt: skip
OTHER = {"attention_kernel": "fa9", "logits_dtype": "fp64", "expert_dispatch": "einsum", "logits_fraction": 0.15,
         "experts_pointwise": "epilogue", "activation_input_dtype": "fp8", "attention_output_dtype": "e5m6",
         "softmax_dtype": ""}  # fmt: skip


@pytest.mark.parametrize("name", COPIED)
def test_kernels_are_those_of_the_profile(name: str) -> None:
    model, framework = catalog.load_model("gpt2-124m"), catalog.load_framework("megatron-core")
    for value in (OTHER[name],) if name in OTHER else (True, False):
        changed = replace(framework, **{name: value})
        found = kernels_for(model, Run(global_batch=1), changed, overlap_tp=False, overlap_moe=False)
        assert getattr(found, name) == value


def test_overlaps_are_those_that_were_asked_for() -> None:
    model, framework = catalog.load_model("gpt2-124m"), catalog.load_framework("megatron-core")
    for tp, moe in ((True, False), (False, True)):
        found = kernels_for(model, Run(global_batch=1), framework, overlap_tp=tp, overlap_moe=moe)
        assert (found.overlap_tp, found.overlap_moe) == (tp, moe)


@pytest.mark.parametrize(
    ("precision", "activations", "bytes_each", "saved"),
    [("fp32", "fp32", 4.0, 4.0), ("tf32", "tf32", 4.0, 4.0), ("fp16", "fp16", 2.0, 2.0), ("bf16", "bf16", 2.0, 2.0),
     ("fp8", "bf16", 2.0, 1.0), ("mxfp8", "bf16", 2.0, 1.0), ("nvfp4", "bf16", 2.0, 0.5)],
)  # fmt: skip
def test_activations_are_16_bits_where_products_are_narrower(
    precision: Any, activations: str, bytes_each: float, saved: float
) -> None:
    model, framework = catalog.load_model("gpt2-124m"), catalog.load_framework("megatron-core")
    found = kernels_for(model, Run(global_batch=1, precision=precision), framework, overlap_tp=False,
                        overlap_moe=False)  # fmt: skip
    assert (found.activation_dtype, found.gemm_dtype) == (activations, precision)
    assert (found.element_bytes, found.gemm_input_bytes) == (bytes_each, saved)
    narrow = saved < bytes_each
    assert found.attention_dtype == activations
    assert replace(found, narrow_attention=True).attention_dtype == (precision if narrow else activations)
    assert replace(found, experts_pointwise="epilogue").experts_in_epilogue is narrow
    assert not replace(found, experts_pointwise="tensor-ops").experts_in_epilogue
    # Products that are as wide as 16 bits read what is kept: they have no narrow copy.
    assert replace(found, activation_dtype="fp32").gemm_input_bytes == (saved if narrow else 4.0)


@pytest.mark.parametrize(
    ("run", "framework", "model", "drops"),
    [(None, None, 0.1, True), (None, None, 0.0, False), (None, 0.0, 0.1, False), (0.5, 0.0, 0.0, True),
     (0.0, 0.1, 0.1, False)],
)  # fmt: skip
def test_dropout_is_the_runs_then_the_frameworks_then_the_models(
    run: float | None, framework: float | None, model: float, drops: bool
) -> None:
    spec = replace(catalog.load_model("gpt2-124m"), dropout=model)
    profile = replace(catalog.load_framework("megatron-core"), dropout=framework)
    found = kernels_for(spec, Run(global_batch=1, dropout=run), profile, overlap_tp=False, overlap_moe=False)
    assert found.dropout is drops


@pytest.mark.parametrize(("asked", "profile", "fused"), [("", "fused", True), ("", "unfused", False),
                         ("unfused", "fused", False), ("fused", "unfused", True)])  # fmt: skip
def test_attention_is_the_runs_choice_first(asked: str, profile: Any, fused: bool) -> None:
    framework = replace(catalog.load_framework("megatron-core"), attention=profile)
    run = Run(global_batch=1, attention=asked or None)  # type: ignore[arg-type]
    found = kernels_for(catalog.load_model("gpt2-124m"), run, framework, overlap_tp=False, overlap_moe=False)
    assert found.fused_attention is fused


def test_vocabularies_are_padded_to_whole_shards() -> None:
    """Megatron-LM: 50,257 to 50,304 = 393 x 128; with tp 8 to 51,200 = 50 x 1,024."""
    assert padded_vocab(50257, 128, 1) == 50304
    assert padded_vocab(50257, 128, 8) == 51200
    assert padded_vocab(51200, 128, 8) == 51200
    assert list(padded_vocab(50257, 128, np.array([1, 8]))) == [50304, 51200]


def test_tokens_of_a_rank() -> None:
    whole = Shard(micro_batch=3, seq_len=140, memory_seq_len=60, cp=4, tp=2)
    assert (whole.tokens, whole.split_tokens, whole.memory_tokens) == (105, 105, 45)
    assert replace(whole, sequence_parallel=True).split_tokens == 52.5


@pytest.mark.parametrize(("tp", "etp", "parallel", "sources"), [(2, 8, False, 4), (8, 2, False, 1), (2, 8, True, 8)])
def test_ranks_of_an_expert_tensor_group_that_hold_other_rows(tp: int, etp: int, parallel: bool, sources: int) -> None:
    assert Shard(micro_batch=1, seq_len=4, tp=tp, etp=etp, sequence_parallel=parallel).expert_sources == sources


def test_the_largest_of_numbers_and_arrays() -> None:
    assert largest([]) == 0.0
    assert largest([0.25, 0.5]) == 0.5
    assert isinstance(largest([0.25, 3]), int | float)
    assert list(largest([np.array([0.25, 2.0]), 0.5])) == [0.5, 2.0]
    assert list(largest([0.5, np.array([0.25, 2.0]), np.array([0.75, 0.0])])) == [0.75, 2.0]


def test_every_field_of_kernels_has_a_test() -> None:
    from simulator.arch.shard import Kernels

    tested = {*COPIED, "fused_attention", "dropout", "activation_dtype", "gemm_dtype", "overlap_tp", "overlap_moe"}
    assert {entry.name for entry in fields(Kernels)} == tested


@pytest.mark.parametrize(("precision", "asked", "fused"), [("fp16", "", True), ("bf16", "", True), ("tf32", "", False),
                         ("fp32", "", False), ("tf32", "fused", True)])  # fmt: skip
def test_a_fused_core_of_16_bits_leaves_wider_runs_the_unfused_one(precision: Any, asked: Any, fused: bool) -> None:
    framework = replace(catalog.load_framework("megatron-core"), attention="fused", fused_attention_16_bit=True)
    run = Run(global_batch=1, precision=precision, attention=asked)
    found = kernels_for(catalog.load_model("gpt2-124m"), run, framework, overlap_tp=False, overlap_moe=False)
    assert found.fused_attention is fused
