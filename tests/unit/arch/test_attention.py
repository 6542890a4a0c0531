"""Attention counted by hand: projections, positions, the core fused and in parts, context parallelism, latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.arch.attention import attention, local_kv_heads
from simulator.arch.operations import AttentionCore, Collective, Gemm, Operation, Pointwise, Saved, Weight
from simulator.spec.model import AttentionSpec
from tests.unit.arch.hand import kernels, shard

CORE = ("core_attn", "attention")
T = 420
"""Tokens of one rank: 3 sequences of 140."""


def spec(**changes: Any) -> AttentionSpec:
    """6 query heads of 10, 2 key heads, values of 14; width 5 in the tests."""
    return AttentionSpec(**{"heads": 6, "kv_heads": 2, "head_dim": 10, "value_head_dim": 14, **changes})


def parts(own: AttentionSpec, *, cross: bool = False, sizes: dict[str, Any] | None = None, **changes: Any
          ) -> dict[str, Operation]:  # fmt: skip
    found = attention(own, width=5, shard=shard(**(sizes or {})), kernels=kernels(**changes), cross=cross, name="a")
    names = [operation.name for operation in found]
    assert len(set(names)) == len(names)
    assert (names[0], names[-2], names[-1]) == ("a.enter", "a.out", "a.leave")
    return {operation.name.removeprefix("a."): operation for operation in found}


def test_key_heads_split_until_they_are_replicated() -> None:
    assert [local_kv_heads(spec(), tp) for tp in (1, 2, 4)] == [2.0, 1.0, 1.0]
    assert list(local_kv_heads(spec(), np.array([1, 2, 4]))) == [2.0, 1.0, 1.0]


def test_attention_is_a_layer_s_own_unless_it_is_said_to_cross() -> None:
    found = attention(spec(), width=5, shard=shard(), kernels=kernels())
    names = ["enter", "qkv", "core", "out", "leave"]
    assert [operation.name for operation in found] == [f"attention.{name}" for name in names]


@pytest.mark.parametrize(("tp", "query", "key", "value"), [(1, 60, 20, 28), (2, 30, 10, 14), (3, 20, 10, 14)])
def test_query_key_and_value_are_one_product(tp: int, query: int, key: int, value: int) -> None:
    columns = query + key + value
    found = parts(spec(), sizes={"tp": tp})
    assert list(found) == ["enter", "qkv", "core", "out", "leave"]
    assert found["qkv"].forward == (Gemm(m=T, n=columns, k=5),)
    assert found["qkv"].weights == (Weight(name="a.qkv.weight", elements=5 * columns),)
    assert found["qkv"].modules == found["out"].modules == ("attention",)
    assert found["qkv"].saves == tuple(
        Saved(name=f"a.{name}", bytes=T * size * 2.0) for name, size in (("q", query), ("k", key), ("v", value))
    )
    assert found["out"].forward == (Gemm(m=T, n=5, k=84 / tp),)
    assert found["out"].saves == (Saved(name="a.core.output", bytes=T * 84 / tp * 2.0),)
    sent = 0 if tp == 1 else 1
    assert len(found["enter"].input_grad) == len(found["leave"].forward) == sent
    if sent:
        assert found["enter"].input_grad[0].bytes == found["leave"].forward[0].bytes == T * 5 * 2.0


def test_the_output_of_the_core_may_be_kept_narrower() -> None:
    plain, found = parts(spec())["out"], parts(spec(), attention_output_dtype="e5m6")["out"]
    copy = Pointwise(bytes=T * 84 * 3.5, kernel="cast")
    assert found.saves == (Saved(name="a.core.output", bytes=T * 84 * 1.5),)
    assert (found.forward, found.input_grad) == ((*plain.forward, copy), (*plain.input_grad, copy))
    assert found.weight_grad == plain.weight_grad


def test_biases_of_the_projections() -> None:
    found = parts(spec(qkv_bias=True, out_bias=True), sizes={"tp": 2})
    assert found["qkv"].weights[1] == Weight(name="a.qkv.bias", elements=54.0)
    assert found["out"].weights[1] == Weight(name="a.out.bias", elements=5)
    assert parts(spec(qkv_bias=True))["out"].weights == (Weight(name="a.out.weight", elements=420),)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_norms_of_query_and_key(shared: bool, fused: bool) -> None:
    """80 columns of query and key; a row is a head of 10, or all of one kind's columns."""
    found = parts(spec(qk_norm=True, qk_norm_shared=shared), fused_norm=fused)["qk_norm"]
    assert found.forward == (Pointwise(bytes=T * 80 * 4.0, kernels=2),)
    assert found.input_grad == (Pointwise(bytes=T * 80 * 6.0, kernels=2),)
    assert found.weights == (Weight(name="a.qk_norm", elements=20 if shared else 80, sequence_replicated=shared),)
    assert found.modules == ("attention",)
    rows = {"q": T * 6 if shared else T, "k": T * 2 if shared else T}
    expected = []
    for name, columns in (("q", 60), ("k", 20)):
        expected += [Saved(name=f"a.{name}_norm.input", bytes=T * columns * (2.0 if fused else 4.0)),
                     Saved(name=f"a.{name}_norm.scale", bytes=rows[name] * 4.0, statistic=True)]  # fmt: skip
        expected += [] if fused else [Saved(name=f"a.{name}_norm.normalised", bytes=T * columns * 2.0)]
    assert found.saves == tuple(expected)
    compiled = parts(spec(qk_norm=True), fused_norm=False, compiled=True)["qk_norm"]
    assert compiled == parts(spec(qk_norm=True))["qk_norm"]


