"""Routing by products with one-hot tensors, counted by hand and beside the copies that it stands for."""

from __future__ import annotations

import pytest

from simulator.arch.experts import experts
from simulator.arch.flops import work_flops
from simulator.arch.one_hot import group_tokens
from simulator.arch.operations import Gemm, Operation, Pointwise
from simulator.spec.model import ExpertsSpec
from tests.unit.arch.hand import kernels, shard

SPEC = ExpertsSpec(count=12, top_k=2, hidden=16, capacity_factor=1.5, routing_group=105)
"""420 tokens of a rank in four groups of 105, each with 105 x 2 x 1.5 = 315 places for its experts."""


def moves(spec: ExpertsSpec = SPEC, **sizes: object) -> dict[str, Operation]:
    found = experts(spec, width=5, shard=shard(**sizes), kernels=kernels(expert_dispatch="einsum"), name="m")
    return {operation.name.removeprefix("m."): operation for operation in found}


def test_four_groups_of_105_tokens_and_315_places() -> None:
    dispatch, combine = moves()["permute"], moves()["unpermute"]
    build, product = dispatch.forward
    assert build == Pointwise(bytes=420 * 315 * 2 * 2.0, kernel="one_hot")
    to_places, to_tokens = Gemm(m=315, n=5, k=105, batch=4), Gemm(m=105, n=5, k=315, batch=4)
    assert product == to_places
    assert dispatch.input_grad == (to_tokens,)
    assert combine.forward == (to_tokens,)
    weights, total, back = combine.input_grad
    assert (weights, back) == (Gemm(m=105, n=315, k=5, batch=4), to_places)
    assert total == Pointwise(bytes=420 * 315 * 2.0, kernel="one_hot_grad")


def test_what_stays_for_backward_is_the_mask_the_weights_and_the_experts_outputs() -> None:
    kept = {saved.name: saved.bytes for name in ("permute", "unpermute") for saved in moves()[name].saves}
    assert kept == {"m.permute.mask": 420 * 315 * 2.0, "m.permute.weights": 420 * 315 * 2.0,
                    "m.unpermute.input": 420 * 3 * 5 * 2.0}  # fmt: skip


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
