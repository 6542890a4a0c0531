"""FLOPs of single kernels and of small models, multiplied out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.arch.flops import (
    core_flops,
    executed_flops,
    forward_flops_per_sequence,
    model_flops_per_sequence,
    work_flops,
)
from simulator.arch.operations import AttentionCore, Gemm, GroupedGemm, Lookup, Operation, Pointwise
from simulator.arch.parameters import parameters
from simulator.spec.model import AttentionSpec, FeedForwardSpec, LayerSpec, ModelSpec, StackSpec
from tests.support import gpt, mixture

CORE = AttentionCore(batch=3, heads=5, kv_heads=5, q_len=7, kv_len=11, head_dim=13, value_head_dim=17, causal=False)


def test_a_product_of_every_size_counts_each_once() -> None:
    assert work_flops(Gemm(m=3, n=5, k=7, batch=11, repeat=13)) == 30030
    assert work_flops(GroupedGemm(experts=4, tokens=3, n=5, k=7, imbalance=2.0)) == 210
    assert work_flops(Pointwise(bytes=64, flops=99)) == 0.0
    assert work_flops(Lookup(rows=3, width_bytes=5)) == 0.0


def test_an_attention_core_multiplies_queries_by_keys_and_weights_by_values() -> None:
    scores, mixed = 2 * 3 * 5 * 7 * 11 * 13, 2 * 3 * 5 * 7 * 11 * 17
    assert core_flops(CORE) == scores + mixed
    assert work_flops(CORE) == scores + mixed
    # Backward: scores again, then the gradients of values, weights, queries and keys: five products for two.
    assert work_flops(replace(CORE, backward=True)) == 2.5 * (scores + mixed)


def test_a_window_without_a_mask_shows_every_query_that_many_keys() -> None:
    assert core_flops(replace(CORE, window=4)) == core_flops(replace(CORE, kv_len=4))
    assert core_flops(replace(CORE, window=40)) == core_flops(CORE)


def test_executed_flops_are_those_of_the_phase_alone() -> None:
    operations = [
        Operation(name="a", forward=(Gemm(m=2, n=3, k=5), Pointwise(bytes=8)), input_grad=(Gemm(m=2, n=5, k=3),),
                  weight_grad=(Gemm(m=3, n=5, k=7), Gemm(m=1, n=1, k=1))),
        Operation(name="b", forward=(Gemm(m=7, n=1, k=1),)),
    ]  # fmt: skip
    assert [executed_flops(operations, phase) for phase in ("forward", "input_grad", "weight_grad")] == [74, 60, 212]
    several = Operation(name="c", forward=(Gemm(m=np.array([1, 10]), n=2, k=3),))
    assert executed_flops([several], "forward").tolist() == [12, 120]


def test_routers_count_in_torch_s_convention_and_not_in_megatron_s() -> None:
    model, s = mixture(hidden=64, layers=3, heads=4, experts=8, top_k=2, expert_hidden=128), 32
    core, router = 4 * s * s * 64 * 3, 2 * s * 64 * 8 * 3
    torch, megatron = (model_flops_per_sequence(model, s, 0, convention) for convention in ("torch", "megatron"))
    assert torch - megatron == pytest.approx(3 * (router + core / 2), rel=1e-12)
    assert forward_flops_per_sequence(model, s) - forward_flops_per_sequence(model, s, router=False) == router


@pytest.mark.parametrize("halve_causal", [False, True])
@pytest.mark.parametrize("router", [False, True])
def test_a_depth_of_multi_token_prediction_is_a_projection_a_layer_and_a_head(halve_causal: bool, router: bool) -> None:
    """32 tokens, 4 heads of 16 (2 of keys), 2 of 8 experts of 3 x 64 x 128 for each token, 32,000 words."""
    s = 32
    model = mixture(hidden=64, layers=3, heads=4, experts=8, top_k=2, expert_hidden=128)
    products = 64 * (64 + 2 * 32) + 64 * 64 + 2 * 3 * 64 * 128 + (64 * 8 if router else 0)
    layer = 2 * s * products + 4 * s * s * 64 / (2 if halve_causal else 1)
    head = 2 * s * 64 * 32_000
    for depths in (0, 1, 2):
        own = replace(model, head=replace(model.head, mtp_layers=depths))
        found = forward_flops_per_sequence(own, s, halve_causal=halve_causal, router=router)
        assert found == 3 * layer + head + depths * (2 * s * 128 * 64 + layer + head)


def test_padding_of_experts_is_no_model_flop() -> None:
    model = mixture(hidden=64, layers=3, heads=4, experts=8, top_k=2, expert_hidden=128)
    layer = model.stacks[0].runs[0][0]
    assert layer.experts is not None
    padded = replace(layer, experts=replace(layer.experts, capacity_factor=1.5))
    for depths in (0, 1):
        own = replace(model, head=replace(model.head, mtp_layers=depths))
        other = replace(own, stacks=(StackSpec(role="decoder", runs=((padded, 3),)),))
        assert forward_flops_per_sequence(other, 32) == forward_flops_per_sequence(own, 32)


def test_a_narrow_table_of_tokens_is_projected_at_both_ends() -> None:
    """Rows of 16 onto a width of 64, and back before 1,000 words."""
    model, s = gpt(64, 3, 4, vocab=1000, seq_len=32), 32
    narrow = replace(model, embedding=replace(model.embedding, width=16))
    wide_head, narrow_head = 2 * s * 64 * 1000, 2 * s * 16 * 1000
    added = forward_flops_per_sequence(narrow, s) - forward_flops_per_sequence(model, s)
    assert added == 2 * (2 * s * 16 * 64) + narrow_head - wide_head


def _two_stacks() -> ModelSpec:
    """One encoder layer and two decoder layers of unlike sizes, untied."""
    encoder = LayerSpec(attention=AttentionSpec(heads=2, kv_heads=2, head_dim=16, value_head_dim=16, causal=False),
                        feed_forward=FeedForwardSpec(hidden=100))  # fmt: skip
    decoder = LayerSpec(
        attention=AttentionSpec(heads=4, kv_heads=4, head_dim=8, value_head_dim=8),
        cross_attention=AttentionSpec(heads=4, kv_heads=4, head_dim=8, value_head_dim=24, causal=False),
        feed_forward=FeedForwardSpec(hidden=60),
    )
    base = gpt(32, 1, 2, vocab=1000, tied=False)
    stacks = (StackSpec(role="encoder", runs=((encoder, 1),)), StackSpec(role="decoder", runs=((decoder, 2),)))
    return replace(base, name="two-stacks", stacks=stacks)


def test_an_encoder_decoder_counts_each_stack_at_its_own_length() -> None:
    model, source, target = _two_stacks(), 48, 20
    encoder = 2 * source * 32 * (4 * 32) + 4 * source * source * 32 + 4 * source * 32 * 100
    itself = 2 * target * 32 * (4 * 32) + 4 * target * target * 32
    # Queries and output of the target, keys and values (24 wide in 4 heads) of the source.
    across = 2 * target * 32 * 32 + 2 * source * 32 * (32 + 96) + 2 * target * 96 * 32 + 2 * target * source * (32 + 96)
    decoder = 2 * (itself + across + 4 * target * 32 * 60)
    head = 2 * target * 32 * 1000
    assert forward_flops_per_sequence(model, source, target) == encoder + decoder + head
    assert model_flops_per_sequence(model, source, target, "torch") == 3 * (encoder + decoder + head)
    halved = 2 * (2 * target * target * 32)
    assert model_flops_per_sequence(model, source, target, "megatron") == 3 * (encoder + decoder + head - halved)


@pytest.mark.parametrize(("given", "target"), [(20, 20), (0, 48)])
def test_palm_s_convention_takes_every_stack_at_its_own_length(given: int, target: int) -> None:
    model, source = _two_stacks(), 48
    # 12 a e s of each layer: 32 wide in the encoder and in itself, 64 (the mean of 32 and 96) across.
    cores = 12 * (32 * source * source + 2 * (32 * target * target + 64 * source * target))
    per_parameter = 6 * parameters(model).total * (source + target) / 2
    assert model_flops_per_sequence(model, source, given, "palm") == pytest.approx(per_parameter + cores, rel=1e-12)
