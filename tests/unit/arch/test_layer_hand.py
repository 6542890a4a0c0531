"""A layer as the list of its blocks, and parameters counted part by part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simulator.arch.attention import attention
from simulator.arch.embedding import head
from simulator.arch.experts import experts
from simulator.arch.feed_forward import feed_forward
from simulator.arch.layer import (
    embedding_segment,
    head_segment,
    layer_operations,
    layer_segment,
    mtp_segment,
    norm_segment,
)
from simulator.arch.linear import bias_dropout_add, linear, norm
from simulator.arch.operations import Operation, Saved
from simulator.arch.parameters import mtp_parameters, parameters
from simulator.arch.recurrent import lstm
from simulator.spec.model import (
    AttentionSpec,
    EmbeddingSpec,
    ExpertsSpec,
    FeedForwardSpec,
    HeadSpec,
    LayerSpec,
    LstmSpec,
    ModelSpec,
    StackSpec,
)
from tests.support import gpt, mixture
from tests.unit.arch.hand import kernels, shard

MODEL = gpt(12, 2, 2, vocab=101, seq_len=7)
ATTENTION = AttentionSpec(heads=2, kv_heads=1, head_dim=6, value_head_dim=6, out_bias=True)
ACROSS = AttentionSpec(heads=3, kv_heads=3, head_dim=4, value_head_dim=4, causal=False)
MLP = FeedForwardSpec(hidden=30, bias=True)
EXPERTS = ExpertsSpec(count=4, top_k=2, hidden=20, gated=True)
SPLIT = shard(seq_len=7, tp=3, sequence_parallel=True, memory_seq_len=5)
PLACE: dict[str, Any] = {"shard": SPLIT, "kernels": kernels()}
WIDE: dict[str, Any] = {"width": 12, **PLACE}


def _norm(name: str, *, model: ModelSpec = MODEL, **changes: Any) -> Operation:
    """Of 7 tokens a rank: 21 over 3 ranks."""
    return norm(name, tokens=7.0, width=12, kernels=kernels(), layernorm=model.norm == "layernorm",
                bias=model.norm_bias, **changes)  # fmt: skip


def _add(name: str, *, bias: bool) -> Operation:
    return bias_dropout_add(f"{name}.add", tokens=7.0, width=12, kernels=kernels(), bias=bias)


def test_every_block_has_its_norm_and_its_add() -> None:
    spec = LayerSpec(attention=ATTENTION, cross_attention=ACROSS, feed_forward=MLP, norms=3)
    assert layer_operations(spec, MODEL, **PLACE) == [
        _norm("attention.norm"), *attention(ATTENTION, **WIDE), _add("attention", bias=True),
        _norm("cross_attention.norm"), *attention(ACROSS, name="cross_attention", cross=True, **WIDE),
        _add("cross_attention", bias=False),
        _norm("mlp.norm"), *feed_forward(MLP, **WIDE), _add("mlp", bias=True),
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "bias"), [("layernorm", True), ("layernorm", False), ("rmsnorm", False)])
def test_experts_and_recurrent_layers_and_the_kind_of_norm(kind: Any, bias: bool) -> None:
    model = replace(MODEL, norm=kind, norm_bias=bias)
    spec = LayerSpec(attention=replace(ATTENTION, out_bias=False), experts=EXPERTS)
    assert layer_operations(spec, model, **PLACE) == [
        _norm("attention.norm", model=model), *attention(replace(ATTENTION, out_bias=False), **WIDE),
        _add("attention", bias=False),
        _norm("moe.norm", model=model), *experts(EXPERTS, **WIDE), _add("moe", bias=False),
    ]  # fmt: skip
    biased = layer_operations(LayerSpec(experts=replace(EXPERTS, bias=True), norms=1), model, **PLACE)
    assert biased[-1] == _add("moe", bias=True)
    cell = LstmSpec(hidden=9, projection=6)
    assert layer_operations(LayerSpec(lstm=cell, norms=1), model, **PLACE) == [
        _norm("lstm.norm", model=model), *lstm(cell, **WIDE), _add("lstm", bias=False)]  # fmt: skip


def test_a_block_without_a_norm_keeps_its_input() -> None:
    spec = LayerSpec(attention=ATTENTION, feed_forward=MLP, norms=1)
    found = layer_operations(spec, MODEL, **PLACE)
    kept = Operation(name="mlp.input", saves=(Saved(name="mlp.input", bytes=504.0, boundary=True),))
    assert found == [
        _norm("attention.norm"), *attention(ATTENTION, **WIDE), _add("attention", bias=True),
        kept, *feed_forward(MLP, **WIDE), _add("mlp", bias=True),
    ]  # fmt: skip
    first = layer_operations(replace(spec, norms=0), MODEL, **PLACE)[0]
    assert (first.name, first.saves[0].name) == ("attention.input", "attention.input")


def test_a_parallel_block_shares_one_norm() -> None:
    spec = LayerSpec(attention=ATTENTION, feed_forward=MLP, norms=1, parallel=True)
    shared = [*attention(ATTENTION, **WIDE), _add("attention", bias=True), *feed_forward(MLP, **WIDE),
              _add("mlp", bias=True)]  # fmt: skip
    assert layer_operations(spec, MODEL, **PLACE) == [_norm("attention.norm"), *shared]
    assert layer_operations(replace(spec, norms=2), MODEL, **PLACE) == [_norm("attention.norm"), *shared]
    kept = layer_operations(replace(spec, norms=0), MODEL, **PLACE)
    assert [operation.name for operation in kept if operation.name.endswith(".input")] == ["attention.input"]


def test_four_norms_stand_before_and_after_each_block() -> None:
    spec = LayerSpec(attention=ATTENTION, feed_forward=MLP, norms=4)
    after = {"output_saved": False, "modules": ()}
    assert layer_operations(spec, MODEL, **PLACE) == [
        _norm("attention.norm"), *attention(ATTENTION, **WIDE), _norm("attention.post_norm", **after),
        _add("attention", bias=True),
        _norm("mlp.norm"), *feed_forward(MLP, **WIDE), _norm("mlp.post_norm", **after), _add("mlp", bias=True),
    ]  # fmt: skip


@pytest.mark.parametrize("bias", [False, True])
def test_an_unfused_add_of_each_block_counts_its_own_bias(bias: bool) -> None:
    """One kernel for the residual and one for a bias, which no LSTM has."""
    unfused = {**PLACE, "kernels": kernels(fused_bias_dropout=False)}
    cell = LstmSpec(hidden=9, projection=6)
    for name, spec, counted in (
        ("attention", LayerSpec(attention=replace(ATTENTION, out_bias=bias)), bias),
        ("cross_attention", LayerSpec(cross_attention=replace(ACROSS, out_bias=bias)), bias),
        ("mlp", LayerSpec(feed_forward=replace(MLP, bias=bias)), bias),
        ("moe", LayerSpec(experts=replace(EXPERTS, bias=bias)), bias),
        ("lstm", LayerSpec(lstm=cell), False),
    ):
        add = layer_operations(spec, MODEL, **unfused)[-1]
        assert (add.name, [work.kernels for work in add.forward]) == (f"{name}.add", [2 if counted else 1])


def test_segments_are_named_and_know_their_input() -> None:
    """7 of 21 tokens of 12 x 2 bytes; a token's id takes 8 bytes on every rank."""
    spec = LayerSpec(attention=ATTENTION, feed_forward=MLP)
    layer = layer_segment(spec, MODEL, name="here", **PLACE)
    assert (layer.name, layer.input_bytes, layer.recomputable) == ("here", 168.0, True)
    assert layer.operations == tuple(layer_operations(spec, MODEL, **PLACE))
    opening = embedding_segment(MODEL, **PLACE)
    assert (opening.name, opening.input_bytes, opening.recomputable) == ("embedding", 168.0, False)
    assert opening.operations[0].name == "embedding"
    whole = embedding_segment(MODEL, shard=shard(seq_len=7), kernels=kernels(activation_dtype="fp32"))
    assert whole.input_bytes == 168.0
    end = head_segment(MODEL, **PLACE)
    assert (end.name, end.input_bytes, end.recomputable) == ("head", 168.0, False)
    assert end.operations == tuple(head(MODEL, **PLACE))
    stack = MODEL.stacks[0]
    last = norm_segment(MODEL, stack, **PLACE)
    assert (last.name, last.input_bytes, last.recomputable) == ("decoder.final_norm", 168.0, False)
    assert last.operations == (_norm("decoder.final_norm", modules=()),)
    assert norm_segment(MODEL, replace(stack, final_norm=False, role="encoder"), **PLACE).operations == ()


