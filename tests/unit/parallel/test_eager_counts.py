"""The operators of single modules, each with what it makes and keeps, counted by hand.

A micro-batch of 3 sequences of 5 tokens: 15 rows of 7 elements, 210 bytes in bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from simulator.arch.parameters import COUNTING
from simulator.parallel.eager import Builder, attention, feed_forward
from simulator.parallel.liveness import Tensor
from simulator.parallel.recompute import Policy
from simulator.spec.model import AttentionSpec, FeedForwardSpec
from tests.node_lines import node_lines
from tests.support import gpt

KEEP_ALL = Policy()
UNFUSED = replace(COUNTING, fused_attention=False, fused_softmax=False)


def builder(*, policy: Policy = KEEP_ALL, kernels: Any = COUNTING, **model: Any) -> Builder:
    made = Builder(replace(gpt(7, 1, 1), **model), kernels, policy, batch=3)
    made.unit = "unit"
    return made


def lines(b: Builder, module: Callable[..., Any], *, last: str, **known: Tensor) -> list[str]:
    """What `module` appends, after a look at which tensor it gives."""
    given = module(*known.values())
    listed = node_lines(b.pieces, known, unit="unit")
    b.add("look", given, given)
    assert node_lines(b.pieces, known, unit="unit")[-1].startswith(f"look ({last} {last})")
    return listed


def test_a_product_keeps_its_input_and_a_bias_is_one_more_parameter() -> None:
    b, x = builder(), Tensor(210)
    assert lines(b, lambda x: b.linear("up", x, 7, 11, bias=True), x=x, last="up") == [
        f"up (x) -> {15 * 11 * 2} | keeps x | weights up.weight {7 * 11 * 2}, up.bias {11 * 2}"
    ]
    b = builder()
    assert lines(b, lambda x: b.linear("up", x, 7, 11), x=x, last="up") == [
        f"up (x) -> {15 * 11 * 2} | keeps x | weights up.weight {7 * 11 * 2}"
    ]


def test_a_sum_hands_its_gradient_on_and_dropout_keeps_a_byte_per_element() -> None:
    b, x = builder(), Tensor(210)
    assert lines(b, lambda x, y: b.add("sum", x, y), x=x, y=Tensor(210), last="sum") == ["sum (x y) -> 210 | passes"]
    b = builder()
    assert lines(b, lambda x: b.dropout("drop", x), x=x, last="x") == []
    b = builder(kernels=replace(COUNTING, dropout=True))
    assert lines(b, lambda x: b.dropout("drop", x), x=x, last="drop.0") == ["drop (x) -> 210, 105 | keeps drop.1"]


def test_layer_norm_keeps_its_input_and_two_numbers_per_row() -> None:
    b, x = builder(), Tensor(210)
    listed = lines(b, lambda x: b.norm("n", x), x=x, last="n.0")
    assert listed == ["n (x) -> 210, 30, 30 | keeps x n.1 n.2 | weights n.weight 14, n.bias 14"]
    b = builder(norm_bias=False)
    listed = lines(b, lambda x: b.norm("n", x), x=x, last="n.0")
    assert listed == ["n (x) -> 210, 30, 30 | keeps x n.1 n.2 | weights n.weight 14"]


def test_rms_norm_is_made_of_operators_in_fp32() -> None:
    """y = w (x r), r = rsqrt(mean(x^2)): backward of a product by a number per row, or per column, makes a product of
    the whole size before it sums it; that of the square makes x and 2 x.
    """
    wide = 15 * 7 * 4
    core = [
        f"n.pow (WIDE) -> {wide} | keeps WIDE | backward {2 * wide}",
        "n.mean (n.pow) -> 60",
        "n.rsqrt (n.mean) -> 60",
        f"n.normalised (WIDE n.rsqrt) -> {wide} | keeps WIDE n.rsqrt | backward {wide}",
    ]
    b = builder(norm="rmsnorm")
    assert lines(b, lambda x: b.norm("n", x), x=Tensor(210), last="n.narrow") == [
        f"n.wide (x) -> {wide}",
        *(line.replace("WIDE", "n.wide") for line in core),
        f"n.weight (n.normalised) -> {wide} | keeps n.normalised | weights n.weight 14 | backward {wide}",
        "n.narrow (n.weight) -> 210",
    ]
    b = builder(norm="rmsnorm", kernels=replace(COUNTING, activation_dtype="fp32"))
    assert lines(b, lambda x: b.norm("n", x), x=Tensor(wide), last="n.weight") == [
        *(line.replace("WIDE", "x") for line in core),
        f"n.weight (n.normalised) -> {wide} | keeps n.normalised | weights n.weight 28 | backward {wide}",
    ]


def test_views_lie_in_the_tensor_they_are_cut_from() -> None:
    b, x = builder(), Tensor(210)
    left, right = b.views("cut", x, 60, 150)
    b.add("sum", right, left)
    assert node_lines(b.pieces, {"x": x}, unit="unit") == [
        "cut (x) -> 60 of x, 150 of x", "sum (cut.1 cut.0) -> 150 | passes"]  # fmt: skip


UP, DOWN = f"keeps x | weights mlp.up.weight {7 * 13 * 2}", f"weights mlp.down.weight {13 * 7 * 2}"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (FeedForwardSpec(hidden=13, bias=True), [
            f"mlp.up (x) -> {15 * 13 * 2} | {UP}, mlp.up.bias 26",
            "mlp.gelu (mlp.up) -> 390 | keeps mlp.up",
            f"mlp.down (mlp.gelu) -> 210 | keeps mlp.gelu | {DOWN}, mlp.down.bias 14",
        ]),
        # ReLU's derivative reads its output, so its input goes.
        (FeedForwardSpec(hidden=13, activation="relu"), [
            f"mlp.up (x) -> 390 | {UP}",
            "mlp.relu (mlp.up) -> 390 | keeps mlp.relu",
            f"mlp.down (mlp.relu) -> 210 | keeps mlp.relu | {DOWN}",
        ]),
        (FeedForwardSpec(hidden=13, activation="relu2"), [
            f"mlp.up (x) -> 390 | {UP}",
            "mlp.relu2 (mlp.up) -> 390 | keeps mlp.relu2",
            "mlp.relu2.square (mlp.relu2) -> 390 | keeps mlp.relu2",
            f"mlp.down (mlp.relu2.square) -> 210 | keeps mlp.relu2.square | {DOWN}",
        ]),
        # Gate and up are halves of one product.
        (FeedForwardSpec(hidden=13, activation="silu", gated=True), [
            f"mlp.up (x) -> {15 * 26 * 2} | keeps x | weights mlp.up.weight {7 * 26 * 2}",
            "mlp.chunk (mlp.up) -> 390 of mlp.up, 390 of mlp.up",
            "mlp.silu (mlp.chunk.0) -> 390 | keeps mlp.chunk.0",
            "mlp.gated (mlp.silu mlp.chunk.1) -> 390 | keeps mlp.silu mlp.chunk.1",
            f"mlp.down (mlp.gated) -> 210 | keeps mlp.gated | {DOWN}",
        ]),
        (FeedForwardSpec(hidden=13, activation="relu", gated=True), [
            f"mlp.up (x) -> {15 * 26 * 2} | keeps x | weights mlp.up.weight {7 * 26 * 2}",
            "mlp.chunk (mlp.up) -> 390 of mlp.up, 390 of mlp.up",
            "mlp.relu (mlp.chunk.0) -> 390 | keeps mlp.relu",
            "mlp.gated (mlp.relu mlp.chunk.1) -> 390 | keeps mlp.relu mlp.chunk.1",
            f"mlp.down (mlp.gated) -> 210 | keeps mlp.gated | {DOWN}",
        ]),
    ],
    ids=["gelu", "relu", "relu2", "gated", "gated relu"],
)  # fmt: skip
def test_a_feed_forward_keeps_what_its_derivatives_read(spec: FeedForwardSpec, expected: list[str]) -> None:
    b = builder()
    assert lines(b, lambda x: feed_forward(b, "mlp", x, spec), x=Tensor(210), last="mlp.down") == expected


# 6 x 11 columns of queries, 2 x 11 of keys, 2 x 13 of values: 114 of each of the 15 rows.
HEADS = AttentionSpec(heads=6, kv_heads=2, head_dim=11, value_head_dim=13)
Q, K, V, CONTEXT = (15 * columns * 2 for columns in (66, 22, 26, 78))


def attended(b: Builder, spec: AttentionSpec) -> list[str]:
    return lines(b, lambda x: attention(b, "a", x, spec), x=Tensor(210), last="a.out")


def test_attention_in_one_operator_keeps_its_inputs_output_and_row_sums() -> None:
    spec = replace(HEADS, rope_head_dim=11, qkv_bias=True, out_bias=True)
    b = builder()
    turned = [
        line
        for letter, part, size in (("q", "a.split.0", Q), ("k", "a.split.1", K))
        for line in (
            f"a.rotary_{letter}.negative ({part}) -> {size // 2} | backward {size // 2}",
            f"a.rotary_{letter}.turned ({part} a.rotary_{letter}.negative) -> {size}",
            f"a.rotary_{letter}.cos ({part}) -> {size}",
            f"a.rotary_{letter}.sin (a.rotary_{letter}.turned) -> {size}",
            f"a.rotary_{letter} (a.rotary_{letter}.cos a.rotary_{letter}.sin) -> {size} | passes",
        )
    ]
    read = "a.rotary_q a.rotary_k a.split.2"
    assert attended(b, spec) == [
        f"a.qkv (x) -> {15 * 114 * 2} | keeps x | weights a.qkv.weight {7 * 114 * 2}, a.qkv.bias 228",
        f"a.split (a.qkv) -> {Q} of a.qkv, {K} of a.qkv, {V} of a.qkv",
        *turned,
        f"a.core ({read}) -> {CONTEXT}, {15 * 6 * 4} | keeps {read} a.core.0 a.core.1",
        f"a.out (a.core.0) -> 210 | keeps a.core.0 | weights a.out.weight {78 * 7 * 2}, a.out.bias 14",
    ]
    # Cosines and sines of 11 columns, and a mask, for 5 tokens.
    assert b.constant_bytes == {("rotary", 5): 2 * 5 * 11 * 2, ("mask", 5): 5 * 5 * 2}
    b = builder()
    assert attended(b, replace(HEADS, causal=False)) == [
        f"a.qkv (x) -> {15 * 114 * 2} | keeps x | weights a.qkv.weight {7 * 114 * 2}",
        f"a.split (a.qkv) -> {Q} of a.qkv, {K} of a.qkv, {V} of a.qkv",
        (
            f"a.core (a.split.0 a.split.1 a.split.2) -> {CONTEXT}, {15 * 6 * 4} "
            "| keeps a.split.0 a.split.1 a.split.2 a.core.0 a.core.1"
        ),
        f"a.out (a.core.0) -> 210 | keeps a.core.0 | weights a.out.weight {78 * 7 * 2}",
    ]
    assert b.constant_bytes == {}


def test_attention_by_two_products_keeps_copies_and_probabilities() -> None:
    """3 x 6 heads of 5 x 5 scores: 900 bytes in bf16, 1800 where softmax answers in fp32."""
    copies = [f"a.{letter}_copy (a.split.{number}) -> {size}" for number, (letter, size) in
              enumerate((("q", Q), ("k", K), ("v", V)))]  # fmt: skip
    scores = ["a.scores (a.q_copy a.k_copy) -> 900 | keeps a.q_copy a.k_copy", "a.scale (a.scores) -> 900"]
    assert attended(builder(kernels=replace(UNFUSED, dropout=True)), HEADS)[2:-1] == [
        *copies,
        *scores,
        "a.mask (a.scale) -> 900 | passes",
        # Its backward makes the fp32 gradient before the narrow one.
        "a.softmax (a.mask) -> 1800 | keeps a.softmax | backward 900",
        "a.probabilities (a.softmax) -> 900",
        "a.probability_dropout (a.probabilities) -> 900, 450 | keeps a.probability_dropout.1",
        f"a.context (a.probability_dropout.0 a.v_copy) -> {CONTEXT} | keeps a.probability_dropout.0 a.v_copy",
        f"a.context_copy (a.context) -> {CONTEXT}",
    ]
    fused = attended(builder(kernels=replace(UNFUSED, fused_softmax=True)), replace(HEADS, causal=False))
    assert fused[2:] == [
        *copies,
        *scores,
        "a.softmax (a.scale) -> 900 | keeps a.softmax",
        f"a.context (a.softmax a.v_copy) -> {CONTEXT} | keeps a.softmax a.v_copy",
        f"a.context_copy (a.context) -> {CONTEXT}",
        f"a.out (a.context_copy) -> 210 | keeps a.context_copy | weights a.out.weight {78 * 7 * 2}",
    ]


def test_a_fp32_softmax_of_fp32_scores_is_not_narrowed() -> None:
    b, x = builder(kernels=replace(UNFUSED, activation_dtype="fp32")), Tensor(420)
    listed = lines(b, lambda x: attention(b, "a", x, replace(HEADS, causal=False)), x=x, last="a.out")
    assert listed[6:9] == [
        "a.scale (a.scores) -> 1800",
        "a.softmax (a.scale) -> 1800 | keeps a.softmax",
        f"a.context (a.softmax a.v_copy) -> {2 * CONTEXT} | keeps a.softmax a.v_copy",
    ]


def test_cross_attention_takes_keys_and_values_from_17_tokens_of_memory() -> None:
    b = builder(kernels=replace(UNFUSED, fused_softmax=True))
    spec = replace(HEADS, causal=False, qkv_bias=True)
    listed = lines(b, lambda x, m: attention(b, "a", x, spec, memory=m), x=Tensor(210), m=Tensor(3 * 17 * 7 * 2),
                   last="a.out")  # fmt: skip
    keys, values, scores = 51 * 22 * 2, 51 * 26 * 2, 18 * 5 * 17 * 2
    assert listed[:-2] == [
        f"a.q (x) -> {Q} | keeps x | weights a.q.weight {7 * 66 * 2}, a.q.bias 132",
        f"a.kv (m) -> {51 * 48 * 2} | keeps m | weights a.kv.weight {7 * 48 * 2}, a.kv.bias 96",
        f"a.split (a.kv) -> {keys} of a.kv, {values} of a.kv",
        f"a.q_copy (a.q) -> {Q}",
        f"a.k_copy (a.split.0) -> {keys}",
        f"a.v_copy (a.split.1) -> {values}",
        f"a.scores (a.q_copy a.k_copy) -> {scores} | keeps a.q_copy a.k_copy",
        f"a.scale (a.scores) -> {scores}",
        f"a.softmax (a.scale) -> {scores} | keeps a.softmax",
        f"a.context (a.softmax a.v_copy) -> {CONTEXT} | keeps a.softmax a.v_copy",
    ]
    assert b.constant_bytes == {}


def test_a_recomputed_core_is_run_again_and_the_products_around_it_are_not() -> None:
    b = builder(policy=Policy(modules=frozenset({"core_attn"})))
    assert [line.split(" (")[0] for line in attended(b, HEADS)] == ["a.qkv", "a.split", "* a.core", "a.out"]
    b = builder(policy=Policy(modules=frozenset({"mlp"})))
    assert [line.split(" (")[0] for line in attended(b, HEADS)] == ["a.qkv", "a.split", "a.core", "a.out"]
