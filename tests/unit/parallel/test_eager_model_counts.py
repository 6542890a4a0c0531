"""Whole models as operators, in order, each with what it makes and keeps, counted by hand.

A micro-batch of 3 sequences of 5 tokens: 15 rows of 7 elements, 210 bytes in bf16. 19 words, 23 positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simulator.arch.parameters import COUNTING
from simulator.errors import InputError
from simulator.parallel.eager_model import Traced, trace
from simulator.parallel.recompute import Policy
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
from tests.node_lines import node_lines
from tests.support import gpt

ONE_HEAD = AttentionSpec(heads=1, kv_heads=1, head_dim=7, value_head_dim=7)
SEEING_ALL = replace(ONE_HEAD, causal=False)
KEEP_ALL = Policy()
WORDS = "embedding.tokens () -> 210 | weights embedding.tokens 266"


def model(*stacks: StackSpec, **fields: Any) -> ModelSpec:
    plain = replace(gpt(7, 1, 1), stacks=stacks, norm_bias=False, embedding=EmbeddingSpec(vocab=19, width=7),
                    head=HeadSpec(tied=False))  # fmt: skip
    return replace(plain, **fields)


def decoder(*layers: LayerSpec, **fields: Any) -> StackSpec:
    return StackSpec(role="decoder", runs=tuple((layer, 1) for layer in layers), **fields)


def traced(spec: ModelSpec, policy: Policy = KEEP_ALL, *, target: int = 0, **kernels: Any) -> Traced:
    lengths = {"seq_len": 5, "target_seq_len": target} if target else {"seq_len": 5}
    return trace(spec, replace(COUNTING, **kernels), policy, batch=3, **lengths)


def lines(found: Traced) -> list[str]:
    return node_lines(found.pieces, {})


def attended(x: str, *, width: int = 210) -> list[str]:
    """Attention without biases in one operator; `@` stands for the unit."""
    row_sums = width // 14 * 4
    return [
        f"@attention.qkv ({x}) -> {3 * width} | keeps {x} | weights @attention.qkv.weight {7 * 21 * 2}",
        "@attention.split (@attention.qkv) -> " + ", ".join([f"{width} of @attention.qkv"] * 3),
        (
            "@attention.core (@attention.split.0 @attention.split.1 @attention.split.2) "
            f"-> {width}, {row_sums} | keeps @attention.split.0 @attention.split.1 @attention.split.2 "
            "@attention.core.0 @attention.core.1"
        ),
        f"@attention.out (@attention.core.0) -> {width} | keeps @attention.core.0 | weights @attention.out.weight 98",
    ]


def normed(name: str, x: str, *, width: int = 210, bias: bool = False) -> str:
    weights = f"{name}.weight 14, {name}.bias 14" if bias else f"{name}.weight 14"
    return f"{name} ({x}) -> {width}, {width // 7}, {width // 7} | keeps {x} {name}.1 {name}.2 | weights {weights}"


def of(unit: str, *lists: list[str]) -> list[str]:
    return [line.replace("@", f"{unit}.") for each in lists for line in each]


def test_a_gpt_is_embedding_layers_norm_and_head() -> None:
    """The tied table is one parameter; positions are read in part, so their gradient is first made at that size; the
    logits are widened to fp32, and the loss keeps log-probabilities and targets of 8 bytes.
    """
    ((layer, _),) = gpt(7, 1, 1).stacks[0].runs
    spec = model(StackSpec(role="decoder", runs=((layer, 2),)), norm_bias=True, head=HeadSpec(tied=True, bias=True),
                 embedding=EmbeddingSpec(vocab=19, width=7, learned_positions=23))  # fmt: skip

    def whole(unit: str, x: str) -> list[str]:
        core = attended("@attention.norm.0")
        core[0] += ", @attention.qkv.bias 42"
        core[3] += ", @attention.out.bias 14"
        return of(unit, [
            normed("@attention.norm", x, bias=True),
            *core,
            f"@attention.add ({x} @attention.out) -> 210 | passes",
            normed("@mlp.norm", "@attention.add", bias=True),
            "@mlp.up (@mlp.norm.0) -> 840 | keeps @mlp.norm.0 | weights @mlp.up.weight 392, @mlp.up.bias 56",
            "@mlp.gelu (@mlp.up) -> 840 | keeps @mlp.up",
            "@mlp.down (@mlp.gelu) -> 210 | keeps @mlp.gelu | weights @mlp.down.weight 392, @mlp.down.bias 14",
            "@mlp.add (@attention.add @mlp.down) -> 210 | passes",
        ])  # fmt: skip

    found = traced(spec)
    logits = 15 * 19 * 4
    assert lines(found) == [
        WORDS,
        "embedding.positions (embedding.tokens) -> 210 | weights embedding.positions 322 | backward 70 | passes",
        *whole("decoder.0", "embedding.positions"),
        *whole("decoder.1", "decoder.0.mlp.add"),
        normed("decoder.end.norm", "decoder.1.mlp.add", bias=True),
        (
            f"head.logits (decoder.end.norm.0) -> {logits // 2} | keeps decoder.end.norm.0 "
            "| weights embedding.tokens 266, head.bias 38"
        ),
        f"head.logits_fp32 (head.logits) -> {logits}",
        f"head.log_softmax (head.logits_fp32) -> {logits} | keeps head.log_softmax",
        "head.targets () -> 120",
        f"head.gather (head.log_softmax) -> 60 | keeps head.targets | backward {logits}",
        "head.mean (head.gather) -> 4",
    ]
    assert [name for name, _ in found.units] == ["embedding", "decoder.0", "decoder.1", "decoder.end", "head"]
    assert [len(pieces) for _, pieces in found.units] == [2, 11, 11, 1, 6]
    assert found.layers == ("decoder.0", "decoder.1")
    # A mask of 5 x 5 for all layers, the loss and its gradient.
    assert (found.constant_bytes, found.element_bytes) == (50 + 2 * 4, 2)


def test_norms_after_the_blocks_leave_no_final_one() -> None:
    """BERT's order with dropout: block, dropout, add, norm. A loss in bf16 widens nothing."""
    layer = LayerSpec(attention=SEEING_ALL, norms=1)
    words = EmbeddingSpec(vocab=19, width=7, token_types=2, norm=True)
    spec = model(StackSpec(role="encoder", runs=((layer, 1),), final_norm=False), embedding=words)
    found = traced(spec, dropout=True, logits_dtype="bf16")
    logits = 15 * 19 * 2
    assert lines(found) == [
        WORDS,
        "embedding.token_types (embedding.tokens) -> 210 | weights embedding.types 28 | passes",
        normed("embedding.norm", "embedding.token_types"),
        "embedding.dropout (embedding.norm.0) -> 210, 105 | keeps embedding.dropout.1",
        *of("encoder.0", attended("embedding.dropout.0"), [
            "@attention.dropout (@attention.out) -> 210, 105 | keeps @attention.dropout.1",
            "@attention.add (embedding.dropout.0 @attention.dropout.0) -> 210 | passes",
            normed("@attention.norm", "@attention.add"),
        ]),
        (f"head.logits (encoder.0.attention.norm.0) -> {logits} | keeps encoder.0.attention.norm.0 "
        "| weights head.weight 266"),
        f"head.log_softmax (head.logits) -> {logits} | keeps head.log_softmax",
        "head.targets () -> 120",
        f"head.gather (head.log_softmax) -> 30 | keeps head.targets | backward {logits}",
        "head.mean (head.gather) -> 2",
    ]  # fmt: skip
    assert found.constant_bytes == 2 * 2