@pytest.mark.parametrize("dropout", [False, True])
def test_a_depth_of_multi_token_prediction_is_a_projection_a_layer_and_the_shared_head(dropout: bool) -> None:
    """DeepSeek-V3 section 2.2: two norms, 2 h onto h, a layer like the last, a norm, the trunk's own head."""
    other = LayerSpec(attention=ATTENTION, experts=EXPERTS)
    stack = StackSpec(role="decoder", runs=((LayerSpec(attention=ATTENTION, feed_forward=MLP), 2), (other, 1)))
    model = replace(MODEL, stacks=(stack,), head=HeadSpec(tied=False, bias=True, mtp_layers=1))
    chosen = {**PLACE, "kernels": kernels(dropout=dropout)}
    mask = (Saved(name="mtp.embedding.dropout_mask", bytes=84.0),) if dropout else ()
    found = mtp_segment(model, **chosen)
    assert (found.name, found.input_bytes, found.recomputable) == ("mtp", 168.0, False)
    shared = replace(model, head=replace(model.head, tied=True, bias=False))
    assert found.operations == (
        Operation(name="mtp.embedding", saves=mask),
        _norm("mtp.hidden_norm", input_saved=False, output_saved=False, modules=()),
        _norm("mtp.embedding_norm", output_saved=False, modules=()),
        linear("mtp.project", tokens=21.0, inputs=24, outputs=4.0, kernels=kernels(),
               saves=(Saved(name="mtp.joined", bytes=336.0),)),
        *layer_operations(other, model, **chosen),
        _norm("mtp.final_norm", modules=()),
        *head(shared, **chosen),
    )  # fmt: skip
    narrow = mtp_segment(model, shard=SPLIT, kernels=kernels(gemm_dtype="fp8")).operations[3]
    assert narrow.saves[0].bytes == 168.0
    # Two norms of 24, 24 x 12, the layer and the last norm; the head's table is the trunk's.
    layer = sum(float(weight.elements) for operation in layer_operations(other, model, shard=shard(), kernels=kernels())
                for weight in operation.weights)  # fmt: skip
    assert mtp_parameters(model) == 24 + 24 + 288 + layer + 24
    assert mtp_parameters(replace(model, head=replace(model.head, mtp_layers=3))) == 3 * mtp_parameters(model)
    assert mtp_parameters(replace(model, head=HeadSpec())) == 0


