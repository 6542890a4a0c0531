"""Memory by part: against the papers' byte counts, by hand, and the planner's linear form against the timeline."""

from __future__ import annotations

from dataclasses import replace

import pytest

import simulator
from simulator import catalog
from simulator.parallel.lower import lower
from simulator.parallel.memory import kept_bytes, memories_of, overhead_bytes, stage_memory, static_bytes
from simulator.parallel.recompute import Policy
from simulator.parallel.setting import Setting, groups_of
from simulator.parallel.states import held_parameters, optimizer_step_bytes, state_bytes
from simulator.result import Memory
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy
from tests.support import gpt

CLUSTER = catalog.cluster_for("a100-sxm-80gb", 8, 8, None)
PLAIN = Framework(name="plain", vocab_multiple=1, dropout=0.1, context_bytes=0.0)
RUN = Run(global_batch=64, precision="bf16", seq_len=1024)
TOKENS, HIDDEN = 1024, 512


def _setting(strategy: Strategy, framework: Framework = PLAIN, run: Run = RUN) -> Setting:
    return Setting(run=run, strategy=strategy, framework=framework, cluster=CLUSTER,
                   groups=groups_of(CLUSTER, strategy))  # fmt: skip


def test_a_gpt_layer_leaves_32_sbh_to_its_weight_gradients():
    # Qi et al. 2023, Zero Bubble, section 3.1: M_W = 32 s b h.
    program = lower(gpt(HIDDEN, 2, 8), RUN, Strategy(), PLAIN)
    layer = next(s for s, _ in program.stages[0].parts if s.recomputable)
    assert memories_of([layer], Policy())[layer.name].late_bytes == 32 * TOKENS * HIDDEN


def test_full_recomputation_holds_one_layer_and_its_largest_gradient():
    setting = _setting(Strategy(pp=2, recompute="full"))
    stage = lower(gpt(HIDDEN, 4, 8), RUN, setting.strategy, PLAIN).stages[0]
    layers = [s for s, _ in stage.parts if s.recomputable]
    own, plain = memories_of(layers, Policy(full=True)), memories_of(layers, Policy())
    memories = memories_of([s for s, _ in stage.parts], Policy(full=True))
    layer = layers[0].name
    held = stage_memory(stage, setting, memories)
    # The MLP's 4 h columns are the widest tensor, 2 B each.
    assert own[layer].saved_bytes == 2 * TOKENS * HIDDEN
    assert held.backward_bytes == plain[layer].plain_bytes - 2 * TOKENS * HIDDEN + 8 * TOKENS * HIDDEN


def test_the_head_lets_go_before_the_layers_are_recomputed():
    setting = _setting(Strategy(recompute="full"))
    stage = lower(gpt(HIDDEN, 4, 8), RUN, setting.strategy, PLAIN).stages[0]
    memories = memories_of([s for s, _ in stage.parts], Policy(full=True))
    both = sum(memories[s.name].largest_bytes for s, _ in stage.parts if s.name == "head")
    layer = max(m.plain_bytes - m.saved_bytes for m in memories.values())
    assert stage_memory(stage, setting, memories).backward_bytes < both + layer


def test_offloaded_inputs_leave_nothing_of_a_layer_on_the_device():
    program = lower(gpt(HIDDEN, 4, 8), RUN, Strategy(), PLAIN)
    layers = [s for s, _ in program.stages[0].parts if s.recomputable]
    assert [m.saved_bytes for m in memories_of(layers, Policy(full=True, offloaded=True)).values()] == [0]


@pytest.mark.parametrize("kept", [False, True])
def test_a_kept_stage_output_is_one_boundary_per_micro_batch(kept: bool):
    setting = _setting(Strategy(pp=2), replace(PLAIN, keeps_stage_outputs=kept))
    stage = lower(gpt(HIDDEN, 4, 8), RUN, setting.strategy, PLAIN).stages[0]
    memories = memories_of([s for s, _ in stage.parts], Policy())
    plain = sum(count * memories[s.name].saved_bytes for s, count in stage.parts)
    assert stage_memory(stage, setting, memories).activation_bytes - plain == kept * 2 * TOKENS * HIDDEN


@pytest.mark.parametrize(("scattered", "tp", "share"), [(True, 4, 4), (False, 4, 1), (True, 1, 1)])
def test_a_kept_output_that_was_sent_in_shares_is_one_share(scattered: bool, tp: int, share: int):
    software = replace(PLAIN, keeps_stage_outputs=True, keeps_split_outputs=True, scatter_gather_p2p=scattered)
    setting = _setting(Strategy(pp=2, tp=tp, sequence_parallel=False), software)
    stage = lower(gpt(HIDDEN, 4, 8), RUN, setting.strategy, software).stages[0]
    memories = memories_of([s for s, _ in stage.parts], Policy())
    plain = sum(count * memories[s.name].saved_bytes for s, count in stage.parts)
    kept = stage_memory(stage, setting, memories).activation_bytes - plain
    assert kept == 2 * TOKENS * HIDDEN / share


