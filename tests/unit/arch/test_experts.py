"""Sparsely-gated layers counted by hand: rows, router, exchanges, grouped products, shared experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulator.arch.experts import experts, routed_rows
from simulator.arch.operations import Collective, Gemm, GroupedGemm, Operation, Pointwise, Saved, Weight
from simulator.spec.model import ExpertsSpec, FeedForwardSpec
from tests.unit.arch.hand import kernels, shard

T = 420
"""Tokens of one rank: 3 sequences of 140."""
R = 840
"""Rows that they send to 2 experts each."""
MOE = ("moe",)


def spec(**changes: Any) -> ExpertsSpec:
    """12 experts of 16 hidden units, 2 for each token; width 5 in the tests."""
    return ExpertsSpec(**{"count": 12, "top_k": 2, "hidden": 16, **changes})


def parts(own: ExpertsSpec, sizes: dict[str, Any] | None = None, **changes: Any) -> dict[str, Operation]:
    found = experts(own, width=5, shard=shard(**(sizes or {})), kernels=kernels(**changes), name="m")
    assert len({operation.name for operation in found}) == len(found)
    return {operation.name.removeprefix("m."): operation for operation in found}


@pytest.mark.parametrize(
    ("own", "sizes", "rows"),
    [
        ({}, {}, R),
        ({"capacity_factor": 1.25}, {}, 1.25 * R),
        ({"capacity_factor": 1.25}, {"capacity_factor": 2.0}, 2 * R),
        ({"capacity_factor": 1.25}, {"capacity_factor": 0.0}, R),
        ({}, {"tp": 4}, R),
        ({}, {"tp": 4, "sequence_parallel": True}, R / 4),
        ({"branching": 3}, {}, 4 * T),
    ],
)
def test_rows_that_a_rank_routes(own: dict[str, Any], sizes: dict[str, Any], rows: float) -> None:
    assert routed_rows(spec(**own), shard(**sizes)) == rows
    assert parts(spec(**own), sizes)["permute"].forward[0].bytes == rows * 5 * 4.0


def test_the_order_of_a_layer_on_one_rank() -> None:
    assert list(parts(spec())) == ["router", "permute", "dispatch", "up", "activation", "down", "combine", "unpermute"]
    assert list(parts(spec(shared_hidden=7, shared_gate=True, extra_feed_forward=FeedForwardSpec(hidden=9)),
                      {"etp": 2}))[3:] == [
        "expert_gather", "up", "activation", "down", "expert_scatter", "combine", "unpermute", "shared.enter",
        "shared.up", "shared.activation", "shared.down", "shared.leave", "shared_gate", "extra.enter", "extra.up",
        "extra.activation", "extra.down", "extra.leave",
    ]  # fmt: skip


def test_a_router_is_a_product_and_six_passes_over_fp32_scores() -> None:
    moved = {"bytes": T * 12 * 24.0, "kernels": 6}
    assert parts(spec())["router"] == Operation(
        name="m.router",
        forward=(Gemm(m=T, n=12, k=5), Pointwise(**moved, kernel="router")),
        input_grad=(Gemm(m=T, n=5, k=12), Pointwise(**moved, kernel="router_grad")),
        weight_grad=(Gemm(m=12, n=5, k=T),),
        weights=(Weight(name="m.router", elements=60, sequence_replicated=True),),
        saves=(Saved(name="m.router.probabilities", bytes=T * 12 * 4.0),
               Saved(name="m.router.chosen", bytes=T * 2 * 8.0, statistic=True)),
        modules=MOE,
    )  # fmt: skip


def test_a_noisy_router_has_two_matrices_and_keeps_its_noise() -> None:
    found = parts(spec(router_matrices=2, router_bias=True))["router"]
    assert found.forward[0] == Gemm(m=T, n=24, k=5)
    assert found.weights == (Weight(name="m.router", elements=120, sequence_replicated=True),
                             Weight(name="m.router.bias", elements=12, sequence_replicated=True))  # fmt: skip
    assert found.saves == (
        *(Saved(name=f"m.router.{part}", bytes=T * 12 * 4.0) for part in ("probabilities", "noise", "noise_scale")),
        Saved(name="m.router.chosen", bytes=T * 2 * 8.0, statistic=True),
    )


def test_a_hierarchical_router_has_two_levels() -> None:
    """Shazeer 2017 appendix B: 3 groups of 4; a token visits 2 groups and 2 experts of each."""
    found = parts(spec(branching=3))["router"]
    assert found.forward == (Gemm(m=T, n=3 + 4 * 2, k=5), Pointwise(bytes=T * 15 * 24.0, kernels=6, kernel="router"))
    assert found.weights == (Weight(name="m.router", elements=5 * 15, sequence_replicated=True),)
    copies = 2 * T
    assert found.saves == (
        Saved(name="m.router.probabilities", bytes=T * 3 * 4.0),
        Saved(name="m.router.chosen", bytes=T * 2 * 8.0, statistic=True),
        Saved(name="m.router.second.probabilities", bytes=copies * 4 * 4.0),
        Saved(name="m.router.second.chosen", bytes=copies * 2 * 8.0, statistic=True),
        Saved(name="m.router.second.input", bytes=copies * 5 * 2.0),
        Saved(name="m.router.second.token", bytes=copies * 8.0, statistic=True),
        Saved(name="m.router.second.order", bytes=copies * 8.0, statistic=True),
        Saved(name="m.router.second.weight", bytes=copies * 4.0, statistic=True),
        Saved(name="m.router.second.weights", bytes=copies * 8.0, statistic=True),
        Saved(name="m.router.second.offsets", bytes=12.0, statistic=True),
    )
    assert len(parts(spec(branching=3, router_bias=True))["router"].weights) == 2


@pytest.mark.parametrize(
    ("own", "factor", "kept"),
    [({}, None, ("token", "choice")), ({"bias": True}, None, ("token", "choice", "expert")),
     ({"bias": True, "capacity_factor": 1.0}, None, ("token", "choice")),
     ({"bias": True}, 1.0, ("token", "choice")),
     ({"bias": True, "capacity_factor": 1.0}, 0.0, ("token", "choice", "expert"))],
)  # fmt: skip
def test_rows_are_copied_there_and_back(own: dict[str, Any], factor: float | None, kept: tuple[str, ...]) -> None:
    """A capacity factor of the run stands before the model's; padded buffers need no index of experts."""
    found = parts(spec(**own), {"capacity_factor": factor})
    there = (Pointwise(bytes=R * 5 * 4.0, kernels=2, kernel="permute"),)
    back = (Pointwise(bytes=R * 5 * 4.0, kernels=2, kernel="permute_grad"),)
    assert found["permute"] == Operation(
        name="m.permute", forward=there, input_grad=back, modules=MOE,
        saves=tuple(Saved(name=f"m.permute.{part}", bytes=R * 8.0, statistic=True) for part in kept),
    )  # fmt: skip
    assert found["unpermute"] == Operation(
        name="m.unpermute", forward=there, input_grad=back, modules=MOE,
        saves=(Saved(name="m.unpermute.input", bytes=R * 5 * 2.0),
               Saved(name="m.unpermute.weights", bytes=R * 2.0, statistic=True)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "hides", "copies"),
    [({}, "", 0), ({"overlap_moe": True}, "experts", 0), ({"expert_dispatch": "deduplicated"}, "", 2)],
)
def test_rows_cross_the_expert_group_twice_each_way(changes: dict[str, Any], hides: str, copies: int) -> None:
    found = parts(spec(), {"ep": 4}, **changes)
    send = Collective(kind="all_to_all", axis="ep", bytes=R * 5 * 2.0, hides=hides, copies=copies)
    for name in ("dispatch", "combine"):
        assert found[name] == Operation(name=f"m.{name}", forward=(send,), input_grad=(send,), modules=MOE)
        assert parts(spec())[name] == Operation(name=f"m.{name}", modules=MOE)