def test_a_decoder_reads_the_encoder_s_normed_output_in_every_layer() -> None:
    """3 target tokens a sequence: 9 rows of 126 bytes. Whole layers are run again."""
    below = LayerSpec(attention=SEEING_ALL, norms=1)
    above = LayerSpec(attention=ONE_HEAD, cross_attention=SEEING_ALL, norms=2)
    spec = model(StackSpec(role="encoder", runs=((below, 1),)), decoder(above, above))

    def upper(unit: str, x: str) -> list[str]:
        listed = of(unit, [
            normed("@attention.norm", x, width=126),
            *attended("@attention.norm.0", width=126),
            f"@attention.add ({x} @attention.out) -> 126 | passes",
            normed("@cross_attention.norm", "@attention.add", width=126),
            ("@cross_attention.q (@cross_attention.norm.0) -> 126 | keeps @cross_attention.norm.0 "
            "| weights @cross_attention.q.weight 98"),
            ("@cross_attention.kv (encoder.end.norm.0) -> 420 | keeps encoder.end.norm.0 "
            "| weights @cross_attention.kv.weight 196"),
            "@cross_attention.split (@cross_attention.kv) -> 210 of @cross_attention.kv, 210 of @cross_attention.kv",
            ("@cross_attention.core (@cross_attention.q @cross_attention.split.0 @cross_attention.split.1) -> 126, 36 "
            "| keeps @cross_attention.q @cross_attention.split.0 @cross_attention.split.1 @cross_attention.core.0 "
            "@cross_attention.core.1"),
            ("@cross_attention.out (@cross_attention.core.0) -> 126 | keeps @cross_attention.core.0 "
            "| weights @cross_attention.out.weight 98"),
            "@cross_attention.add (@attention.add @cross_attention.out) -> 126 | passes",
        ])  # fmt: skip
        return [f"* {line}" for line in listed]

    found = traced(spec, Policy(full=True), target=3)
    lower = of("encoder.0", [
        normed("@attention.norm", "embedding.tokens"), *attended("@attention.norm.0"),
        "@attention.add (embedding.tokens @attention.out) -> 210 | passes",
    ])  # fmt: skip
    assert lines(found)[:-5] == [
        WORDS,
        *(f"* {line}" for line in lower),
        normed("encoder.end.norm", "encoder.0.attention.add"),
        WORDS.replace("210", "126"),
        *upper("decoder.0", "embedding.tokens"),
        *upper("decoder.1", "decoder.0.cross_attention.add"),
        normed("decoder.end.norm", "decoder.1.cross_attention.add", width=126),
        f"head.logits (decoder.end.norm.0) -> {9 * 19 * 2} | keeps decoder.end.norm.0 | weights head.weight 266",
    ]
    assert found.layers == ("encoder.0", "decoder.0", "decoder.1")
    # A mask of 3 x 3 alone: the encoder and the look at its output see all.
    assert found.constant_bytes == 3 * 3 * 2 + 2 * 4
    same = [line for line in lines(traced(spec)) if line.startswith("embedding")]
    assert same == [WORDS, WORDS]