@pytest.mark.parametrize(
    ("turned", "changes", "bytes_per_element", "launches"),
    [(10, {}, 4.0, 2), (5, {}, 2.0, 2), (10, {"fused_rope": False}, 20.0, 10),
     (10, {"fused_rope": False, "compiled": True}, 4.0, 2)],
)  # fmt: skip
def test_rotary_positions_turn_queries_and_keys(
    turned: int, changes: dict[str, Any], bytes_per_element: float, launches: int
) -> None:
    found = parts(spec(rope_head_dim=turned), **changes)["rope"]
    moved = Pointwise(bytes=T * 80 * bytes_per_element, kernels=launches, kernel="rope")
    assert found.forward == (moved,)
    assert found.input_grad == (Pointwise(bytes=moved.bytes, kernels=launches, kernel="rope_grad"),)
    assert found.modules == ("attention",)


def _core(backward: bool, **changes: Any) -> AttentionCore:
    usual = {"batch": 3, "heads": 6, "kv_heads": 2, "q_len": 140, "kv_len": 140, "head_dim": 10, "value_head_dim": 14}
    return AttentionCore(**{**usual, "causal": True, "backward": backward, **changes})


def test_the_fused_core_keeps_a_log_sum_per_row() -> None:
    """3 x 6 x 140 rows of 4 bytes."""
    found = parts(spec(), attention_kernel="fa3")["core"]
    assert found == Operation(
        name="a.core", forward=(_core(False, kernel="fa3"),), input_grad=(_core(True, kernel="fa3"),),
        saves=(Saved(name="a.core.logsumexp", bytes=2520 * 4.0, statistic=True),), modules=CORE,
    )  # fmt: skip


@pytest.mark.parametrize(("own", "window"), [({"window": 30}, 30), ({"chunk": 40}, 40), ({"causal": False}, 0)])
def test_windows_chunks_and_bidirectional_cores(own: dict[str, Any], window: int) -> None:
    found = parts(spec(**own), activation_dtype="fp16")["core"]
    causal = own.get("causal", True)
    assert found.forward == (_core(False, window=window, causal=causal, dtype="fp16"),)


@pytest.mark.parametrize("fused", [True, False])
def test_tables_of_the_core(fused: bool) -> None:
    """32 buckets x 6 heads over tp 2, a sink per head; fused, the bias of 140 x 140 scores stays for 3 heads."""
    own = spec(relative_bias_buckets=32, relative_bias=True, sinks=True, kv_heads=6)
    found = parts(own, sizes={"tp": 2}, fused_attention=fused)
    held = found["core" if fused else "softmax"]
    assert held.weights == (Weight(name="a.relative_bias", elements=96.0), Weight(name="a.sinks", elements=3.0))
    if fused:
        assert held.saves[1] == Saved(name="a.core.relative_bias", bytes=3 * 140 * 140 * 2.0)
    else:
        assert held.saves[0].bytes == 3 * 3 * 140 * 141 * 2.0
        assert held.forward[0].bytes == 3 * 3 * 140 * 140 * 6.0
        assert held.input_grad[0].bytes == 3 * 3 * 140 * 140 * 8.0


