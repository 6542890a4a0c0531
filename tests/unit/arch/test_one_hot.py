"""Routing by products with one-hot tensors, counted by hand and beside the copies that it stands for."""

from __future__ import annotations

import pytest

from simulator.arch.experts import experts
from simulator.arch.flops import work_flops
from simulator.arch.one_hot import group_tokens
from simulator.arch.operations import Gemm, Operation, Pointwise, Saved
from simulator.spec.model import ExpertsSpec
from tests.unit.arch.hand import kernels, shard

SPEC = ExpertsSpec(count=12, top_k=2, hidden=16, capacity_factor=1.5, routing_group=105)
"""420 tokens of a rank in four groups of 105, each with 105 x 2 x 1.5 = 315 places for its experts."""


def moves(spec: ExpertsSpec = SPEC, dtype: str = "bf16", **sizes: object) -> dict[str, Operation]:
    own = kernels(expert_dispatch="einsum", activation_dtype=dtype)
    found = experts(spec, width=5, shard=shard(**sizes), kernels=own, name="m")
    return {operation.name.removeprefix("m."): operation for operation in found}


@pytest.mark.parametrize(("dtype", "size"), [("bf16", 2.0), ("fp16", 2.0), ("fp32", 4.0)])
def test_four_groups_of_105_tokens_and_315_places(dtype: str, size: float) -> None:
    """Mask and weights have 420 x 315 entries; products multiply in the activations' dtype."""
    found, entries = moves(dtype=dtype), 420 * 315
    to_places, to_tokens, weights = (
        Gemm(m=m, n=n, k=k, batch=4, dtype=dtype) for m, n, k in ((315, 5, 105), (105, 5, 315), (105, 315, 5))
    )
    assert found["permute"] == Operation(
        name="m.permute", forward=(Pointwise(bytes=entries * 2 * size, kernel="one_hot"), to_places),
        input_grad=(to_tokens,), modules=("moe",),
        saves=(Saved(name="m.permute.mask", bytes=entries * size),
               Saved(name="m.permute.weights", bytes=entries * size)),
    )  # fmt: skip
    assert found["unpermute"] == Operation(
        name="m.unpermute", forward=(to_tokens,), modules=("moe",),
        input_grad=(weights, Pointwise(bytes=entries * size, kernel="one_hot_grad"), to_places),
        saves=(Saved(name="m.unpermute.input", bytes=420 * 3 * 5 * size),),
    )  # fmt: skip


def test_flops_are_those_of_the_einsums() -> None:
    """GSEC,GSM->EGCM multiplies every token with every place of its group: 2 G S (E C) M, and so do the other four."""
    each = 2 * 4 * 105 * 315 * 5
    dispatch, combine = moves()["permute"], moves()["unpermute"]
    works = [*dispatch.forward, *dispatch.input_grad, *combine.forward, *combine.input_grad]
    assert [float(work_flops(work)) for work in works if isinstance(work, Gemm)] == [each] * 5


def test_a_run_s_group_stands_before_the_model_s_and_none_is_the_whole_rank() -> None:
    assert moves(routing_group=210)["permute"].forward[1] == Gemm(m=630, n=5, k=210, batch=2)
    whole = ExpertsSpec(count=12, top_k=2, hidden=16, capacity_factor=1.5)
    assert moves(whole)["permute"].forward[1] == Gemm(m=1260, n=5, k=420, batch=1)
    assert group_tokens(420, 10_000) == 420


@pytest.mark.parametrize(("per_choice", "rows"), [(True, 420 * 3.0), (False, 420 * 1.5)])
def test_a_factor_of_all_choices_together_does_not_count_them(per_choice: bool, rows: float) -> None:
    """Fedus 2022 eq. 3: tokens per batch / experts x capacity factor."""
    assert moves(capacity_per_choice=per_choice)["up"].forward[0].tokens == rows  # type: ignore[union-attr]