@pytest.mark.parametrize(("zero", "weights"), [(0, 2 + 2), (2, 2 + 2), (3, 2 / 8)])
def test_quantised_copies_of_whole_weights_only_below_zero_3(zero: int, weights: float):
    run = replace(RUN, precision="fp8")
    strategy = Strategy(dp=8, zero=zero)
    held = held_parameters(lower(gpt(HIDDEN, 4, 8), run, strategy, PLAIN).stages)
    parts = state_bytes(held, run, strategy, PLAIN)
    ends = held.total - held.layers
    # Embedding and head stay in 16 bits; a quantised weight and its transpose take 2 B.
    assert parts["weights"] == weights * held.total - (2 * ends if zero < 3 else 0)
    if zero == 3:
        assert parts["gathered_parameters"] == 2 * (2 * held.largest_segment + 2 * held.largest_layer)
        kept = state_bytes(held, run, replace(strategy, reshard_after_forward=False), PLAIN)
        assert kept["gathered_parameters"] == 2 * held.total + 2 * held.layers


def test_fresh_gradients_that_stay_take_two_bytes_per_parameter():
    held = held_parameters(lower(gpt(HIDDEN, 4, 8), RUN, Strategy(), PLAIN).stages)
    kept = state_bytes(held, RUN, Strategy(), replace(PLAIN, keeps_fresh_gradients=True))
    assert kept["gradients"] == (4 + 2) * held.total


def test_the_optimizer_step_widens_16_bit_gradients_of_its_share():
    strategy = Strategy(dp=8, zero=1)
    held = held_parameters(lower(gpt(HIDDEN, 4, 8), RUN, strategy, PLAIN).stages)
    half = replace(PLAIN, gradient_dtype="bf16")
    assert optimizer_step_bytes(held, RUN, strategy, PLAIN) == 0
    assert optimizer_step_bytes(held, RUN, strategy, half) == 4 * held.total / 8
    flat = replace(half, flat_gradients=True, bucket_bytes=1000.0)
    assert optimizer_step_bytes(held, RUN, strategy, flat) == 6 * held.total / 8 + 1000


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
def test_a_peak_is_linear_in_the_micro_batches_held_where_the_backward_is_whole(schedule: str, recompute: str):
    """States and buffers, so many micro-batches (all of them, or one less a rank), and the worst task's own bytes."""
    strategy = Strategy(pp=4, dp=2, zero=1, schedule=schedule, recompute=recompute)
    model = gpt(HIDDEN, 8, 8)
    answer = simulator.estimate(model, CLUSTER, RUN, strategy, framework=PLAIN)
    setting = _setting(strategy)
    program = lower(model, RUN, strategy, PLAIN)
    policy = {"none": Policy(), "full": Policy(full=True), "selective": Policy(modules=frozenset({"core_attn"}))}
    memories = memories_of({s.name: s for stage in program.stages for s, _ in stage.parts}.values(), policy[recompute])
    for rank, stage in enumerate(program.stages):
        held = 32 if schedule == "gpipe" else 4 - rank
        edge = program.stages[0].boundary_bytes
        task = stage_memory(stage, setting, memories)
        working = max(task.forward_bytes, task.backward_bytes)
        standing = sum(static_bytes([stage], edge, setting).values())
        there = standing + held * kept_bytes(stage, setting, memories) + working
        assert there + overhead_bytes(there, PLAIN)["context"] == pytest.approx(answer.memory.per_stage[rank]["total"])


def test_split_backwards_keep_less_than_a_whole_backward_would():
    model = gpt(HIDDEN, 16, 8)
    peaks = {
        schedule: simulator.estimate(model, CLUSTER, RUN, Strategy(pp=8, schedule=schedule), framework=PLAIN)
        for schedule in ("1f1b", "zb-h1", "zb-h2")
    }
    activations = {name: answer.memory.per_stage[0]["activations"] for name, answer in peaks.items()}
    # Zero Bubble H1 has the memory of 1F1B up to the weight-gradient inputs, H2 about twice it (2 p - 1 against p).
    assert activations["1f1b"] <= activations["zb-h1"] < 1.3 * activations["1f1b"]
    assert activations["zb-h2"] == pytest.approx(15 / 8 * activations["1f1b"], rel=0.1)


def test_a_published_peak_is_compared_with_what_its_source_measured():
    parts = {"weights": 50.0, "activations": 20.0, "fragmentation": 5.0, "context": 3.0}
    memory = Memory(per_stage=(), parts=parts, limit_bytes=90.0, step_bytes=10.0)
    flat = replace(memory, step_reserved=True)
    assert [memory.peak_as(meaning) for meaning in ("allocated", "reserved", "device")] == [70, 75, 78]
    assert [flat.peak_as(meaning) for meaning in ("allocated", "reserved", "device")] == [70, 85, 88]
    assert replace(flat, limit_bytes=80.0).peak_as("device") == 80


@pytest.mark.parametrize(("software", "each"), [("torch-fsdp", 2 + 2), ("torchtitan", 2 + 4)])
def test_zero_3_holds_one_segments_whole_gradients_and_the_copy_being_scattered(software: str, each: int):
    """FSDP2 in bf16: the backward's own gradients, and the last reduce-scatter's input in the dtype that is reduced."""
    framework = catalog.load_framework(software)
    buffers = {}
    for zero in (0, 3):
        setting = _setting(Strategy(dp=8, zero=zero), framework)
        stages = lower(gpt(HIDDEN, 4, 8), RUN, setting.strategy, framework).stages
        buffers[zero] = static_bytes(stages, 0.0, setting)["communication_buffers"]
    assert buffers[3] - buffers[0] == each * held_parameters(stages).largest_segment
