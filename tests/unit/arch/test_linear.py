"""Linear layers, norms and pointwise kernels counted by hand: every product, byte, weight and saved tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.arch import linear
from simulator.arch.operations import Collective, Gemm, Operation, Pointwise, Saved, Weight
from tests.unit.arch.hand import kernels, shard

TOKENS, IN, OUT = 7, 11, 13


def test_a_linear_layer_is_one_product_forward_and_two_backward() -> None:
    assert linear.linear("up", tokens=TOKENS, inputs=IN, outputs=OUT, kernels=kernels()) == Operation(
        name="up",
        forward=(Gemm(m=7, n=13, k=11, dtype="bf16"),),
        input_grad=(Gemm(m=7, n=11, k=13, dtype="bf16"),),
        weight_grad=(Gemm(m=13, n=11, k=7, dtype="bf16"),),
        weights=(Weight(name="up.weight", elements=143),),
    )


def test_a_bias_is_a_weight_and_one_read_of_the_output_gradient() -> None:
    kept = (Saved(name="x", bytes=5.0),)
    found = linear.linear(
        "up", tokens=TOKENS, inputs=IN, outputs=OUT, kernels=kernels(), bias_elements=OUT, saves=kept, modules=("mlp",),
        sequence_replicated=True,
    )  # fmt: skip
    assert found.weight_grad == (Gemm(m=13, n=11, k=7, dtype="bf16"), Pointwise(bytes=7 * 13 * 2.0, kernel="row_sum"))
    assert found.weights == (
        Weight(name="up.weight", elements=143, sequence_replicated=True),
        Weight(name="up.bias", elements=13, sequence_replicated=True),
    )
    assert (found.saves, found.modules) == (kept, ("mlp",))


def test_an_array_of_biases_stays_a_weight_where_some_are_zero() -> None:
    found = linear.linear("up", tokens=TOKENS, inputs=IN, outputs=OUT, kernels=kernels(),
                          bias_elements=np.array([0, 13]))  # fmt: skip
    assert [weight.name for weight in found.weights] == ["up.weight", "up.bias"]
    assert list(found.weight_grad[1].bytes) == [0.0, 182.0]
    assert [weight.name for weight in linear.weights("up", 143, 0.0)] == ["up.weight"]
    assert [weight.name for weight in linear.weights("up", 143, 1)] == ["up.weight", "up.bias"]


@pytest.mark.parametrize("dtype", ["fp8", "mxfp8"])
def test_low_precision_products_quantise_their_inputs_twice(dtype: str) -> None:
    """Reads 2 bytes and writes two copies of 1: 4 bytes per element of the input, and of the output's gradient."""
    low = kernels(gemm_dtype=dtype)
    found = linear.linear("up", tokens=TOKENS, inputs=IN, outputs=OUT, kernels=low)
    assert found.forward == (Pointwise(bytes=77 * 4.0), Gemm(m=7, n=13, k=11, dtype=dtype))
    assert found.input_grad == (Pointwise(bytes=91 * 4.0), Gemm(m=7, n=11, k=13, dtype=dtype))
    assert found.weight_grad == (Gemm(m=13, n=11, k=7, dtype=dtype),)
    assert (low.element_bytes, low.gemm_input_bytes) == (2.0, 1.0)


def test_four_bit_products_write_half_a_byte_twice() -> None:
    found = linear.linear("up", tokens=TOKENS, inputs=IN, outputs=OUT, kernels=kernels(gemm_dtype="nvfp4"))
    assert found.forward[0] == Pointwise(bytes=77 * 3.0)
    assert linear.weights("up", 143, 0)[0].sequence_replicated is False


FULL = 7 * 11 * 2.0


def _tp(kind: Any, hides: str = "") -> Collective:
    return Collective(kind=kind, axis="tp", bytes=FULL, hides=hides)


@pytest.mark.parametrize("border", [linear.enter_tensor_parallel, linear.leave_tensor_parallel])
def test_a_border_of_one_rank_sends_nothing(border: Any) -> None:
    assert border("b", tokens=7, width=11, shard=shard(tp=1), kernels=kernels()) == Operation(name="b")


@pytest.mark.parametrize("overlap", [False, True])
def test_borders_without_sequence_parallelism_reduce_once_each_way(overlap: bool) -> None:
    """Shoeybi 2019 figure 3: f is the identity forward and an all-reduce backward, g the other way round."""
    own, split = kernels(overlap_tp_grad=overlap), shard(tp=2)
    assert linear.enter_tensor_parallel("f", tokens=7, width=11, shard=split, kernels=own) == Operation(
        name="f", input_grad=(_tp("all_reduce", "weight_grad" if overlap else ""),)
    )
    own = kernels(overlap_tp=overlap)
    assert linear.leave_tensor_parallel("g", tokens=7, width=11, shard=split, kernels=own) == Operation(
        name="g", forward=(_tp("all_reduce", "forward_gemm" if overlap else ""),)
    )