def experts(spec: ExpertsSpec) -> list[str]:
    found = traced(model(decoder(LayerSpec(experts=spec, norms=1))))
    return [line.replace("decoder.0.", "@") for line in lines(found)][2:-7]


def test_dropless_experts_keep_row_numbers_and_where_each_expert_ends() -> None:
    """15 tokens at 2 of 5 experts: 30 rows of 7 elements in, 11 inside; indices of 8 bytes, offsets of 4."""
    assert experts(ExpertsSpec(count=5, top_k=2, hidden=11)) == [
        f"@moe.router.logits (@moe.norm.0) -> {15 * 5 * 2} | keeps @moe.norm.0 | weights @moe.router.weight 70",
        f"@moe.router.softmax (@moe.router.logits) -> {15 * 5 * 4} | keeps @moe.router.softmax",
        "@moe.router.top_k (@moe.router.softmax) -> 120, 240 | keeps @moe.router.top_k.1 | backward 300",
        "@moe.order () -> 240, 240",
        "@moe.permute (@moe.norm.0) -> 420 | keeps @moe.order.1 | backward 210",
        "@moe.offsets () -> 20",
        f"@moe.up (@moe.permute) -> 660 | keeps @moe.permute @moe.offsets | weights @moe.up {5 * 7 * 11 * 2}",
        "@moe.gelu (@moe.up) -> 660 | keeps @moe.up",
        f"@moe.down (@moe.gelu) -> 420 | keeps @moe.gelu @moe.offsets | weights @moe.down {5 * 11 * 7 * 2}",
        "@moe.weights (@moe.router.top_k.0) -> 60 | keeps @moe.order.0",
        "@moe.weighted (@moe.down @moe.weights) -> 420 | keeps @moe.down @moe.weights | backward 420",
        "@moe.unpermute (@moe.weighted) -> 210 | keeps @moe.order.1 | forward 210",
        "@moe.add (embedding.tokens @moe.unpermute) -> 210 | passes",
    ]


