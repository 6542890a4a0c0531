"""The two ends of a model counted by hand: 21 tokens, a vocabulary of 101 padded to 108 on 3 ranks, a width of 10."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulator.arch import embedding as ends
from simulator.arch.linear import norm
from simulator.arch.operations import Collective, Gemm, Lookup, Operation, Pointwise, Saved, Weight
from simulator.spec.model import EmbeddingSpec, HeadSpec, ModelSpec
from tests.support import gpt, mixture
from tests.unit.arch.hand import kernels, shard

PLAIN = EmbeddingSpec(vocab=101, width=10)
IDS = Saved(name="embedding.token_ids", bytes=168.0, statistic=True)
ROWS = Lookup(rows=21.0, width_bytes=20.0)


def _model(embedding: EmbeddingSpec = PLAIN, **head: Any) -> ModelSpec:
    return replace(gpt(10, 2, 2), embedding=embedding, head=HeadSpec(**head))


def _shard(tp: int = 3, **changes: Any) -> Any:
    return shard(**{"seq_len": 7, "tp": tp, "vocab_multiple": 4, **changes})


def _tp(kind: Any, full_bytes: float, hides: str = "") -> Collective:
    return Collective(kind=kind, axis="tp", bytes=full_bytes, hides=hides)


def test_a_lookup_reads_its_rows_and_holds_a_slice_of_the_table() -> None:
    alone = ends.embedding(_model(), shard=_shard(tp=1), kernels=kernels())
    assert alone == [Operation(name="embedding", forward=(ROWS,), weight_grad=(ROWS,), saves=(IDS,),
                               weights=(Weight(name="embedding.tokens", elements=1040.0),))]  # fmt: skip
    (reduced,) = ends.embedding(_model(), shard=_shard(), kernels=kernels())
    assert reduced.forward == (ROWS, _tp("all_reduce", 420.0))
    assert (reduced.input_grad, reduced.weights) == ((), (Weight(name="embedding.tokens", elements=360.0),))


def test_sequence_parallelism_scatters_the_lookup_and_gathers_its_gradient() -> None:
    (found,) = ends.embedding(_model(), shard=_shard(sequence_parallel=True), kernels=kernels())
    assert found.forward == (ROWS, _tp("reduce_scatter", 420.0))
    assert found.input_grad == (_tp("all_gather", 420.0),)
    (alone,) = ends.embedding(_model(), shard=_shard(tp=1, sequence_parallel=True), kernels=kernels())
    assert (alone.forward, alone.input_grad) == ((ROWS,), ())


@pytest.mark.parametrize(
    ("positions", "types", "added", "tables"),
    [(7, 0, 1, [("positions", 70)]), (0, 2, 1, [("token_types", 20)]),
     (1, 1, 2, [("positions", 10), ("token_types", 10)])],
)  # fmt: skip
def test_every_table_that_is_added_is_one_pass_and_one_sum_of_rows(
    positions: int, types: int, added: int, tables: list[tuple[str, int]]
) -> None:
    spec = replace(PLAIN, learned_positions=positions, token_types=types)
    (found,) = ends.embedding(_model(spec), shard=_shard(tp=1), kernels=kernels())
    # 210 elements of 2 bytes: two read and one written forward, one read backward.
    assert found.forward == (ROWS, Pointwise(bytes=1260.0 * added, kernels=added, kernel="add"))
    assert found.weight_grad == (ROWS, Pointwise(bytes=420.0 * added, kernel="row_sum"))
    assert [(weight.name, weight.elements) for weight in found.weights[1:]] == [
        (f"embedding.{name}", elements) for name, elements in tables
    ]


def test_a_narrow_table_is_widened_by_a_projection() -> None:
    lookup, project = ends.embedding(_model(replace(PLAIN, width=5)), shard=_shard(), kernels=kernels())
    assert lookup.forward[0] == Lookup(rows=21.0, width_bytes=10.0)
    assert lookup.weights == (Weight(name="embedding.tokens", elements=180.0),)
    assert project == Operation(
        name="embedding.project", forward=(Gemm(m=21.0, n=10, k=5),), input_grad=(Gemm(m=21.0, n=5, k=10),),
        weight_grad=(Gemm(m=10, n=5, k=21.0),), weights=(Weight(name="embedding.project.weight", elements=50),),
        saves=(Saved(name="embedding.narrow", bytes=210.0),),
    )  # fmt: skip


def test_dropout_of_the_embedding_keeps_a_mask_of_one_byte() -> None:
    found = ends.embedding(_model(), shard=_shard(sequence_parallel=True), kernels=kernels(dropout=True))[-1]
    # 70 elements per rank: 2 bytes in, 2 out and the mask, both ways.
    assert found == Operation(name="embedding.dropout", forward=(Pointwise(bytes=350.0),),
                              input_grad=(Pointwise(bytes=350.0),),
                              saves=(Saved(name="embedding.dropout_mask", bytes=70.0),))  # fmt: skip
    (whole,) = ends.embedding(_model(), shard=_shard(), kernels=kernels(dropout=True))[-1].saves
    assert whole.bytes == 210.0


@pytest.mark.parametrize(("kind", "bias"), [("layernorm", True), ("layernorm", False), ("rmsnorm", False)])
@pytest.mark.parametrize("final", [True, False])
def test_a_norm_of_the_embedding_is_the_model_s_kind_and_keeps_what_the_layers_read(
    kind: Any, bias: bool, final: bool
) -> None:
    model = replace(_model(replace(PLAIN, norm=True)), norm=kind, norm_bias=bias)
    model = replace(model, stacks=(replace(model.stacks[0], final_norm=final),))
    found = ends.embedding(model, shard=_shard(sequence_parallel=True), kernels=kernels())[-1]
    assert found == norm("embedding.norm", tokens=7.0, width=10, kernels=kernels(), layernorm=kind == "layernorm",
                         bias=bias, output_saved=not final, modules=())  # fmt: skip
    last = ends.final_norm(model, shard=_shard(sequence_parallel=True), kernels=kernels(), name="end")
    assert last == norm("end", tokens=7.0, width=10, kernels=kernels(), layernorm=kind == "layernorm", bias=bias,
                        modules=())  # fmt: skip
    assert ends.final_norm(model, shard=_shard(), kernels=kernels()).name == "final_norm"


def test_norms_behind_their_blocks_leave_the_embedding_s_output_to_the_first_layer() -> None:
    model = _model()
    behind = replace(model, stacks=(replace(model.stacks[0], final_norm=False),))
    found = ends.embedding(behind, shard=_shard(sequence_parallel=True), kernels=kernels())[1:]
    assert found == [Operation(name="embedding.output", saves=(Saved(name="embedding.output", bytes=140.0),))]
    layer, count = model.stacks[0].runs[0]
    none = replace(behind, stacks=(replace(behind.stacks[0], runs=((replace(layer, norms=0), count),)),))
    assert len(ends.embedding(none, shard=_shard(), kernels=kernels())) == 1


def test_an_array_of_degrees_keeps_its_border() -> None:
    (found,) = ends.embedding(_model(), shard=_shard(tp=np.array([1, 3])), kernels=kernels())
    assert found.forward[1:] == (_tp("all_reduce", 420.0),)
    assert found.weights[0].elements.tolist() == [1040.0, 360.0]


def test_a_tied_head_is_a_product_with_the_slice_of_the_table_and_a_loss() -> None:
    logits, loss = ends.head(_model(), shard=_shard(tp=1), kernels=kernels())
    assert logits == Operation(name="head.logits", forward=(Gemm(m=21.0, n=104.0, k=10),),
                               input_grad=(Gemm(m=21.0, n=10, k=104.0),),
                               weight_grad=(Gemm(m=104.0, n=10, k=21.0),))  # fmt: skip
    assert loss.name == "loss"
    enter, logits, loss = ends.head(_model(tied=False, bias=True), shard=_shard(), kernels=kernels())
    assert enter == Operation(name="head.enter", input_grad=(_tp("all_reduce", 420.0),))
    assert logits.forward == (Gemm(m=21.0, n=36.0, k=10),)
    assert logits.weights == (Weight(name="head.weight", elements=360.0), Weight(name="head.bias", elements=36.0))
    assert ends.head(_model(bias=True), shard=_shard(), kernels=kernels())[1].weights == (logits.weights[1],)


@pytest.mark.parametrize(("activations", "products"), [("fp32", "fp32"), ("bf16", "fp8")])
def test_logits_are_multiplied_in_the_dtype_of_activations(activations: str, products: str) -> None:
    """A low precision of the linear layers leaves the head alone."""
    chosen = kernels(activation_dtype=activations, gemm_dtype=products)
    logits = ends.head(_model(), shard=_shard(tp=1), kernels=chosen)[0]
    assert [work.dtype for work in (*logits.forward, *logits.input_grad, *logits.weight_grad)] == [activations] * 3


@pytest.mark.parametrize("overlap", [False, True])
def test_the_border_of_the_head_is_that_of_a_column_parallel_layer(overlap: bool) -> None:
    beside = "weight_grad" if overlap else ""
    chosen = kernels(overlap_tp_grad=overlap)
    enter = ends.head(_model(), shard=_shard(), kernels=chosen)[0]
    assert enter == Operation(name="head.enter", input_grad=(_tp("all_reduce", 420.0, beside),))
    enter = ends.head(_model(), shard=_shard(sequence_parallel=True), kernels=chosen)[0]
    gather = _tp("all_gather", 420.0)
    assert enter == Operation(name="head.enter", forward=(gather,),
                              input_grad=(gather, _tp("reduce_scatter", 420.0, beside)))  # fmt: skip


def test_a_head_of_some_positions_works_on_those_alone() -> None:
    """A third of the positions: 7 of 21 tokens, the softmax of 7 x 36 in fp32."""
    enter, logits, loss = ends.head(_model(), shard=_shard(), kernels=kernels(logits_fraction=1 / 3))
    assert enter.input_grad[0].bytes == pytest.approx(140.0)
    assert logits.forward[0].m == pytest.approx(7.0)
    assert loss.saves[0].bytes == pytest.approx(7 * 36 * 4)


def test_a_narrow_head_projects_first_and_keeps_the_narrow_side() -> None:
    _, project, logits, _ = ends.head(_model(replace(PLAIN, width=5), tied=False), shard=_shard(), kernels=kernels())
    assert project == Operation(
        name="head.project", forward=(Gemm(m=21.0, n=5, k=10),), input_grad=(Gemm(m=21.0, n=10, k=5),),
        weight_grad=(Gemm(m=5, n=10, k=21.0),), weights=(Weight(name="head.project.weight", elements=50),),
    )  # fmt: skip
    assert logits.forward == (Gemm(m=21.0, n=36.0, k=5),)
    assert logits.weights == (Weight(name="head.weight", elements=180.0),)
    assert logits.saves == (Saved(name="head.narrow", bytes=210.0),)


def test_a_loss_over_the_whole_vocabulary_gathers_the_logits_and_cuts_their_gradient() -> None:
    whole = kernels(parallel_cross_entropy=False)
    _, _, gather, loss = ends.head(_model(), shard=_shard(), kernels=whole)
    # 21 x 108 logits of 2 bytes arrive, are joined (read and written); a third of them is cut out in backward.
    assert gather == Operation(name="head.gather", input_grad=(Pointwise(bytes=3024.0, kernel="copy"),),
                               forward=(_tp("all_gather", 4536.0), Pointwise(bytes=9072.0, kernel="copy")))  # fmt: skip
    assert loss.saves[0].bytes == 21 * 108 * 4
    assert [operation.name for operation in ends.head(_model(), shard=_shard(tp=1), kernels=whole)] == [
        "head.logits", "loss"]  # fmt: skip


def test_a_head_without_any_norm_before_it_keeps_its_input() -> None:
    model = mixture(hidden=10, heads=2)
    bare = replace(model, stacks=(replace(model.stacks[0], final_norm=False),))
    layer, _ = model.stacks[0].runs[0]
    none = replace(bare, stacks=(replace(bare.stacks[0], runs=((layer, 3), (replace(layer, norms=0), 1))),))
    kept = Operation(name="head.input", saves=(Saved(name="head.input", bytes=420.0),))
    assert ends.head(none, shard=_shard(tp=1), kernels=kernels())[0] == kept
    for normed in (model, bare, replace(none, stacks=(replace(none.stacks[0], final_norm=True),))):
        assert ends.head(normed, shard=_shard(tp=1), kernels=kernels())[0].name == "head.logits"


def _loss(**changes: Any) -> Operation:
    """Of 100 logits over 7 tokens, whose positions each tp rank holds a part of the vocabulary of."""
    return ends.cross_entropy(100, 7, _shard(), kernels(**changes))


ROW = _tp("all_reduce", 28.0)
TARGETS = Saved(name="loss.targets", bytes=56.0, statistic=True)


def test_a_fused_loss_reads_and_writes_the_logits_about_once() -> None:
    """Forward: bf16 in, fp32 in and out; backward: fp32 in, bf16 out."""
    assert _loss() == Operation(
        name="loss", forward=(Pointwise(bytes=1000.0, flops=500, kernels=2, kernel="cross_entropy"), ROW, ROW, ROW),
        input_grad=(Pointwise(bytes=600.0, kernels=1, kernel="cross_entropy_grad"),),
        saves=(Saved(name="loss.softmax", bytes=400.0, beside_bytes=200.0), TARGETS),
    )  # fmt: skip
    assert _loss(fused_cross_entropy=False, compiled=True) == replace(
        _loss(), saves=(Saved(name="loss.softmax", bytes=200.0, beside_bytes=200.0), TARGETS))  # fmt: skip


def test_a_loss_in_single_steps_moves_34_and_18_bytes_per_logit() -> None:
    found = _loss(fused_cross_entropy=False)
    assert found == Operation(
        name="loss", forward=(Pointwise(bytes=3400.0, flops=500, kernels=8, kernel="cross_entropy"), ROW, ROW, ROW),
        input_grad=(Pointwise(bytes=1800.0, kernels=3, kernel="cross_entropy_grad"),),
        saves=(Saved(name="loss.softmax", bytes=400.0, beside_bytes=600.0), TARGETS),
    )  # fmt: skip


@pytest.mark.parametrize(("dtype", "held"), [("bf16", 600.0), ("fp32", 400.0)])
def test_a_loss_of_tensor_operations_holds_logits_and_cast_and_sends_no_rows(dtype: str, held: float) -> None:
    found = _loss(fused_cross_entropy=False, parallel_cross_entropy=False, activation_dtype=dtype)
    assert len(found.forward) == 1
    assert found.saves == (Saved(name="loss.softmax", bytes=400.0, beside_bytes=800.0),
                           Saved(name="loss.logits", bytes=held, beside_bytes=0.0), TARGETS)  # fmt: skip
    fused = _loss(parallel_cross_entropy=False)
    assert (len(fused.forward), len(fused.saves)) == (1, 2)


def test_a_loss_on_one_rank_sends_no_rows() -> None:
    assert len(ends.cross_entropy(100, 7, _shard(tp=1), kernels()).forward) == 1


def test_bert_s_transform_is_a_dense_layer_a_gelu_and_a_norm() -> None:
    dense, gelu, normed, logits, _ = ends.head(_model(transform=True), shard=_shard(tp=1), kernels=kernels())
    assert dense.forward == (Gemm(m=21.0, n=10, k=10),)
    assert dense.weight_grad[1:] == (Pointwise(bytes=420.0, kernel="row_sum"),)
    assert [(weight.name, weight.elements) for weight in dense.weights] == [
        ("head.transform.weight", 100), ("head.transform.bias", 10)]  # fmt: skip
    assert gelu == Operation(
        name="head.transform.activation", forward=(Pointwise(bytes=840.0, kernel="gelu"),),
        input_grad=(Pointwise(bytes=1260.0, kernel="gelu_grad"),),
        saves=(Saved(name="head.transform.output", bytes=420.0),),
    )  # fmt: skip
    assert normed == norm("head.transform.norm", tokens=21.0, width=10, kernels=kernels(), layernorm=True, bias=True,
                          modules=())  # fmt: skip
    assert logits.name == "head.logits"


def test_bert_s_pooler_reads_one_row_per_sequence() -> None:
    pooler, classifier = ends.head(_model(pooler=True, pooler_classes=2), shard=_shard(tp=1), kernels=kernels())[-2:]
    assert pooler.name == "head.pooler"
    assert pooler.forward == (Gemm(m=3, n=10, k=10),)
    assert pooler.saves == (Saved(name="head.pooler.output", bytes=60.0),)
    assert [weight.elements for weight in pooler.weights] == [100, 10]
    assert classifier.name == "head.classifier"
    assert classifier.forward == (Gemm(m=3, n=2, k=10),)
    assert [weight.elements for weight in classifier.weights] == [20, 2]
    alone = ends.head(_model(pooler=True), shard=_shard(tp=1), kernels=kernels())
    assert [operation.name for operation in alone][-2:] == ["loss", "head.pooler"]
