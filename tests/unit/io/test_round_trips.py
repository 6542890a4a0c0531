"""What is exported reads back as the same strategy; what a framework cannot run is refused."""

from __future__ import annotations

import pytest

from simulator.errors import InputError
from simulator.io import deepspeed, megatron
from simulator.plan.menus import PP_INSIDE_DP
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy

RUN = Run(global_batch=256, seq_len=4096)
MEGATRON = [
    Strategy(tp=8, pp=4, dp=8, zero=1, recompute="selective"),
    Strategy(tp=2, pp=8, dp=4, cp=4, vp=3, schedule="interleaved", context_kind="ulysses", order=PP_INSIDE_DP),
    Strategy(dp=256, zero=3, recompute="full"),
    Strategy(tp=4, pp=2, dp=32, ep=8, etp=2, recompute="full", recompute_layers=5, sequence_parallel=False),
    Strategy(tp=2, dp=128, recompute="modules", recompute_modules=("mlp", "moe_act"), overlap_grad_reduce=True),
]
DEEPSPEED = [
    Strategy(dp=64, micro_batch=2, zero=2, overlap_grad_reduce=True),
    Strategy(tp=4, dp=16, cp=2, zero=3, context_kind="ulysses", shard_group=8),
]


@pytest.mark.parametrize("strategy", MEGATRON, ids=range(len(MEGATRON)))
def test_megatron_flags_read_back_as_the_same_strategy(strategy) -> None:
    text = megatron.dump(strategy, RUN)
    assert text.splitlines()[0] == "# Megatron-LM @ d98e8a6"
    again, run = megatron.load(text, devices=strategy.devices)
    assert again == strategy
    assert run == {"global_batch": 256, "seq_len": 4096, "precision": "bf16"}


@pytest.mark.parametrize("strategy", DEEPSPEED, ids=range(len(DEEPSPEED)))
def test_deepspeed_json_reads_back_as_the_same_strategy(strategy) -> None:
    text = deepspeed.dump(strategy, RUN)
    assert "DeepSpeed @ edaa722" in text.splitlines()[1]
    again, run = deepspeed.load(text)
    assert again == strategy
    assert run == {"global_batch": 256, "precision": "bf16"}


def test_what_a_framework_cannot_run_is_refused_with_every_reason() -> None:
    odd = Strategy(pp=2, dp=2, schedule="zbv", vp=2, order=("dp", "tp", "cp", "ep", "pp"))
    with pytest.raises(InputError) as refused:
        megatron.dump(odd, RUN)
    assert len(refused.value.problems) == 2
    with pytest.raises(InputError, match="model's code"):
        deepspeed.dump(odd, RUN)


@pytest.mark.parametrize(
    "text", ["--tensor-model-parallel-size two", "--tensor-modal-parallel-size 2", "8 --bf16", "--micro-batch-size 1 2"]
)
def test_flags_that_cannot_be_read_are_named(text) -> None:
    with pytest.raises(InputError):
        megatron.load(text, devices=8)