SCORES = 18 * 140 * 140


def test_the_core_in_parts() -> None:
    """18 heads of the batch: scores 140 x 140 x 10, context 140 x 14 x 140; copies between the two layouts."""
    found = parts(spec(), fused_attention=False)
    assert list(found) == ["enter", "qkv", "scores", "softmax", "context", "layout", "out", "leave"]
    assert found["scores"] == Operation(
        name="a.scores", forward=(Gemm(m=140, n=140, k=10, batch=18),),
        input_grad=(Gemm(m=140, n=10, k=140, batch=18), Gemm(m=140, n=10, k=140, batch=18)), modules=CORE,
    )  # fmt: skip
    assert found["context"] == Operation(
        name="a.context", forward=(Gemm(m=140, n=14, k=140, batch=18),),
        input_grad=(Gemm(m=140, n=140, k=14, batch=18), Gemm(m=140, n=14, k=140, batch=18)), modules=CORE,
    )  # fmt: skip
    assert found["softmax"] == Operation(
        name="a.softmax", forward=(Pointwise(bytes=SCORES * 4.0, flops=SCORES * 5, kernels=1, kernel="softmax"),),
        input_grad=(Pointwise(bytes=SCORES * 6.0, flops=SCORES * 5, kernels=1, kernel="softmax_grad"),),
        saves=(Saved(name="a.softmax.output", bytes=SCORES * 2.0),), modules=CORE,
    )  # fmt: skip
    context = 2520 * 14 * 4.0
    sides = (2520 * 10 + 3 * 2 * 140 * 24) * 4.0
    assert found["layout"] == Operation(
        name="a.layout", forward=(Pointwise(bytes=context),), input_grad=(Pointwise(bytes=context + sides, kernels=2),),
        modules=CORE,
    )  # fmt: skip
    assert "layout" not in parts(spec(), fused_attention=False, compiled=True)


def test_the_core_in_parts_over_another_length() -> None:
    """Cross-attention reads 60 encoder tokens: products with the two lengths in their places."""
    found = parts(spec(causal=False), cross=True, sizes={"memory_seq_len": 60}, fused_attention=False,
                  activation_dtype="fp16")  # fmt: skip
    assert found["scores"].forward == (Gemm(m=140, n=60, k=10, batch=18, dtype="fp16"),)
    assert found["scores"].input_grad == (Gemm(m=140, n=10, k=60, batch=18, dtype="fp16"),
                                          Gemm(m=60, n=10, k=140, batch=18, dtype="fp16"))  # fmt: skip
    assert found["context"].forward == (Gemm(m=140, n=14, k=60, batch=18, dtype="fp16"),)
    assert found["context"].input_grad == (Gemm(m=140, n=60, k=14, batch=18, dtype="fp16"),
                                           Gemm(m=60, n=14, k=140, batch=18, dtype="fp16"))  # fmt: skip
    assert found["softmax"].saves[0].bytes == 18 * 140 * 60 * 2.0
    sides = (2520 * 10 + 3 * 2 * 60 * 24) * 4.0
    assert found["layout"].input_grad[0].bytes == 2520 * 14 * 4.0 + sides


def test_an_unfused_softmax_keeps_fp32_scores_and_their_narrow_copy() -> None:
    """Five kernels of 8 x 2 + 8 bytes per score; its gradient stands beside two more fp32 copies and a narrow one."""
    found = parts(spec(), fused_attention=False, fused_softmax=False)["softmax"]
    assert found.forward[0] == Pointwise(bytes=SCORES * 24.0, flops=SCORES * 5, kernels=5, kernel="softmax")
    assert found.input_grad[0] == Pointwise(bytes=SCORES * 36.0, flops=SCORES * 5, kernels=5, kernel="softmax_grad")
    assert found.saves == (Saved(name="a.softmax.output", bytes=SCORES * 4.0, beside_bytes=SCORES * 10.0),
                           Saved(name="a.softmax.probabilities", bytes=SCORES * 2.0))  # fmt: skip
    compiled = parts(spec(), fused_attention=False, fused_softmax=False, compiled=True)["softmax"]
    assert compiled == parts(spec(), fused_attention=False)["softmax"]