@pytest.mark.parametrize(("forward", "backward"), [(False, False), (True, False), (False, True)])
def test_borders_with_sequence_parallelism_gather_and_scatter(forward: bool, backward: bool) -> None:
    """Korthikanti 2022 figure 6; the saved shard is gathered again for the weight gradient (sec. 4.2.2)."""
    own = kernels(overlap_tp=forward, overlap_tp_grad=backward)
    split = shard(tp=2, sequence_parallel=True)
    beside = "forward_gemm" if forward else ""
    assert linear.enter_tensor_parallel("g", tokens=7, width=11, shard=split, kernels=own) == Operation(
        name="g",
        forward=(_tp("all_gather", beside),),
        input_grad=(_tp("all_gather", "input_grad" if backward else ""),
                    _tp("reduce_scatter", "weight_grad" if backward else "")),
    )  # fmt: skip
    assert linear.leave_tensor_parallel("g", tokens=7, width=11, shard=split, kernels=own) == Operation(
        name="g",
        forward=(_tp("reduce_scatter", beside),),
        input_grad=(_tp("all_gather", "input_grad" if forward else ""),),
    )


def test_an_array_of_degrees_keeps_the_borders() -> None:
    found = linear.leave_tensor_parallel("g", tokens=7, width=11, shard=shard(tp=np.array([1, 2])), kernels=kernels())
    assert [work.kind for work in found.forward] == ["all_reduce"]


def test_pointwise_kernels_move_bytes_per_element() -> None:
    kept = (Saved(name="x", bytes=5.0),)
    assert linear.pointwise("p", elements=77, forward=6.0, backward=4.0) == Operation(
        name="p", forward=(Pointwise(bytes=462.0, kernels=1),), input_grad=(Pointwise(bytes=308.0, kernels=1),)
    )
    assert linear.pointwise(
        "p", elements=77, forward=6.0, backward=4.0, kernels=3, kernel="gelu", saves=kept, modules=("mlp",)
    ) == Operation(
        name="p", forward=(Pointwise(bytes=462.0, kernels=3, kernel="gelu"),),
        input_grad=(Pointwise(bytes=308.0, kernels=3, kernel="gelu_grad"),), saves=kept, modules=("mlp",),
    )  # fmt: skip
    assert linear.pointwise("p", elements=77, forward=0.0, backward=0.0) == Operation(name="p")


@pytest.mark.parametrize(
    ("layernorm", "bias", "weights", "statistics"),
    [(True, True, 22, ("mean", "scale")), (True, False, 11, ("mean", "scale")), (False, True, 11, ("scale",))],
)
def test_a_fused_norm(layernorm: bool, bias: bool, weights: int, statistics: tuple[str, ...]) -> None:
    """Reads x and writes y (4 B per element); backward reads dy and x and writes dx (6 B), adds the residual's (6 B),
    and reads dy and x for the weight (4 B). 7 tokens of 11.
    """
    kind = "layernorm" if layernorm else "rmsnorm"
    assert linear.norm("n", tokens=7, width=11, kernels=kernels(), layernorm=layernorm, bias=bias) == Operation(
        name="n",
        forward=(Pointwise(bytes=77 * 4.0, flops=77 * 7, kernels=1, kernel=kind),),
        input_grad=(Pointwise(bytes=77 * 6.0, flops=77 * 11, kernels=1, kernel=f"{kind}_grad"),
                    Pointwise(bytes=77 * 6.0, kernel="add")),
        weight_grad=(Pointwise(bytes=77 * 4.0, kernel=f"{kind}_weight_grad"),),
        weights=(Weight(name="n", elements=weights, sequence_replicated=True),),
        saves=(Saved(name="n.input", bytes=154.0, boundary=True),
               *(Saved(name=f"n.{part}", bytes=28.0, statistic=True) for part in statistics),
               Saved(name="n.output", bytes=154.0)),
        modules=("layernorm",),
    )  # fmt: skip