def test_experts_with_room_for_half_as_much_again_beside_a_shared_one() -> None:
    """45 rows; gate and up are 22 columns; the shared expert of 13 sees the 15 tokens as they are."""
    spec = ExpertsSpec(count=5, top_k=2, hidden=11, gated=True, activation="silu", capacity_factor=1.5,
                       router_bias=True, shared_hidden=13)  # fmt: skip
    listed = experts(spec)
    assert listed[0].endswith("| weights @moe.router.weight 70, @moe.router.bias 10")
    assert listed[3:] == [
        "@moe.order () -> 360, 360",
        "@moe.permute (@moe.norm.0) -> 630 | keeps @moe.order.1 | backward 210",
        f"@moe.up (@moe.permute) -> {45 * 22 * 2} | keeps @moe.permute | weights @moe.up {5 * 7 * 22 * 2}",
        "@moe.chunk (@moe.up) -> 990 of @moe.up, 990 of @moe.up",
        "@moe.silu (@moe.chunk.0) -> 990 | keeps @moe.chunk.0",
        "@moe.gated (@moe.silu @moe.chunk.1) -> 990 | keeps @moe.silu @moe.chunk.1",
        f"@moe.down (@moe.gated) -> 630 | keeps @moe.gated | weights @moe.down {5 * 11 * 7 * 2}",
        "@moe.weights (@moe.router.top_k.0) -> 90 | keeps @moe.order.0",
        "@moe.weighted (@moe.down @moe.weights) -> 630 | keeps @moe.down @moe.weights | backward 630",
        "@moe.unpermute (@moe.weighted) -> 210 | keeps @moe.order.1 | forward 210",
        f"@moe.shared.up (@moe.norm.0) -> {15 * 26 * 2} | keeps @moe.norm.0 | weights @moe.shared.up.weight 364",
        "@moe.shared.chunk (@moe.shared.up) -> 390 of @moe.shared.up, 390 of @moe.shared.up",
        "@moe.shared.silu (@moe.shared.chunk.0) -> 390 | keeps @moe.shared.chunk.0",
        "@moe.shared.gated (@moe.shared.silu @moe.shared.chunk.1) -> 390 | keeps @moe.shared.silu @moe.shared.chunk.1",
        "@moe.shared.down (@moe.shared.gated) -> 210 | keeps @moe.shared.gated | weights @moe.shared.down.weight 182",
        "@moe.shared.add (@moe.unpermute @moe.shared.down) -> 210 | passes",
        "@moe.add (embedding.tokens @moe.shared.add) -> 210 | passes",
    ]


ROUTED = ExpertsSpec(count=5, top_k=2, hidden=11)
HEADS, LAYER, WORDS_ALONE = (
    HeadSpec(tied=False),
    LayerSpec(attention=ONE_HEAD, norms=1),
    EmbeddingSpec(vocab=19, width=7),
)
MORE_OF_EXPERTS = "experts with biases, noise, two levels or gates of their own"
NORMS = "recurrent layers and layers without one norm per block"


def attending(**fields: Any) -> dict[str, Any]:
    """A model whose attention has these fields."""
    return {"stacks": (decoder(LayerSpec(attention=replace(ONE_HEAD, **fields), norms=1)),)}


def layered(**fields: Any) -> dict[str, Any]:
    return {"stacks": (decoder(LayerSpec(**fields)),)}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"head": replace(HEADS, mtp_layers=1)}, "multi-token prediction"),
        ({"embedding": replace(WORDS_ALONE, width=5)}, "narrow embeddings"),
        ({"head": replace(HEADS, transform=True)}, "BERT's heads"),
        ({"head": replace(HEADS, pooler=True)}, "BERT's heads"),
        (attending(kv_lora_rank=3), "latent attention"),
        (attending(qk_norm=True), "norms of q and k"),
        (attending(sinks=True), "attention sinks"),
        (attending(relative_bias=True), "relative position biases"),
        (attending(window=2), "attention windows"),
        (attending(chunk=2), "attention windows"),
        (attending(rope_head_dim=4), "partly rotated heads"),
        (layered(attention=ONE_HEAD, cross_attention=replace(ONE_HEAD, sinks=True)), "attention sinks"),
        (layered(attention=ONE_HEAD, norms=1, parallel=True), "parallel blocks"),
        (layered(attention=ONE_HEAD), NORMS),
        (layered(attention=ONE_HEAD, feed_forward=FeedForwardSpec(hidden=8), norms=1), NORMS),
        (layered(lstm=LstmSpec(hidden=8), norms=0), NORMS),
        (layered(experts=replace(ROUTED, bias=True), norms=1), MORE_OF_EXPERTS),
        (layered(experts=replace(ROUTED, branching=2), norms=1), MORE_OF_EXPERTS),
        (layered(experts=replace(ROUTED, router_matrices=2), norms=1), MORE_OF_EXPERTS),
        (layered(experts=replace(ROUTED, extra_feed_forward=FeedForwardSpec(hidden=8)), norms=1), MORE_OF_EXPERTS),
        (layered(experts=replace(ROUTED, shared_gate=True), norms=1), MORE_OF_EXPERTS),
        ({"head": replace(HEADS, mtp_layers=1, pooler=True)} | attending(sinks=True),
         "BERT's heads, attention sinks, multi-token prediction"),
    ],
)  # fmt: skip
def test_blocks_without_operators_are_refused_by_name(fields: dict[str, Any], words: str) -> None:
    others = {name: value for name, value in fields.items() if name != "stacks"}
    with pytest.raises(InputError) as refused:
        traced(model(*fields.get("stacks", (decoder(LAYER),)), **others))
    assert f"not modelled for {words}." in str(refused.value)