def test_a_softmax_whose_kernels_end_at_reductions_reads_the_scores_three_times() -> None:
    """Greatest, sum, quotient: 3 x 2 B read, 4 B written; backward (2 + 4) B for the sum and again, 2 B written."""
    by_row = {"fused_attention": False, "fused_softmax": False, "compiled": True, "fuses_reductions": False}
    found = parts(spec(), **by_row)["softmax"]
    assert found.forward[0] == Pointwise(bytes=SCORES * 10.0, flops=SCORES * 5, kernels=3, kernel="softmax")
    assert found.input_grad[0] == Pointwise(bytes=SCORES * 14.0, flops=SCORES * 5, kernels=2, kernel="softmax_grad")
    assert [saved.bytes for saved in found.saves] == [SCORES * 4.0, SCORES * 2.0]
    assert parts(spec(), **by_row, activation_dtype="fp32")["softmax"].forward[0].bytes == SCORES * 16.0
    own = parts(spec(), **{**by_row, "fused_softmax": True})["softmax"]
    assert own == parts(spec(), fused_attention=False)["softmax"]


def test_a_softmax_in_the_activations_dtype_is_three_kernels_without_casts() -> None:
    """Scale, mask and softmax read and write 2 B each; backward 3 x 2 B of the softmax and 2 x 2 B of the scale."""
    found = parts(spec(), fused_attention=False, fused_softmax=False, softmax_dtype="")["softmax"]
    assert found.forward[0] == Pointwise(bytes=SCORES * 12.0, flops=SCORES * 5, kernels=3, kernel="softmax")
    assert found.input_grad[0] == Pointwise(bytes=SCORES * 10.0, flops=SCORES * 5, kernels=2, kernel="softmax_grad")
    assert found.saves == (Saved(name="a.softmax.output", bytes=SCORES * 2.0),)


@pytest.mark.parametrize("compiled", [False, True])
def test_copies_by_head_of_query_key_value_and_output_both_ways(compiled: bool) -> None:
    """420 tokens of 60 + 20 + 28 columns in and 84 out, read and written in 2 B; a compiler must write them too."""
    found = parts(spec(), fused_attention=False, copies_heads=True, compiled=compiled)["layout"]
    every = (Pointwise(bytes=T * (60 + 20 + 28 + 84) * 4.0, kernels=4),)
    assert found == Operation(name="a.layout", forward=every, input_grad=every, modules=CORE)
    assert ("layout" in parts(spec(), fused_attention=False, compiled=compiled)) is not compiled


@pytest.mark.parametrize(("compiled", "moved", "steps"), [(False, 12.0, 2), (True, 4.0, 1)])
def test_query_key_and_value_as_three_products(compiled: bool, moved: float, steps: int) -> None:
    """The same weights and saved tensors; three input gradients are summed by two kernels, or read by one."""
    found = parts(spec(qkv_bias=True), separate_qkv=True, compiled=compiled, sizes={"tp": 2})
    assert list(found)[:5] == ["enter", "q", "k", "v", "qkv_sum"]
    whole = parts(spec(qkv_bias=True), compiled=compiled, sizes={"tp": 2})["qkv"]
    products = [found[name] for name in ("q", "k", "v")]
    assert [p.forward for p in products] == [(Gemm(m=T, n=n, k=5),) for n in (30, 10, 14)]
    assert tuple(p.saves[0] for p in products) == whole.saves
    assert [sum(p.weights[i].elements for p in products) for i in (0, 1)] == [w.elements for w in whole.weights]
    summed = Pointwise(bytes=T * 5 * moved, kernels=steps)
    assert found["qkv_sum"] == Operation(name="a.qkv_sum", input_grad=(summed,), modules=("attention",))


