"""Which steps have a walk over their tensors, and what stands there when one begins, counted by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simulator.arch.parameters import COUNTING
from simulator.parallel.eager_model import trace
from simulator.parallel.liveness import Peak, States
from simulator.parallel.recompute import Policy
from simulator.parallel.step_peak import ShardedWalk, Sharding, eager_peak, plain_peak, refused
from simulator.spec.model import AttentionSpec, LayerSpec, ModelSpec, StackSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy
from tests.support import gpt

EAGER = Framework(name="eager", fused_rope=False, fused_bias_activation=False, fused_cross_entropy=False)
RUN = Run(global_batch=2, seq_len=5, precision="fp32")
CAST, MASTERS = "parameters that operators cast (autocast)", "16-bit parameters beside fp32 masters"
RECOMPUTED = "recomputation of some layers, or into host memory"
FUSED, OTHERS = "kernels that eager PyTorch does not have", "optimizers other than fused Adam"


@pytest.mark.parametrize(
    ("strategy", "run", "software", "reasons"),
    [
        ({}, {}, {}, []),
        ({"tp": 2, "cp": 3, "ep": 5, "etp": 7, "pp": 11}, {}, {}, ["tp 2", "cp 3", "ep 5", "etp 7", "pp 11"]),
        ({"dp": 2, "zero": 3}, {}, {}, []),
        ({"dp": 2}, {}, {}, ["data parallelism with ZeRO stage 0"]),
        ({"dp": 3, "zero": 2}, {}, {}, ["data parallelism with ZeRO stage 2"]),
        ({"recompute": "full"}, {}, {}, []),
        ({"recompute": "full", "recompute_layers": 1}, {}, {}, [RECOMPUTED]),
        ({"recompute": "full", "offload_inputs": True}, {}, {}, [RECOMPUTED]),
        ({}, {"optimizer": "adam"}, {}, []),
        ({}, {"optimizer": "sgd"}, {}, [OTHERS]),
        ({}, {}, {"fused_optimizer": False}, [OTHERS]),
        ({}, {}, {"compiled": True}, [FUSED]),
        ({}, {}, {"fused_rope": True}, [FUSED]),
        ({}, {}, {"fused_bias_activation": True}, [FUSED]),
        ({}, {}, {"fused_cross_entropy": True}, [FUSED]),
        ({}, {"precision": "bf16"}, {}, [MASTERS]),
        ({}, {"precision": "bf16", "optimizer": "adam-bf16"}, {}, []),
        ({}, {"precision": "bf16"}, {"stored_parameter_dtype": "fp32"}, [CAST]),
        # FSDP's mixed precision: gathered in bf16.
        ({"dp": 2, "zero": 3}, {"precision": "bf16"}, {"stored_parameter_dtype": "fp32"}, []),
    ],
)  # fmt: skip
def test_steps_without_a_walk_say_why(
    strategy: dict[str, Any], run: dict[str, Any], software: dict[str, Any], reasons: list[str]
) -> None:
    assert refused(Strategy(**strategy), replace(RUN, **run), replace(EAGER, **software)) == reasons


# 19 x 8 words, 23 x 8 positions; 8 x 24 + 24, 8 x 8 + 8, 8 x 32 + 32, 32 x 8 + 8 and three norms of 8 + 8.
PARAMETERS, TENSORS = (19 + 23) * 8 + 216 + 72 + 288 + 264 + 3 * 16, 2 + 4 + 4 + 6
MODEL = replace(gpt(8, 1, 2, vocab=19), embedding=replace(gpt(8, 1, 2, vocab=19).embedding, learned_positions=23))


def peak(strategy: Strategy, model: ModelSpec = MODEL, run: Run = RUN, **software: Any) -> Peak:
    return eager_peak(model, run, strategy, replace(EAGER, **software))


def test_states_of_one_process() -> None:
    """Parameters and two moments of 4 bytes, a counter of 4 bytes per tensor; gradients from the second micro-batch."""
    parts = peak(Strategy(micro_batch=2)).parts
    assert (parts["parameters"], parts["optimizer"]) == (4 * PARAMETERS, 8 * PARAMETERS + 4 * TENSORS)
    later = peak(Strategy(micro_batch=1)).parts
    assert (later["parameters"], later["gradients"]) == (4 * PARAMETERS, 4 * PARAMETERS)
    narrow = peak(Strategy(micro_batch=2), run=replace(RUN, precision="bf16", optimizer="adam-bf16")).parts
    assert (narrow["parameters"], narrow["optimizer"]) == (2 * PARAMETERS, 4 * PARAMETERS + 4 * TENSORS)


@pytest.mark.parametrize(
    ("run", "software", "stored", "moments", "sharding"),
    [
        ({}, {}, 4, 8, Sharding(ranks=2, reshard_after_forward=False)),
        ({"precision": "bf16"}, {"stored_parameter_dtype": "fp32", "gradient_reduce_dtype": "bf16"}, 4, 8,
         Sharding(ranks=2, reduce_dtype="bf16", reshard_after_forward=False)),
        ({"precision": "bf16", "optimizer": "adam-bf16"}, {}, 2, 4,
         Sharding(ranks=2, stored_bytes=2.0, reshard_after_forward=False)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("global_batch", [2, 4])
def test_states_of_a_sharded_rank(
    run: dict[str, Any], software: dict[str, Any], stored: int, moments: int, sharding: Sharding, global_batch: int
) -> None:
    """A half of everything but the counters; two sequences are one micro-batch of each rank, four are two."""
    said = replace(RUN, global_batch=global_batch, **run)
    strategy = Strategy(dp=2, zero=3, reshard_after_forward=False)
    narrow = "precision" in run
    kernels = replace(COUNTING, activation_dtype="bf16" if narrow else "fp32")
    traced = trace(MODEL, kernels, Policy(), batch=1, seq_len=5)
    half = PARAMETERS / 2
    states = States(parameter_bytes=stored * half, optimizer_bytes=moments * half + 4 * TENSORS,
                    gradient_bytes=stored * half if global_batch == 4 else 0.0)  # fmt: skip
    assert peak(strategy, run=said, **software) == ShardedWalk(traced, states, sharding).run()
    freed = peak(replace(strategy, reshard_after_forward=True), run=said, **software)
    assert freed == ShardedWalk(traced, states, replace(sharding, reshard_after_forward=True)).run()


def test_a_decoder_has_its_own_length() -> None:
    seen = AttentionSpec(heads=2, kv_heads=2, head_dim=4, value_head_dim=4, causal=False)
    stacks = (StackSpec(role="encoder", runs=((LayerSpec(attention=seen, norms=1), 1),)),
              StackSpec(role="decoder", runs=((LayerSpec(attention=seen, cross_attention=seen), 1),)))  # fmt: skip
    model = replace(MODEL, stacks=stacks)
    kernels = replace(COUNTING, activation_dtype="fp32")
    traced = trace(model, kernels, Policy(), batch=2, seq_len=5, target_seq_len=3)
    held = peak(Strategy(micro_batch=2), model, replace(RUN, target_seq_len=3))
    states = States(parameter_bytes=held.parts["parameters"], optimizer_bytes=held.parts["optimizer"])
    assert held == plain_peak(traced, states)
    assert held.total_bytes < peak(Strategy(micro_batch=2), model).total_bytes