@pytest.mark.parametrize("sequence_parallel", [True, False])
@pytest.mark.parametrize(("tp", "etp"), [(1, 4), (2, 4), (4, 4), (8, 4)])
def test_borders_of_an_expert_tensor_group(sequence_parallel: bool, tp: int, etp: int) -> None:
    """With sequence parallelism 4 ranks hold 4 lots of rows. Without, those of a tp group hold the same ones: of 4
    lots (1 - 1 / lots) arrive, where an all-gather brings 3/4 of its bytes.
    """
    found = parts(spec(), {"tp": tp, "etp": etp, "sequence_parallel": sequence_parallel})
    lots = etp if sequence_parallel else max(etp // tp, 1)
    rows = (R / tp if sequence_parallel else R) * lots
    full = rows * 5 * 2.0
    names = ("reduce_scatter", full) if sequence_parallel else ("all_reduce", full)
    reduce = Collective(kind=names[0], axis="etp", bytes=names[1])  # type: ignore[arg-type]
    brought = 1.0 if sequence_parallel else (1 - 1 / lots) / (3 / 4)
    enter, leave = found["expert_gather"], found["expert_scatter"]
    assert enter.forward[0].bytes == leave.input_grad[0].bytes == pytest.approx(full * brought)
    assert {(work.kind, work.axis) for work in (*enter.forward, *leave.input_grad)} == {("all_gather", "etp")}
    assert enter.input_grad == leave.forward == (reduce,)
    assert enter.modules == leave.modules == MOE
    assert found["up"].forward == (GroupedGemm(experts=12, tokens=rows, n=4, k=5),)


def test_an_array_of_expert_tensor_groups() -> None:
    found = parts(spec(), {"etp": np.array([1, 2])})["expert_gather"]
    assert list(found.forward[0].bytes) == [0.0, 2 * R * 5 * 2.0]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_experts_are_grouped_products(gated: bool, bias: bool) -> None:
    """ep 4 leaves 3 local experts, etp 2 leaves 8 hidden units; 2 lots of rows."""
    columns, rows = (16 if gated else 8), 2 * R
    found = parts(spec(gated=gated, bias=bias), {"ep": 4, "etp": 2, "imbalance": 1.5})

    def grouped(n: int, k: int) -> GroupedGemm:
        return GroupedGemm(experts=3, tokens=rows, n=n, k=k, imbalance=1.5)

    def weights(name: str, inputs: int, outputs: int) -> tuple[Weight, ...]:
        matrix = Weight(name=f"m.{name}.weight", elements=3 * inputs * outputs, sharing="expert")
        vector = Weight(name=f"m.{name}.bias", elements=3 * outputs, sharing="expert")
        return (matrix, vector) if bias else (matrix,)

    assert found["up"] == Operation(
        name="m.up", forward=(grouped(columns, 5),), input_grad=(grouped(5, columns),),
        weight_grad=(grouped(5, columns),), weights=weights("up", 5, columns), modules=MOE,
        saves=(Saved(name="m.expert_input", bytes=rows * 5 * 2.0), Saved(name="m.offsets", bytes=12.0, statistic=True),
               Saved(name="m.up.output", bytes=rows * columns * 2.0)),
    )  # fmt: skip
    assert found["down"] == Operation(
        name="m.down", forward=(grouped(5, 8),), input_grad=(grouped(8, 5),), weight_grad=(grouped(8, 5),),
        weights=weights("down", 8, 5), modules=MOE,
    )  # fmt: skip
    assert found["activation"].forward[0].bytes == rows * 8 * (6.0 if gated else 4.0)
    assert found["activation"].modules == ("moe_act", "moe")
    assert found["activation"].saves == (Saved(name="m.activation.output", bytes=rows * 8 * 2.0),)
    padded = ["m.expert_input", "m.up.output"]
    assert [saved.name for saved in parts(spec(gated=gated, capacity_factor=1.0))["up"].saves] == padded
    assert [saved.name for saved in parts(spec(gated=gated), {"capacity_factor": 1.0})["up"].saves] == padded


def test_low_precision_experts_quantise_what_they_read() -> None:
    found = parts(spec(), gemm_dtype="fp8")
    assert found["up"].forward == (Pointwise(bytes=R * 5 * 4.0), GroupedGemm(experts=12, tokens=R, n=16, k=5,
                                   dtype="fp8"))  # fmt: skip
    assert found["up"].input_grad[0] == Pointwise(bytes=R * 16 * 4.0)
    assert found["up"].saves[0].bytes == R * 5 * 1.0


def test_shared_experts_are_a_feed_forward_over_all_tokens() -> None:
    own = spec(shared_hidden=8, gated=True, bias=True, activation="silu", shared_gate=True)
    found = parts(own, {"tp": 2, "sequence_parallel": True})
    assert found["shared.up"].forward == (Gemm(m=T, n=8, k=5),)
    assert found["shared.up"].modules == ("shared_experts", "moe")
    assert len(found["shared.up"].weights) == 2
    assert found["shared.activation"].forward[0].kernel == "gated_silu"
    assert found["shared_gate"] == Operation(
        name="m.shared_gate", forward=(Gemm(m=210, n=1, k=5),), input_grad=(Gemm(m=210, n=5, k=1),),
        weight_grad=(Gemm(m=1, n=5, k=210),), modules=MOE,
        weights=(Weight(name="m.shared_gate.weight", elements=5, sequence_replicated=True),),
        saves=(Saved(name="m.shared_gate.output", bytes=210 * 2.0, statistic=True),
               Saved(name="m.shared_gate.scaled", bytes=210 * 5 * 2.0)),
    )  # fmt: skip
    assert "shared_gate" not in parts(spec(shared_hidden=8))


def test_a_dense_feed_forward_beside_the_experts() -> None:
    found = parts(spec(extra_feed_forward=FeedForwardSpec(hidden=9)))
    assert found["extra.up"].forward == (Gemm(m=T, n=9, k=5),)
    assert found["extra.up"].modules == MOE


def test_gates_inside_the_activation_keep_no_outputs_of_experts() -> None:
    """Only one fp32 weight per routed row is kept for the backward of the gate."""
    assert parts(spec(), gates_in_activation=True)["unpermute"].saves == (
        Saved(name="m.unpermute.weights", bytes=R * 4.0, statistic=True),
    )


def test_clamps_and_weighted_biases_in_tensor_operations() -> None:
    """Per row: 2 x 16 columns, clamped (8 B forward, 10 B backward) and kept; 5 outputs, whose bias takes 28 B forward
    and 40 B backward. They recompute with the activation, which reads what they keep."""
    own = spec(gated=True, bias=True, clamped=True)
    found = parts(own, experts_pointwise="tensor-ops")
    assert found["clamp"] == Operation(
        name="m.clamp", forward=(Pointwise(bytes=R * 32 * 8.0, kernels=3, kernel="clamp"),),
        input_grad=(Pointwise(bytes=R * 32 * 10.0, kernels=3, kernel="clamp_grad"),),
        saves=(Saved(name="m.clamp.output", bytes=R * 32 * 2.0),), modules=("moe_act", "moe"),
    )  # fmt: skip
    assert found["bias"] == Operation(
        name="m.bias", forward=(Pointwise(bytes=R * 5 * 28.0, kernels=4, kernel="weighted_bias"),),
        input_grad=(Pointwise(bytes=R * 5 * 40.0, kernels=7, kernel="weighted_bias_grad"),), modules=MOE,
    )  # fmt: skip
    assert list(found)[3:7] == ["up", "clamp", "activation", "down"]
    single = parts(spec(clamped=True), experts_pointwise="tensor-ops")["clamp"]
    assert (single.forward[0].bytes, single.saves[0].bytes) == (R * 16 * 8.0, R * 16 * 2.0)
    assert "clamp" not in parts(spec(gated=True, bias=True), experts_pointwise="tensor-ops")
    assert "bias" not in parts(spec(gated=True, clamped=True), experts_pointwise="tensor-ops")
    assert {"clamp", "bias"}.isdisjoint(parts(own))


def test_an_epilogue_takes_the_pointwise_work_of_narrow_products() -> None:
    """Casts are left of what enters the experts (5 wide) and of the gradient of what leaves them."""
    own = spec(gated=True, bias=True, clamped=True)
    found = parts(own, experts_pointwise="epilogue", gemm_dtype="fp8")
    assert {"clamp", "bias"}.isdisjoint(found)
    assert (found["activation"].forward, found["activation"].input_grad) == ((), ())
    assert found["activation"].saves == parts(own, gemm_dtype="fp8")["activation"].saves
    casts = {name: [work for work in (*found[name].forward, *found[name].input_grad) if isinstance(work, Pointwise)]
             for name in ("up", "down")}  # fmt: skip
    assert casts == {name: [Pointwise(bytes=R * 5 * 4.0)] for name in ("up", "down")}
    assert [type(work) for work in found["up"].forward] == [Pointwise, GroupedGemm]
    assert [type(work) for work in found["down"].input_grad] == [Pointwise, GroupedGemm]
    # Wider products have no such kernels.
    assert parts(own, experts_pointwise="epilogue") == parts(own, experts_pointwise="tensor-ops")


def test_the_inputs_of_the_experts_activation_may_be_kept_narrower() -> None:
    found = parts(spec(gated=True), activation_input_dtype="fp8")
    assert found["up"].saves[-1] == Saved(name="m.up.output", bytes=R * 32 * 1.0)
    assert found["activation"].forward[-1] == Pointwise(bytes=R * 32 * 3.0, kernel="cast")


@pytest.mark.parametrize(
    ("sizes", "changes", "copies"),
    [
        ({}, {}, 0), ({"ep": 4}, {}, 1), ({"ep": 12}, {}, 0), ({"ep": 4}, {"expert_dispatch": "deduplicated"}, 0),
        ({"ep": 4, "capacity_factor": 1.0}, {"gemm_dtype": "fp8", "pads_experts": True}, 0),
        ({"ep": 4}, {"gemm_dtype": "fp8", "pads_experts": True}, 2), ({"ep": 4}, {"pads_experts": True}, 1),
        ({"ep": 12}, {"gemm_dtype": "mxfp8", "pads_experts": True}, 1), ({}, {"gemm_dtype": "fp8"}, 0),
    ],
)  # fmt: skip
def test_rows_are_sorted_by_expert_where_several_wait_and_padded_where_products_are_narrow(
    sizes: dict[str, Any], changes: dict[str, Any], copies: int
) -> None:
    """Each copy reads and writes 5 elements of 2 bytes a row, before the products and after them, and back."""
    found = parts(spec(), sizes, **changes)
    for name in ("permute", "unpermute"):
        moved = Pointwise(bytes=R * 5 * 4.0 * (1 + copies), kernels=2, kernel="permute")
        assert (found[name].forward, found[name].input_grad) == ((moved,), (replace(moved, kernel="permute_grad"),))
        assert found[name].saves == parts(spec(), sizes)[name].saves


def test_padded_buffers_of_the_model_are_in_order() -> None:
    assert parts(spec(capacity_factor=1.0), {"ep": 4})["permute"].forward[0].bytes == R * 5 * 4.0


def test_copies_after_an_expert_tensor_gather_are_of_all_its_rows() -> None:
    found = parts(spec(), {"ep": 2, "etp": 4, "tp": 2, "sequence_parallel": True})["permute"]
    assert found.forward[0].bytes == R / 2 * 5 * 4.0 * (1 + 4)


def test_a_column_of_degrees_sorts_where_several_experts_wait() -> None:
    found = parts(spec(), {"ep": np.array([1, 4, 12])})["permute"].forward[0]
    assert list(found.bytes) == [R * 5 * 4.0, R * 5 * 8.0, R * 5 * 4.0]