def test_dropout_of_probabilities_keeps_a_mask_and_the_dropped_copy() -> None:
    """Korthikanti 2022 sec. 4.1: 2 + 1 + 2 bytes per score."""
    found = parts(spec(), fused_attention=False, dropout=True)
    moved = (Pointwise(bytes=SCORES * 5.0),)
    assert found["probability_dropout"] == Operation(
        name="a.probability_dropout", forward=moved, input_grad=moved,
        saves=(Saved(name="a.probability_dropout.mask", bytes=SCORES * 1.0),
               Saved(name="a.probability_dropout.output", bytes=SCORES * 2.0)), modules=CORE,
    )  # fmt: skip
    wide = parts(spec(), fused_attention=False, dropout=True, fused_softmax=False)["softmax"]
    assert [saved.name for saved in wide.saves] == ["a.softmax.output"]


def test_cross_attention_projects_two_sources() -> None:
    found = parts(spec(causal=False, qkv_bias=True), cross=True, sizes={"memory_seq_len": 60, "tp": 2})
    assert list(found) == ["enter", "q", "kv", "core", "out", "leave"]
    assert found["q"].forward == (Gemm(m=T, n=30, k=5),)
    assert found["q"].saves == (Saved(name="a.q", bytes=T * 30 * 2.0),)
    assert found["kv"].forward == (Gemm(m=180, n=24, k=5),)
    assert found["kv"].saves == (Saved(name="a.k", bytes=180 * 10 * 2.0), Saved(name="a.v", bytes=180 * 14 * 2.0))
    assert [found[name].weights[1].elements for name in ("q", "kv")] == [30, 24]
    assert found["q"].modules == found["kv"].modules == ("attention",)
    assert found["core"].forward[0].kv_len == 60
    assert len(parts(spec(), cross=True)["q"].weights) == len(parts(spec(), cross=True)["kv"].weights) == 1


KV_BYTES = 3 * 140 * 2 * 24 * 2.0
"""K and V of whole sequences: 3 x 140 tokens, 2 heads of 10 + 14, 2 bytes."""


@pytest.mark.parametrize(("kind", "hides"), [("ring", "attention"), ("all-gather", "")])
def test_keys_and_values_are_gathered_over_cp(kind: str, hides: str) -> None:
    """Gradients go back in fp32. A rank works on whole sequences for a quarter of the heads' causal triangle."""
    found = parts(spec(), sizes={"cp": 4, "context_kind": kind})
    gather = Collective(kind="all_gather", axis="cp", bytes=KV_BYTES, hides=hides)
    scatter = Collective(kind="reduce_scatter", axis="cp", bytes=KV_BYTES * 2, hides=hides)
    assert found["context_gather"] == Operation(
        name="a.context_gather", forward=(gather,), input_grad=(gather, scatter), modules=CORE
    )
    assert list(found)[:4] == ["enter", "qkv", "context_gather", "core"]
    assert found["core"].forward == (_core(False, heads=1.5, q_len=140),)
    assert found["core"].saves[0].bytes == 3 * 6 * 35 * 4.0
    assert parts(spec(causal=False), sizes={"cp": 4, "context_kind": kind})["core"].forward == (
        _core(False, q_len=35.0, causal=False),
    )


def test_ulysses_trades_tokens_for_heads() -> None:
    found = parts(spec(), sizes={"cp": 2, "tp": 1, "context_kind": "ulysses"})
    tokens = 210
    there = (Collective(kind="all_to_all", axis="cp", bytes=tokens * 60 * 2.0),
             Collective(kind="all_to_all", axis="cp", bytes=KV_BYTES / 2))  # fmt: skip
    back = (Collective(kind="all_to_all", axis="cp", bytes=tokens * 84 * 2.0),)
    assert found["context_scatter"] == Operation(
        name="a.context_scatter", forward=there, input_grad=there, modules=CORE
    )
    assert found["context_gather"] == Operation(name="a.context_gather", forward=back, input_grad=back, modules=CORE)
    assert list(found) == ["enter", "qkv", "context_scatter", "core", "context_gather", "out", "leave"]
    assert found["core"].forward == (_core(False, heads=3.0, kv_heads=1.0),)
    halved = parts(spec(), sizes={"cp": 2, "tp": 2, "context_kind": "ulysses"})
    assert halved["core"].forward[0].heads == 1.5
    assert [send.bytes for send in halved["context_scatter"].forward] == [tokens * 60.0, KV_BYTES / 4]
    assert halved["context_gather"].forward[0].bytes == tokens * 84.0