def test_an_unfused_norm_keeps_an_fp32_copy_and_what_it_normalised() -> None:
    found = linear.norm("n", tokens=7, width=11, kernels=kernels(fused_norm=False), layernorm=True, bias=False)
    assert found.forward == (Pointwise(bytes=77 * 36.0, flops=77 * 7, kernels=6, kernel="unfused_norm"),)
    assert found.input_grad == (
        Pointwise(bytes=77 * 68.0, flops=77 * 11, kernels=10, kernel="unfused_norm_grad"),
        Pointwise(bytes=77 * 6.0, kernel="add"),
    )
    assert found.saves == (
        Saved(name="n.input", bytes=308.0, boundary=True), Saved(name="n.scale", bytes=28.0, statistic=True),
        Saved(name="n.normalised", bytes=154.0), Saved(name="n.output", bytes=154.0),
    )  # fmt: skip
    compiled = kernels(fused_norm=False, compiled=True)
    assert linear.norm("n", tokens=7, width=11, kernels=compiled, layernorm=True, bias=False) == linear.norm(
        "n", tokens=7, width=11, kernels=kernels(), layernorm=True, bias=False
    )


@pytest.mark.parametrize(("layernorm", "reads"), [(True, 3), (False, 2)])
def test_a_norm_whose_kernels_end_at_reductions_reads_a_row_for_each(layernorm: bool, reads: int) -> None:
    """LayerNorm: x for the mean, the variance and y; an RMS norm has no mean. Backward dy and x twice, dx once."""
    by_row = kernels(fused_norm=False, compiled=True, fuses_reductions=False)
    found = linear.norm("n", tokens=7, width=11, kernels=by_row, layernorm=layernorm, bias=False)
    kind = "layernorm" if layernorm else "rmsnorm"
    assert found.forward == (Pointwise(bytes=77 * (reads + 1) * 2.0, flops=77 * 7, kernels=reads, kernel=kind),)
    assert found.input_grad[0] == Pointwise(bytes=77 * 10.0, flops=77 * 11, kernels=2, kernel=f"{kind}_grad")
    own = kernels(compiled=True, fuses_reductions=False)
    fused = linear.norm("n", tokens=7, width=11, kernels=kernels(), layernorm=layernorm, bias=False)
    assert linear.norm("n", tokens=7, width=11, kernels=own, layernorm=layernorm, bias=False) == fused


@pytest.mark.parametrize(
    ("changes", "input_saved", "output_saved", "names"),
    [
        ({}, False, False, []),
        ({}, True, False, ["n.input"]),
        ({}, False, True, ["n.output"]),
        # Unfused in bf16 an fp32 copy is kept whoever keeps the input; in fp32 the input is that copy.
        ({"fused_norm": False}, False, False, ["n.input", "n.normalised"]),
        ({"fused_norm": False, "activation_dtype": "fp32"}, False, False, ["n.normalised"]),
    ],
)
def test_what_a_norm_keeps(changes: dict[str, Any], input_saved: bool, output_saved: bool, names: list[str]) -> None:
    found = linear.norm("n", tokens=7, width=11, kernels=kernels(**changes), layernorm=False, bias=False,
                        input_saved=input_saved, output_saved=output_saved, modules=("attention",))  # fmt: skip
    assert [saved.name for saved in found.saves if not saved.statistic] == names
    assert found.modules == ("attention",)


@pytest.mark.parametrize(
    ("changes", "bias", "forward_bytes", "backward_bytes", "launches"),
    [
        # x, residual and sum: 3 x 2 B. The mask is 1 B; backward reads dy and the mask and writes dx.
        ({}, False, 6.0, 0.0, 1),
        ({}, True, 6.0, 0.0, 1),
        ({"dropout": True}, True, 7.0, 5.0, 1),
        # Unfused, bias and dropout each read and write once more.
        ({"fused_bias_dropout": False}, False, 6.0, 0.0, 1),
        ({"fused_bias_dropout": False}, True, 10.0, 0.0, 2),
        ({"fused_bias_dropout": False, "dropout": True}, False, 11.0, 5.0, 2),
        ({"fused_bias_dropout": False, "dropout": True}, True, 15.0, 5.0, 3),
        ({"fused_bias_dropout": False, "dropout": True, "compiled": True}, True, 7.0, 5.0, 1),
    ],
)
def test_bias_dropout_add(
    changes: dict[str, Any], bias: bool, forward_bytes: float, backward_bytes: float, launches: int
) -> None:
    dropout = "dropout" in changes
    kernel = "dropout_add" if dropout else "add"
    backward = (Pointwise(bytes=77 * backward_bytes, kernels=launches, kernel=f"{kernel}_grad"),) if dropout else ()
    assert linear.bias_dropout_add("d", tokens=7, width=11, kernels=kernels(**changes), bias=bias) == Operation(
        name="d",
        forward=(Pointwise(bytes=77 * forward_bytes, kernels=launches, kernel=kernel),),
        input_grad=backward,
        saves=(Saved(name="d.dropout_mask", bytes=77.0),) if dropout else (),
    )