def test_parameters_part_by_part() -> None:
    """Rotary attention with one key-value head of 16 for 4, 8 experts of 3 x 64 x 128 and a shared one of 3 x 64 x 32,
    an RMS norm before either and one at the end, 1,000 rows of the table and of the head."""
    model = mixture(64, 3, 4, experts=8, top_k=2, expert_hidden=128)
    layer = model.stacks[0].runs[0][0]
    assert layer.experts is not None
    spec = replace(layer.experts, shared_hidden=32)
    attention = replace(layer.attention, kv_heads=1)
    dense = LayerSpec(attention=attention, feed_forward=FeedForwardSpec(hidden=100))
    runs = ((dense, 1), (replace(layer, attention=attention, experts=spec), 2))
    table = EmbeddingSpec(vocab=1000, width=64)
    model = replace(model, stacks=(StackSpec(role="decoder", runs=runs),), embedding=table)
    found = parameters(model)
    assert found.by_part == {
        "attention": 3 * (64 * (64 + 2 * 16) + 64 * 64), "norms": 3 * 2 * 64 + 64, "mlp": 2 * 64 * 100,
        "router": 2 * 64 * 8, "experts": 2 * 8 * 3 * 64 * 128, "shared_experts": 2 * 3 * 64 * 32,
        "embedding": 64000, "head": 64000,
    }  # fmt: skip
    assert found.total == sum(found.by_part.values())
    assert found.total - found.active == 2 * 6 * 3 * 64 * 128
    assert parameters(replace(model, seq_len=0)) == found


def test_what_a_token_does_not_visit_adds_up_over_kinds_of_layers() -> None:
    """Kinds of 3 x 64 x 128 and 3 x 64 x 100 in an expert, of which 6 of 8 and 2 of 3 are idle; counts are whole."""
    model = mixture(64, 3, 4, experts=8, top_k=2, expert_hidden=128)
    layer = model.stacks[0].runs[0][0]
    assert layer.experts is not None
    other = replace(layer, experts=replace(layer.experts, count=3, top_k=1, hidden=100))
    found = parameters(replace(model, stacks=(StackSpec(role="decoder", runs=((layer, 2), (other, 5))),)))
    assert found.total - found.active == 2 * 6 * 3 * 64 * 128 + 5 * 2 * 3 * 64 * 100
    assert isinstance(found.active, int)
