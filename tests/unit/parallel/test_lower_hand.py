"""What a strategy deals out to its stages, and the memory of a stage, with sizes that can be added up by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simulator.arch.layer import Segment
from simulator.arch.operations import AttentionCore, Gemm, GroupedGemm, Operation, Saved, Weight
from simulator.parallel import memory
from simulator.parallel.lower import (
    Stage,
    kernels_of,
    layers_of_stages,
    lower,
    pieces_of,
    sequence_lengths,
    shard_for,
)
from simulator.parallel.recompute import Policy
from simulator.parallel.setting import Setting, groups_of
from simulator.spec.model import AttentionSpec, FeedForwardSpec, HeadSpec, LayerSpec, ModelSpec, StackSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy
from tests.support import dgx, gpt

PLAIN = Framework(name="plain", vocab_multiple=1, context_bytes=50.0)
RUN = Run(global_batch=64, seq_len=48, precision="bf16")


def _layer(hidden: int) -> LayerSpec:
    heads = AttentionSpec(heads=4, kv_heads=4, head_dim=8, value_head_dim=8)
    return LayerSpec(attention=heads, feed_forward=FeedForwardSpec(hidden=hidden))


def _model(*runs: tuple[LayerSpec, int], encoder: int = 0, **head: Any) -> ModelSpec:
    stacks = (StackSpec(role="decoder", runs=runs),)
    if encoder:
        stacks = (StackSpec(role="encoder", runs=((_layer(100), encoder),)), *stacks)
    return replace(gpt(32, 1, 4, vocab=1000), stacks=stacks, head=HeadSpec(**head))


@pytest.mark.parametrize(
    ("layers", "stages", "split"),
    [(8, 4, (2, 2, 2, 2)), (9, 4, (2, 3, 2, 2)), (10, 4, (2, 3, 3, 2)), (11, 4, (2, 3, 3, 3)), (5, 1, (5,)),
     (2, 3, (0, 1, 1))],
)  # fmt: skip
def test_a_remainder_goes_to_the_stages_after_the_first(layers: int, stages: int, split: tuple[int, ...]) -> None:
    assert layers_of_stages(layers, stages) == split
    assert layers_of_stages(layers, stages, (7, 1)) == (7, 1)


def test_lengths_of_one_stack_and_of_two() -> None:
    two = replace(_model((_layer(60), 2), encoder=1), target_seq_len=20)
    assert sequence_lengths(_model((_layer(60), 2)), RUN) == (48, 0)
    assert sequence_lengths(_model((_layer(60), 2)), replace(RUN, seq_len=0)) == (2048, 0)
    assert sequence_lengths(two, RUN) == (48, 20)
    assert sequence_lengths(two, replace(RUN, target_seq_len=12)) == (48, 12)
    assert sequence_lengths(replace(two, target_seq_len=0), RUN) == (48, 48)


def test_a_shard_is_cut_by_the_strategy_s_degrees() -> None:
    two = replace(_model((_layer(60), 2), encoder=1), target_seq_len=20)
    run = replace(RUN, capacity_factor=1.5, routing_group=32, expert_imbalance=1.25)
    software = replace(PLAIN, vocab_multiple=16, capacity_per_choice=False)
    degrees = Strategy(tp=2, cp=3, ep=4, etp=5, micro_batch=6, sequence_parallel=False, context_kind="ulysses")
    found = shard_for(two, run, software, degrees)
    fields = ("tp", "cp", "ep", "etp", "micro_batch", "sequence_parallel", "context_kind", "vocab_multiple")
    assert [getattr(found, name) for name in fields] == [2, 3, 4, 5, 6, False, "ulysses", 16]
    routed = (found.capacity_factor, found.capacity_per_choice, found.routing_group, found.imbalance)
    assert routed == (1.5, False, 32, 1.25)
    assert (found.seq_len, found.memory_seq_len) == (48, 0)
    decoder = shard_for(two, run, software, degrees, stack=1)
    assert (decoder.seq_len, decoder.memory_seq_len) == (20, 48)
    assert shard_for(two, run, software, replace(degrees, tp=1)).sequence_parallel is True
    assert shard_for(two, run, software, replace(degrees, sequence_parallel=True)).sequence_parallel is True


@pytest.mark.parametrize(("own", "software", "chosen"), [(None, True, True), (None, False, False), (False, True, False),
                                                         (True, False, True)])  # fmt: skip
def test_a_strategy_s_overlap_goes_before_the_software_s(own: bool | None, software: bool, chosen: bool) -> None:
    model = _model((_layer(60), 2))
    framework = replace(PLAIN, overlap_tp=software, overlap_moe=not software)
    found = kernels_of(model, RUN, framework, Strategy(overlap_tp=own, overlap_moe=None if own is None else not own))
    assert (found.overlap_tp, found.overlap_moe) == (chosen, not chosen)


def _names(stage: Stage) -> list[tuple[str, int]]:
    return [(segment.name, count) for segment, count in stage.parts]


def test_layers_are_dealt_out_in_order_and_equal_ones_share_a_segment() -> None:
    """Two runs of one kind around one of another; the last stage holds the final norm, the head and a tied copy."""
    small, large = _layer(60), _layer(90)
    model = _model((small, 3), (large, 2), (small, 1), encoder=0, mtp_layers=2)
    program = lower(model, RUN, Strategy(pp=3, dp=4, micro_batch=2), PLAIN)
    assert [_names(stage) for stage in program.stages] == [
        [("embedding", 1), ("decoder.layer0", 2)], [("decoder.layer0", 1), ("decoder.layer1", 1)],
        [("decoder.layer1", 1), ("decoder.layer0", 1), ("decoder.final_norm", 1), ("head", 1), ("mtp", 2),
         ("head.tied_copy", 1)],
    ]  # fmt: skip
    assert [stage.layers for stage in program.stages] == [2, 2, 2]
    assert [stage.index for stage in program.stages] == [0, 1, 2]
    assert [segment.name for segment in program.segments] == ["decoder.layer0", "decoder.layer1", "decoder.final_norm"]
    assert (program.micro_batches, program.shard.seq_len) == (8, 48)
    assert program.kernels == kernels_of(model, RUN, PLAIN, Strategy())
    # 2 sequences of 48 tokens of 32 x 2 bytes cross a border; the last stage sends nothing.
    assert [stage.boundary_bytes for stage in program.stages] == [6144, 6144, 0]
    copy = program.stages[-1].parts[-1][0]
    assert (copy.recomputable, copy.input_bytes) == (False, 0)
    table = Weight(name="head.tied_copy", elements=32000.0)
    assert copy.operations == (Operation(name="head.tied_copy", weights=(table,)),)
    alone = lower(model, RUN, Strategy(), PLAIN)
    assert "head.tied_copy" not in [name for name, _ in _names(alone.stages[0])]
    untied = lower(_model((small, 4), tied=False), RUN, Strategy(pp=2), PLAIN)
    assert _names(untied.stages[1]) == [("decoder.layer0", 2), ("decoder.final_norm", 1), ("head", 1)]
    explicit = lower(_model((small, 4)), RUN, Strategy(pp=2, layers_per_stage=(1, 3)), PLAIN)
    assert [stage.layers for stage in explicit.stages] == [1, 3]
    again = lower(_model((small, 8)), RUN, Strategy(pp=4), PLAIN)
    assert again.stages[1].parts is again.stages[2].parts


def test_two_stacks_keep_their_own_final_norm_and_pass_the_encoder_s_output_along() -> None:
    model = replace(_model((_layer(60), 2), encoder=2), target_seq_len=20)
    program = lower(model, RUN, Strategy(pp=4, micro_batch=1), PLAIN)
    assert [_names(stage)[-1] for stage in program.stages[:2]] == [("encoder.layer0", 1), ("encoder.final_norm", 1)]
    assert _names(program.stages[2]) == [("decoder.layer0", 1)]
    encoder, decoder = 48 * 32 * 2, 20 * 32 * 2
    assert [stage.boundary_bytes for stage in program.stages] == [encoder, encoder, encoder + decoder, 0]
    deep = replace(_model((_layer(60), 1), encoder=3), target_seq_len=20)
    assert [stage.boundary_bytes for stage in lower(deep, RUN, Strategy(pp=4), PLAIN).stages] == [encoder] * 3 + [0]
    pieces = pieces_of(model, RUN, Strategy(), PLAIN)
    assert (pieces.layers, pieces.tied, len(pieces.units)) == (4, True, 6)
    assert [segment.name for segment in pieces.distinct] == [
        "encoder.layer0", "encoder.final_norm", "decoder.layer0", "decoder.final_norm"]  # fmt: skip


PRODUCTS = (Gemm(m=2, n=3, k=5, batch=7, repeat=11, dtype="fp32"), GroupedGemm(experts=4, tokens=6, n=8, k=9))
CORE = AttentionCore(batch=1, heads=1, kv_heads=1, q_len=1, kv_len=1, head_dim=1, value_head_dim=1, causal=True)
WORKS = Segment(name="works", input_bytes=64.0, operations=(
    Operation(name="a", modules=("m",), weight_grad=PRODUCTS,
              saves=(Saved(name="a", bytes=10.0), Saved(name="b", bytes=20.0, boundary=True))),
    Operation(name="b", forward=(Gemm(m=100, n=100, k=100),), weight_grad=(Gemm(m=1, n=1, k=1, dtype="fp8"), CORE),
              saves=(Saved(name="c", bytes=40.0, beside_bytes=15.0), Saved(name="d", bytes=1.0, beside_bytes=30.0))),
))  # fmt: skip


def test_a_segment_s_bytes_of_one_micro_batch() -> None:
    """Kept 71, the largest companion 30; weight gradients read (2 + 3) x 5 x 77 x 4 + (8 + 9) x 6 x 2 + 2 x 1 bytes."""
    late = 5 * 5 * 77 * 4 + 17 * 6 * 2 + 2
    plain = memory.memories_of([WORKS], Policy())["works"]
    assert plain == memory.SegmentMemory(saved_bytes=71, plain_bytes=71, largest_bytes=30, late_bytes=late)
    some = memory.memories_of([WORKS], Policy(modules=frozenset({"m"})))["works"]
    assert some == replace(plain, saved_bytes=61)
    assert memory.memories_of([WORKS], Policy(full=True))["works"].saved_bytes == 64
    bare = Segment(name="bare", operations=(Operation(name="x"),), input_bytes=1.0)
    nothing = memory.SegmentMemory(saved_bytes=0, plain_bytes=0, largest_bytes=0.0)
    assert memory.memories_of([bare], Policy())["bare"] == nothing


LAYER, END = Segment(name="layer", operations=(), input_bytes=1.0), Segment(name="end", operations=(), input_bytes=1.0,
                                                                            recomputable=False)  # fmt: skip
FEW = {
    "layer": memory.SegmentMemory(saved_bytes=10, plain_bytes=100, largest_bytes=30, late_bytes=7),
    "end": memory.SegmentMemory(saved_bytes=5, plain_bytes=5, largest_bytes=200, late_bytes=3),
}
STAGE = Stage(index=0, parts=((LAYER, 4), (END, 1)), boundary_bytes=48.0)
CLUSTER = dgx(1)


def _setting(strategy: Strategy, **software: Any) -> Setting:
    return Setting(run=RUN, strategy=strategy, framework=replace(PLAIN, **software), cluster=CLUSTER,
                   groups=groups_of(CLUSTER, strategy))  # fmt: skip


def test_a_stage_keeps_its_layers_and_works_beside_the_worst_of_them() -> None:
    """Fully recomputed: 4 inputs of 10 and the end's 5; the end's gradient of 200 first, then a layer made again: 90
    and its gradient of 30, when the end has let go of 5."""
    full = _setting(Strategy(recompute="full"))
    assert memory.stage_memory(STAGE, full, FEW) == memory.StageMemory(
        activation_bytes=45, late_bytes=31, forward_bytes=200, backward_bytes=200)  # fmt: skip
    calm = {**FEW, "end": replace(FEW["end"], largest_bytes=20)}
    assert memory.stage_memory(STAGE, full, calm).backward_bytes == 115
    assert memory.stage_memory(STAGE, full, calm).forward_bytes == 30
    # Two of four: the others let go of 100 each before the first is made again.
    some = _setting(Strategy(recompute="full", recompute_layers=2))
    assert memory.stage_activation_bytes(STAGE, some.strategy, FEW) == 2 * 10 + 2 * 100 + 5
    assert memory.backward_bytes(STAGE, some.strategy, calm) == 25
    big = {**calm, "layer": replace(FEW["layer"], plain_bytes=400)}
    assert memory.backward_bytes(Stage(index=0, parts=((LAYER, 2),), boundary_bytes=0.0),
                                 Strategy(recompute="full", recompute_layers=1), big) == 30  # fmt: skip
    absent = Stage(index=0, parts=((LAYER, 0), (END, 1)), boundary_bytes=0.0)
    assert memory.stage_memory(absent, full, calm).forward_bytes == 20
    assert memory.backward_bytes(absent, full.strategy, calm) == 20
    # A column of layers: none, and two of which the first runs again. Where there is none, nothing is held.
    column = Stage(index=0, parts=((LAYER, np.array([0, 2])),), boundary_bytes=0.0)
    one = _setting(Strategy(recompute="full", recompute_layers=1))
    held = memory.stage_memory(column, one, FEW)
    assert held.forward_bytes.tolist() == held.backward_bytes.tolist() == [0, 30]  # type: ignore[union-attr]


def test_outputs_of_a_stage_are_kept_where_software_keeps_them() -> None:
    for keeps, kept in ((False, 45), (True, 45 + 48)):
        setting = _setting(Strategy(recompute="full"), keeps_stage_outputs=keeps)
        assert memory.kept_bytes(STAGE, setting, FEW) == kept
    shared = Strategy(recompute="full", tp=4, sequence_parallel=False)
    software = {"keeps_stage_outputs": True, "keeps_split_outputs": True}
    assert memory.kept_bytes(STAGE, _setting(shared, **software), FEW) == 45 + 48 / 4
    assert memory.kept_bytes(STAGE, _setting(shared, scatter_gather_p2p=False, **software), FEW) == 45 + 48
    assert memory.kept_bytes(STAGE, _setting(replace(shared, sequence_parallel=True), **software), FEW) == 45 + 48


def test_a_fifth_lost_is_a_quarter_of_what_is_given_out() -> None:
    software = replace(PLAIN, fragmentation_fraction=0.2)
    assert memory.overhead_bytes(100.0, software) == {"fragmentation": pytest.approx(25.0), "context": 50.0}
    assert memory.overhead_bytes(0.0, PLAIN) == {"fragmentation": 0.0, "context": 50.0}


@pytest.mark.parametrize(
    ("zero", "overlap", "bucket", "more"), [(1, True, 100.0, 0), (2, False, 100.0, 0), (2, True, 100.0, 200),
                                            (3, True, 100.0, 200), (2, True, 1e9, 2 * 4 * 70)],
)  # fmt: skip
def test_buckets_outside_the_main_buffer_stand_beside_the_pipeline_s(
    zero: int, overlap: bool, bucket: float, more: float
) -> None:
    setting = _setting(Strategy(dp=8, zero=zero), overlap_grad_reduce=overlap, bucket_bytes=bucket)
    assert memory.buffer_bytes(10.0, 70, setting) == 40 + more
    assert memory.buffer_bytes(np.array([10.0, 20.0]), 70, setting).tolist() == [40 + more, 80 + more]


def test_fsdp_s_whole_gradients_count_as_buffers_under_zero_3_alone() -> None:
    weighing = Operation(name="w", weights=(Weight(name="w", elements=70),))
    held = Segment(name="w", operations=(weighing,), input_bytes=1.0)
    stage = Stage(index=0, parts=((held, 1),), boundary_bytes=0.0)
    for zero, more in ((2, 0), (3, 70 * (2 + 4))):
        setting = _setting(Strategy(dp=8, zero=zero), sharded_copies="both")
        assert memory.static_bytes([stage], 10.0, setting)["communication_buffers"] == 40 + more
    half = _setting(Strategy(dp=8, zero=1), gradient_dtype="bf16")
    assert memory.step_bytes([stage], half) == 4 * 70 / 8