def test_context_exchanges_over_tensor_parallel_ranks() -> None:
    found = parts(spec(), sizes={"cp": 4, "tp": 2})
    assert found["context_gather"].forward[0].bytes == KV_BYTES / 2
    assert found["core"].forward[0] == _core(False, heads=0.75, kv_heads=1.0)


def latent(**changes: Any) -> AttentionSpec:
    """DeepSeek's kind: 6 heads of 10 of which 4 turn, latents of 7 and 9."""
    return spec(kv_heads=6, q_lora_rank=7, kv_lora_rank=9, rope_head_dim=4, **changes)


UP = ("mla_up_proj", "attention")


def test_latent_projections() -> None:
    """DeepSeek-V2 equations 9 to 13 and 37 to 43 on tp 2: downs replicated, 3 local heads in the ups."""
    found = parts(latent(), sizes={"tp": 2})
    assert list(found)[1:-3] == ["q_down", "q_down.norm", "q_up", "kv_down", "kv_down.norm", "kv_up", "rope"]
    downs = {"q_down": 7, "kv_down": 13}
    for name, outputs in downs.items():
        assert found[name].forward == (Gemm(m=T, n=outputs, k=5),)
        assert found[name].weights == (Weight(name=f"a.{name}.weight", elements=5 * outputs, sequence_replicated=True),)
        assert (found[name].modules, found[name].saves) == (("attention",), ())
    assert found["q_up"].forward == (Gemm(m=T, n=30, k=7),)
    assert found["q_up"].saves == (Saved(name="a.q", bytes=T * 30 * 2.0),)
    assert found["kv_up"].forward == (Gemm(m=T, n=3 * (6 + 14), k=9),)
    assert found["kv_up"].saves == (Saved(name="a.k", bytes=T * 30 * 2.0), Saved(name="a.v", bytes=T * 42 * 2.0))
    assert found["rope"] == Operation(
        name="a.rope", forward=(Pointwise(bytes=T * 60 * 4.0, kernels=2),),
        input_grad=(Pointwise(bytes=T * 60 * 4.0, kernels=2),), modules=UP,
    )  # fmt: skip
    assert found["q_up"].modules == found["kv_up"].modules == UP


@pytest.mark.parametrize(("name", "width"), [("q_down", 7), ("kv_down", 9)])
def test_latents_are_normalised_and_kept_inside_the_layer(name: str, width: int) -> None:
    found = parts(latent())[f"{name}.norm"]
    elements = T * width
    assert found == Operation(
        name=f"a.{name}.norm",
        forward=(Pointwise(bytes=elements * 4.0, flops=elements * 7, kernels=1, kernel="rmsnorm"),),
        input_grad=(Pointwise(bytes=elements * 6.0, flops=elements * 11, kernels=1, kernel="rmsnorm_grad"),),
        weight_grad=(Pointwise(bytes=elements * 4.0, kernel="rmsnorm_weight_grad"),),
        weights=(Weight(name=f"a.{name}.norm", elements=width, sequence_replicated=True),),
        saves=(Saved(name=f"a.{name}.norm.input", bytes=elements * 2.0),
               Saved(name=f"a.{name}.norm.scale", bytes=T * 4.0, statistic=True),
               Saved(name=f"a.{name}.norm.output", bytes=elements * 2.0)),
        modules=("attention",),
    )  # fmt: skip


def test_without_a_query_latent_the_query_is_one_product() -> None:
    found = parts(spec(kv_heads=6, kv_lora_rank=9, rope_head_dim=4))
    assert "q_down" not in found
    assert found["q"].forward == (Gemm(m=T, n=60, k=5),)
    assert found["q"].saves == (Saved(name="a.q", bytes=T * 60 * 2.0),)
