"""Model states, their traffic and their collectives for 70 dense and 30 expert parameters, byte by byte."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulator.arch.layer import Segment
from simulator.arch.operations import Collective, Operation, Weight
from simulator.parallel import states
from simulator.parallel.gradients import Synchronisation, synchronisation
from simulator.parallel.lower import Stage
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy

HELD = states.HeldParameters(dense=70.0, expert=30.0, replicated=5.0, largest_segment=40.0, layers=80.0,
                             largest_layer=25.0)  # fmt: skip
MIXED = Run(global_batch=8, precision="bf16", optimizer="adam")
PLAIN = Framework(name="plain")
HALF = Framework(name="half", gradient_dtype="bf16", gradient_reduce_dtype="bf16")


def _segment(name: str, *weights: Weight, layer: bool = True) -> Segment:
    first, rest = Operation(name="a", weights=weights[:1]), Operation(name="b", weights=weights[1:])
    return Segment(name=name, operations=(first, rest), input_bytes=1.0, recomputable=layer)


LAYER = _segment("layer", Weight(name="w", elements=10), Weight(name="e", elements=7, sharing="expert"),
                 Weight(name="norm", elements=3, sequence_replicated=True))  # fmt: skip
OTHER = _segment("other", Weight(name="w", elements=100))
ENDS = _segment("ends", Weight(name="w", elements=60), Weight(name="norm", elements=2, sequence_replicated=True),
                layer=False)  # fmt: skip


def test_what_a_rank_holds_is_added_up_over_its_stages() -> None:
    stages = (Stage(index=0, parts=((ENDS, 1), (LAYER, 2)), boundary_bytes=0.0),
              Stage(index=1, parts=((LAYER, 3), (OTHER, 0)), boundary_bytes=0.0))  # fmt: skip
    assert states.held_parameters(stages) == states.HeldParameters(
        dense=62 + 5 * 13, expert=5 * 7, replicated=2 + 5 * 3, largest_segment=62, layers=5 * 20, largest_layer=20
    )
    assert states.held_parameters(stages).total == 62 + 5 * 20
    one = states.held_parameters((Stage(index=0, parts=((OTHER, 1), (LAYER, 1)), boundary_bytes=0.0),))
    assert (one.largest_segment, one.largest_layer, one.layers) == (100, 100, 120)
    none = states.held_parameters((Stage(index=0, parts=((OTHER, 0),), boundary_bytes=0.0),))
    assert (none.largest_segment, none.largest_layer, none.total) == (0, 0, 0)


@pytest.mark.parametrize(
    ("precision", "read", "quantised", "wire", "kept"),
    [("fp32", 4, 0, 4, 4), ("tf32", 4, 0, 4, 4), ("fp16", 2, 0, 2, 2), ("bf16", 2, 0, 2, 2), ("fp8", 2, 2, 2, 2),
     # One scale of a byte per 32 (MX) or 16 (NVFP4) elements, of the weight and of its transpose.
     ("mxfp8", 2, 2 + 2 / 32, 2, 2), ("nvfp4", 2, 1 + 2 / 16, 2, 2)],
)  # fmt: skip
def test_bytes_of_one_parameter(precision: str, read: float, quantised: float, wire: float, kept: float) -> None:
    run = replace(MIXED, precision=precision)
    assert states.parameter_bytes(run) == read
    assert states.low_precision_copy_bytes(run, PLAIN) == quantised
    assert states.low_precision_copy_bytes(run, replace(PLAIN, compiled=True)) == 0
    assert states.wire_bytes(run, HALF) == wire
    assert states.gradient_bytes(run, HALF) == kept
    assert (states.wire_bytes(run, PLAIN), states.gradient_bytes(run, PLAIN)) == (4, 4)
    assert states.stored_bytes(run, PLAIN) == read
    assert states.stored_bytes(run, replace(PLAIN, stored_parameter_dtype="fp32")) == 4
    assert states.stored_bytes(run, replace(PLAIN, stored_parameter_dtype="bf16")) == 2


@pytest.mark.parametrize(("optimizer", "moments"), [("adam", 8), ("adamw", 8), ("lamb", 8), ("adam-bf16", 4),
                                                    ("sgd", 4), ("adafactor", 0)])  # fmt: skip
def test_an_fp32_master_stands_beside_narrower_parameters(optimizer: str, moments: float) -> None:
    run = replace(MIXED, optimizer=optimizer)
    assert states.optimizer_bytes(run, PLAIN) == moments + 4
    assert states.optimizer_bytes(replace(run, precision="fp32"), PLAIN) == moments
    assert states.optimizer_bytes(run, replace(PLAIN, stored_parameter_dtype="fp32")) == moments


def test_dense_states_divide_over_replicas_and_experts_over_theirs() -> None:
    strategy = Strategy(tp=2, cp=3, dp=8, ep=4, etp=3, sequence_parallel=True)
    assert states.shard_ranks(strategy) == (24, 4)
    assert states.owned_parameters(HELD, strategy) == 70 / 24 + 30 / 4
    assert states.shard_ranks(replace(strategy, shard_group=4)) == (12, 4)
    assert states.shard_ranks(replace(strategy, shard_group=2)) == (6, 2)


def _states(strategy: Strategy, framework: Framework = PLAIN, run: Run = MIXED) -> dict[str, Any]:
    return states.state_bytes(HELD, run, strategy, framework)


@pytest.mark.parametrize(
    ("zero", "weights", "gradients", "optimizer"),
    [(0, 200, 400, 1200), (1, 200, 400, 150), (2, 200, 50, 150), (3, 25, 50, 150)],
)
def test_zero_divides_one_part_more_at_each_stage(
    zero: int, weights: float, gradients: float, optimizer: float
) -> None:
    """100 parameters on 8 ranks that share them: 2, 4 and 12 bytes of each (Rajbhandari 2020, section 3.1)."""
    found = _states(Strategy(dp=8, zero=zero))
    gathered = {"gathered_parameters": 2 * 40 * 2.0} if zero == 3 else {}
    assert found == {"weights": weights, "gradients": gradients, "optimizer": optimizer} | gathered
    late = _states(Strategy(dp=8, zero=zero), replace(PLAIN, defers_gradient_scatter=True))
    assert late["gradients"] == (50 if zero == 3 else 400)
    fresh = _states(Strategy(dp=8, zero=zero), replace(PLAIN, keeps_fresh_gradients=True))
    assert fresh["gradients"] == gradients + 200
    assert {**fresh, "gradients": gradients} == found


def test_quantised_copies_are_of_layers_and_under_zero_3_of_those_at_work() -> None:
    run = replace(MIXED, precision="fp8")
    assert _states(Strategy(dp=8), run=run)["weights"] == 200 + 2 * 80
    found = _states(Strategy(dp=8, zero=3), run=run)
    assert (found["weights"], found["gathered_parameters"]) == (25, 2 * (2 * 40 + 2 * 25))
    kept = _states(Strategy(dp=8, zero=3, reshard_after_forward=False), run=run)
    assert kept["gathered_parameters"] == 2 * 100 + 2 * 80


@pytest.mark.parametrize(
    ("offload", "zero", "weights", "gradients"),
    [("optimizer", 1, 200, 400), ("optimizer", 2, 200, 0), ("optimizer", 3, 25, 0), ("parameters", 3, 0, 0)],
)
def test_what_is_offloaded_leaves_the_device(offload: Any, zero: int, weights: float, gradients: float) -> None:
    found = _states(Strategy(dp=8, zero=zero, offload=offload))
    assert [found[part] for part in ("weights", "gradients", "optimizer")] == [weights, gradients, 0]
    nothing = replace(HELD, dense=0.0, expert=0.0)
    assert states.state_bytes(nothing, MIXED, Strategy(dp=8, zero=zero, offload=offload), PLAIN)["optimizer"] == 0


def test_fsdp_holds_one_segment_s_whole_gradients_twice() -> None:
    for copies, held in (("none", 0), ("flattened", 0), ("gradients", 40 * (2 + 4)), ("both", 40 * (2 + 4))):
        assert states.whole_gradient_bytes(HELD, MIXED, replace(PLAIN, sharded_copies=copies)) == held
    assert states.whole_gradient_bytes(HELD, MIXED, replace(HALF, sharded_copies="both")) == 40 * (2 + 2)


def test_the_step_widens_narrow_gradients_beside_the_states() -> None:
    def needed(strategy: Strategy, framework: Framework, run: Run = MIXED) -> Any:
        return states.optimizer_step_bytes(HELD, run, strategy, framework)

    assert needed(Strategy(dp=8), PLAIN) == 0
    assert needed(Strategy(dp=8), HALF, replace(MIXED, precision="fp32")) == 0
    assert needed(Strategy(dp=8), replace(HALF, stored_parameter_dtype="fp32")) == 0
    assert needed(Strategy(dp=8, zero=1, offload="optimizer"), HALF) == 0
    assert (needed(Strategy(dp=8), HALF), needed(Strategy(dp=8, zero=1), HALF)) == (400, 50)
    flat = replace(HALF, flat_gradients=True, bucket_bytes=30.0)
    assert (needed(Strategy(dp=8), flat), needed(Strategy(dp=8, zero=1), flat)) == (600, 75 + 30)
    assert needed(Strategy(dp=8, zero=1), replace(flat, bucket_bytes=1e6)) == 75 + 200


@pytest.mark.parametrize(
    ("dtype", "fused", "moved"),
    # Fused: the sum is read, and written in 4 bytes in place of the fresh gradient's 2. Apart: all three are moved.
    [("fp32", True, 4 + 4 - 2), ("fp32", False, 2 + 4 + 4), ("bf16", True, 2 + 2 - 2), ("bf16", False, 2 + 2 + 2)],
)
def test_adding_up_gradients_moves_the_sum_and_the_fresh_one(dtype: str, fused: bool, moved: float) -> None:
    software = replace(PLAIN, gradient_dtype=dtype, fused_gradient_accumulation=fused)
    assert states.accumulation_bytes(10.0, MIXED, software) == 10 * moved


@pytest.mark.parametrize(
    ("copies", "gather", "scatter"),
    # 2-byte parameters and gradients, 4 bytes on the wire.
    [("none", 0, 0), ("flattened", 0, 0), ("both", 2 + 2, 2 + 4), ("gradients", 0, 2 + 2 + 4 + 4)],
)
def test_copies_around_a_gather_and_a_scatter(copies: str, gather: float, scatter: float) -> None:
    software = replace(PLAIN, sharded_copies=copies)
    assert states.sharding_copy_bytes(10.0, MIXED, software) == (10 * gather, 10 * scatter)
    assert states.flattening_bytes(10.0, MIXED, software) == (10 * 3 * (4 + 4) if copies == "flattened" else 0)
    half = replace(software, gradient_reduce_dtype="bf16")
    assert states.flattening_bytes(10.0, MIXED, half) == (10 * 3 * (2 + 2) if copies == "flattened" else 0)


@pytest.mark.parametrize(
    ("changes", "precision", "zeroed", "each"),
    [
        # bf16 with fp32 gradients: norm and update read them, 3 states read and written, master copied out.
        ({}, "bf16", 4, 4 + 4 + 24 + (4 + 2)),
        # bf16 gradients are cast first.
        ({"gradient_dtype": "bf16"}, "bf16", 2, (2 + 4) + 4 + 4 + 24 + (4 + 2)),
        # Loss scaling of fp16 reads and writes the fp32 gradients once more.
        ({}, "fp16", 4, (4 + 4) + 4 + 4 + 24 + (4 + 2)),
        # A compiler fuses the casts and the scale: gradients twice, states, parameter written.
        ({"gradient_dtype": "bf16", "compiled": True}, "bf16", 2, 2 + 2 + 24 + 2),
        ({"compiled": True}, "fp16", 4, 4 + 4 + 24 + 2),
        # Parameters that are their own master are written as the 4 bytes of the master; used in 2.
        ({"stored_parameter_dtype": "fp32"}, "bf16", 4, 4 + 4 + 24 + 2),
        ({}, "fp32", 4, 4 + 4 + 24 + 4),
        # Without a fused optimizer, three passes over the states.
        ({"fused_optimizer": False}, "bf16", 4, 4 + 4 + 72 + (4 + 2)),
    ],
)
def test_an_optimizer_step_reads_and_writes_so_many_bytes(
    changes: dict[str, Any], precision: str, zeroed: float, each: float
) -> None:
    run, software = replace(MIXED, precision=precision), replace(PLAIN, **changes)
    moved = [states.optimizer_traffic_bytes(HELD, run, Strategy(dp=8, zero=zero), software) for zero in (0, 1, 3)]
    assert moved == [100 * (zeroed + each), 100 * zeroed + 12.5 * each, 100 * zeroed + 12.5 * each]


def _pair(kind: Any, axis: str, each: float) -> tuple[Collective, ...]:
    return (Collective(kind=kind, axis=axis, bytes=70 * each), Collective(kind=kind, axis="edp", bytes=30 * each))


GATHER, SCATTER = _pair("all_gather", "shard", 2.0), _pair("reduce_scatter", "shard", 4.0)


def _sync(strategy: Strategy, framework: Framework = PLAIN, replicated: Any = 0.0) -> Synchronisation:
    return synchronisation(replace(HELD, replicated=replicated), MIXED, strategy, framework)


def test_what_replicas_send_by_zero_stage() -> None:
    assert _sync(Strategy(dp=8)) == Synchronisation(reduce=_pair("all_reduce", "dp_cp", 4.0), gather=())
    assert _sync(Strategy(dp=8, zero=1)) == Synchronisation(reduce=SCATTER, gather=GATHER)
    assert _sync(Strategy(dp=8, zero=2)) == Synchronisation(reduce=(), gather=GATHER, backward=SCATTER)
    assert _sync(Strategy(dp=8, zero=3)) == Synchronisation(reduce=(), gather=(), forward=GATHER,
                                                            backward=(*GATHER, *SCATTER))  # fmt: skip
    kept = _sync(Strategy(dp=8, zero=3, reshard_after_forward=False))
    assert (kept.forward, kept.backward) == (GATHER, SCATTER)
    late = replace(PLAIN, defers_gradient_scatter=True)
    assert _sync(Strategy(dp=8, zero=2), late) == _sync(Strategy(dp=8, zero=1))
    assert _sync(Strategy(dp=8, zero=3), late) == _sync(Strategy(dp=8, zero=3))


def test_owners_of_whole_tensors_are_reduced_to_and_broadcast_from() -> None:
    owners = replace(PLAIN, zero_whole_tensors=True)
    reduce, broadcast = _pair("reduce", "shard", 4.0), _pair("broadcast", "shard", 2.0)
    assert _sync(Strategy(dp=8, zero=1), owners) == Synchronisation(reduce=reduce, gather=broadcast)
    assert _sync(Strategy(dp=8, zero=2), owners) == Synchronisation(reduce=(), gather=broadcast, backward=reduce)
    assert _sync(Strategy(dp=8, zero=3), owners) == _sync(Strategy(dp=8, zero=3))


def test_shard_groups_are_reduced_between() -> None:
    """Groups of 2 of 8 replicas with 3 context ranks each: a sixth of the dense gradients is summed over groups."""
    between = (Collective(kind="all_reduce", axis="replicas", bytes=70 / 6 * 4.0),)
    for zero in (1, 2, 3):
        found = _sync(Strategy(dp=8, cp=3, zero=zero, shard_group=2))
        assert found.reduce == (SCATTER + between if zero == 1 else between)


def test_replicated_parameters_are_summed_over_tp_under_sequence_parallelism_alone() -> None:
    split = Strategy(tp=2, dp=4, sequence_parallel=True)
    small = (Collective(kind="all_reduce", axis="tp", bytes=20.0),)
    assert [_sync(replace(split, zero=zero), replicated=5.0).tensor for zero in (0, 1, 2, 3)] == [small] * 4
    assert _sync(replace(split, sequence_parallel=False), replicated=5.0).tensor == ()
    assert _sync(split, replicated=0).tensor == ()
    assert len(_sync(split, replicated=np.array([0.0, 1.0])).tensor) == 1


def test_a_rank_without_experts_or_dense_parameters_sends_none() -> None:
    def sent(dense: Any, expert: Any) -> list[str]:
        held = replace(HELD, dense=dense, expert=expert)
        return [collective.axis for collective in synchronisation(held, MIXED, Strategy(dp=8), PLAIN).reduce]

    assert (sent(70.0, 0.0), sent(0, 30.0)) == (["dp_cp"], ["edp"])
    assert sent(1, np.array([0.0, 2.0])) == ["dp_cp", "edp"]
