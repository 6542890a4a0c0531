"""Feed-forward blocks and LSTM layers counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.arch.feed_forward import activation, feed_forward
from simulator.arch.operations import Collective, Gemm, Operation, Pointwise, Saved, Weight
from simulator.arch.recurrent import lstm
from simulator.spec.model import FeedForwardSpec, LstmSpec
from tests.unit.arch.hand import kernels, shard


def _activation(spec: FeedForwardSpec, **changes: Any) -> Operation:
    return activation("a", rows=7, hidden=11, spec=spec, kernels=kernels(**changes), modules=("mlp",))


def test_a_plain_activation_reads_one_and_writes_one() -> None:
    assert _activation(FeedForwardSpec(hidden=11)) == Operation(
        name="a", forward=(Pointwise(bytes=77 * 4.0, kernel="gelu"),),
        input_grad=(Pointwise(bytes=77 * 6.0, kernel="gelu_grad"),), saves=(Saved(name="a.output", bytes=154.0),),
        modules=("mlp",),
    )  # fmt: skip


def test_a_relu_keeps_one_tensor_only() -> None:
    assert _activation(FeedForwardSpec(hidden=11, activation="relu")).saves == ()
    gated = _activation(FeedForwardSpec(hidden=11, activation="relu", gated=True))
    assert gated.saves == (Saved(name="a.output", bytes=154.0),)


@pytest.mark.parametrize("changes", [{}, {"fused_bias_activation": False, "compiled": True}])
def test_a_fused_gate_reads_two_and_writes_one(changes: dict[str, Any]) -> None:
    assert _activation(FeedForwardSpec(hidden=11, gated=True, activation="silu"), **changes) == Operation(
        name="a", forward=(Pointwise(bytes=77 * 6.0, kernel="gated_silu"),),
        input_grad=(Pointwise(bytes=77 * 10.0, kernel="gated_silu_grad"),),
        saves=(Saved(name="a.output", bytes=154.0),), modules=("mlp",),
    )  # fmt: skip


def test_an_unfused_gate_is_two_kernels_and_keeps_the_activated_gate() -> None:
    """2 + 3 elements forward, 3 + 3 + 3 backward, of 2 bytes."""
    spec = FeedForwardSpec(hidden=11, gated=True, activation="silu")
    assert _activation(spec, fused_bias_activation=False) == Operation(
        name="a", forward=(Pointwise(bytes=77 * 10.0, kernels=2, kernel="gated_silu"),),
        input_grad=(Pointwise(bytes=77 * 18.0, kernels=2, kernel="gated_silu_grad"),),
        saves=(Saved(name="a.output", bytes=154.0), Saved(name="a.gate", bytes=154.0)), modules=("mlp",),
    )  # fmt: skip
    plain = _activation(FeedForwardSpec(hidden=11), fused_bias_activation=False)
    assert plain == _activation(FeedForwardSpec(hidden=11))


def test_the_output_of_an_activation_is_saved_as_the_next_product_reads_it() -> None:
    assert _activation(FeedForwardSpec(hidden=11), gemm_dtype="fp8").saves == (Saved(name="a.output", bytes=77.0),)


@pytest.mark.parametrize(("dtype", "each"), [("fp8", 1.0), ("e5m6", 1.5)])
def test_the_input_of_an_activation_may_be_kept_narrower(dtype: str, each: float) -> None:
    """2 x 77 inputs of a gate are copied into that dtype and, before the backward, out of it."""
    spec = FeedForwardSpec(hidden=11, gated=True, activation="silu")
    copy = Pointwise(bytes=154 * (2.0 + each), kernel="cast")
    plain, found = _activation(spec), _activation(spec, activation_input_dtype=dtype)
    assert found.forward == (*plain.forward, copy)
    assert found.input_grad == (copy, *plain.input_grad)
    assert found.saves == plain.saves
    up = feed_forward(spec, width=5, shard=shard(), kernels=kernels(activation_input_dtype=dtype), name="f")[1]
    assert up.saves == (Saved(name="f.up.output", bytes=420 * 22 * each),)


@pytest.mark.parametrize(("gated", "columns"), [(False, 24), (True, 48)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_feed_forward_under_tensor_parallelism(gated: bool, columns: int, bias: bool) -> None:
    """Width 5, hidden 48 over tp 2: 24 local units; 3 sequences of 140 tokens are 420."""
    spec = FeedForwardSpec(hidden=48, gated=gated, bias=bias)
    own = kernels()
    found = feed_forward(spec, width=5, shard=shard(tp=2), kernels=own)
    assert [operation.name for operation in found] == ["mlp.enter", "mlp.up", "mlp.activation", "mlp.down", "mlp.leave"]
    enter, up, act, down, leave = found
    assert enter.input_grad == (Collective(kind="all_reduce", axis="tp", bytes=420 * 5 * 2.0),)
    assert up.forward == (Gemm(m=420, n=columns, k=5),)
    assert up.saves == (Saved(name="mlp.up.output", bytes=420 * columns * 2.0),)
    assert act.forward[0].bytes == 420 * 24 * 2.0 * (3 if gated else 2)
    assert down.forward == (Gemm(m=420, n=5, k=24),)
    assert down.saves == ()
    assert leave.forward == (Collective(kind="all_reduce", axis="tp", bytes=420 * 5 * 2.0),)
    assert all(operation.modules == ("mlp",) for operation in (up, act, down))
    assert sum(weight.elements for weight in up.weights) == columns * (5 + bias)
    assert sum(weight.elements for weight in down.weights) == 5 * (24 + bias)
    assert {len(up.weights), len(down.weights)} == {1 + bias}
    named = feed_forward(spec, width=5, shard=shard(tp=2), kernels=own, name="shared", modules=("moe",))
    assert [operation.name.partition(".")[0] for operation in named] == ["shared"] * 5
    assert [operation.modules for operation in named] == [(), ("moe",), ("moe",), ("moe",), ()]


def test_an_lstm_is_one_product_over_the_inputs_and_one_per_step() -> None:
    """Width 5, 11 units: 44 gates. 3 sequences of 140 steps; the first state is a constant: 139 steps back."""
    assert lstm(LstmSpec(hidden=11), width=5, shard=shard(), kernels=kernels()) == [Operation(
        name="lstm",
        forward=(Gemm(m=420, n=44, k=5), Gemm(m=3, n=44, k=11, repeat=140),
                 Pointwise(bytes=420 * 11 * 16.0, flops=420 * 220)),
        input_grad=(Pointwise(bytes=420 * 11 * 16.0, flops=420 * 220), Gemm(m=3, n=11, k=44, repeat=139),
                    Gemm(m=420, n=5, k=44)),
        weight_grad=(Gemm(m=44, n=16, k=420),),
        weights=(Weight(name="lstm", elements=16 * 44),),
        saves=(Saved(name="lstm.gates", bytes=420 * 44 * 2.0), Saved(name="lstm.cells", bytes=420 * 11 * 2.0,
               boundary=True), Saved(name="lstm.states", bytes=420 * 11 * 2.0, boundary=True)),
    )]  # fmt: skip


def test_a_projected_lstm_has_a_narrower_state() -> None:
    layer, projection = lstm(LstmSpec(hidden=11, projection=7), width=5, shard=shard(), kernels=kernels(
        gemm_dtype="fp16"), name="l")  # fmt: skip
    assert layer.forward[:2] == (Gemm(m=420, n=44, k=5, dtype="fp16"), Gemm(m=3, n=44, k=7, repeat=140, dtype="fp16"))
    assert layer.input_grad[1:] == (Gemm(m=3, n=7, k=44, repeat=139, dtype="fp16"), Gemm(m=420, n=5, k=44,
                                    dtype="fp16"))  # fmt: skip
    assert layer.weight_grad == (Gemm(m=44, n=12, k=420, dtype="fp16"),)
    assert layer.saves[2].bytes == 420 * 7 * 2.0
    assert projection == Operation(
        name="l.projection",
        forward=(Gemm(m=3, n=7, k=11, repeat=140, dtype="fp16"),),
        input_grad=(Gemm(m=3, n=11, k=7, repeat=140, dtype="fp16"),),
        weight_grad=(Gemm(m=7, n=11, k=420, dtype="fp16"),),
        weights=(Weight(name="l.projection", elements=77),),
    )
