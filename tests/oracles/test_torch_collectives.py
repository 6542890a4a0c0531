"""Collectives equal torch's: kind, ranks, count and bytes, on fake process groups of up to 4,096 ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from simulator.arch.operations import Collective
from simulator.arch.parameters import COUNTING
from simulator.catalog import load_framework
from simulator.parallel.gradients import synchronisation
from simulator.parallel.lower import Stage, lower
from simulator.parallel.recompute import Policy
from simulator.parallel.states import held_parameters
from simulator.spec.model import ModelSpec
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy
from tests.support import gpt

torch = pytest.importorskip("torch")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from simulator.validate.torch_counts.blocks import Setting  # noqa: E402
from simulator.validate.torch_counts.collectives import Recorder, fake_world  # noqa: E402
from simulator.validate.torch_counts.tally import build, token_ids  # noqa: E402
from simulator.validate.torch_counts.tensor_parallel import Split, SplitGpt  # noqa: E402

Totals = dict[tuple[str, str, int], tuple[int, int]]
MODEL = gpt(1024, 3, 16, vocab=2048, seq_len=256)
FRAMEWORK = replace(load_framework("torch-fsdp"), vocab_multiple=1, gradient_reduce_dtype="fp32")
"""FSDP with gradients reduced in fp32 (`MixedPrecisionPolicy(reduce_dtype=torch.float32)`)."""


def stage_totals(stage: Stage, axis: str, ranks: int) -> Totals:
    """Our collectives of one micro-batch on one axis: (phase, kind, ranks) -> (count, bytes)."""
    found: list[tuple[str, Collective, int]] = []
    for segment, count in stage.parts:
        for operation in segment.operations:
            works = [("forward", work) for work in operation.forward]
            works += [("backward", work) for work in (*operation.input_grad, *operation.weight_grad)]
            found += [(phase, work, count) for phase, work in works if isinstance(work, Collective)]
    return totals(found, axis, ranks)


def totals(found: Iterable[tuple[str, Collective, int]], axis: str, ranks: int) -> Totals:
    counts: Counter[Any] = Counter()
    sizes: Counter[Any] = Counter()
    for phase, work, count in found:
        if work.axis == axis:
            counts[phase, work.kind, ranks] += count
            sizes[phase, work.kind, ranks] += count * round(float(work.bytes))
    return {key: (counts[key], sizes[key]) for key in counts}


def only_stage(model: ModelSpec, strategy: Strategy, precision: str = "bf16") -> Stage:
    run = Run(global_batch=strategy.dp * strategy.micro_batch, precision=precision)
    (stage,) = lower(model, run, strategy, FRAMEWORK).stages
    return stage


@pytest.mark.parametrize("ranks", [8, 64])
@pytest.mark.parametrize("sequence", [False, True], ids=["tp", "tp+sp"])
def test_tensor_parallel_collectives_are_megatrons(ranks: int, sequence: bool) -> None:
    """Embedding, every layer, head and split cross entropy, in each phase."""
    model = gpt(1024, 3, 64, vocab=2048, seq_len=256)
    before = torch.get_default_dtype()
    with fake_world(ranks), FakeTensorMode():
        torch.set_default_dtype(torch.bfloat16)
        try:
            module = SplitGpt(model, Split(group=torch.distributed.group.WORLD, sequence=sequence), layers=3)
        finally:
            torch.set_default_dtype(before)
        with Recorder() as recorder:
            loss = module(torch.zeros(256, 2, dtype=torch.int64))
            recorder.phase = "backward"
            loss.backward()
    stage = only_stage(model, Strategy(tp=ranks, micro_batch=2, sequence_parallel=sequence))
    assert recorder.totals() == stage_totals(stage, "tp", ranks)


def reference(model: ModelSpec, precision: str) -> Any:
    kernels = replace(COUNTING, activation_dtype=precision, gemm_dtype=precision)
    return build(Setting(model=model, kernels=kernels, policy=Policy()))


def fsdp_events(model: ModelSpec, ranks: int, *, mixed: bool, reshard: bool, replicas: int = 1) -> Totals:
    """One step of torch's FSDP2: every layer and the root are wrapped; the root is resharded too when asked."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if mixed else None
    options: dict[str, Any] = {"mp_policy": policy} if policy else {}
    with fake_world(ranks * replicas):
        shape, dims = ((replicas, ranks), ("replicate", "shard")) if replicas > 1 else ((ranks,), ("shard",))
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=dims)
        with FakeTensorMode():
            module = reference(model, "fp32")
            for layer in module.stacks[0].layers:
                fully_shard(layer, mesh=mesh, reshard_after_forward=reshard, **options)
            fully_shard(module, mesh=mesh, reshard_after_forward=reshard, **options)
            with Recorder() as recorder:
                loss = module(*token_ids(model, 1, 64, 0))
                recorder.phase = "backward"
                loss.backward()
    return recorder.totals()


def zero3_totals(model: ModelSpec, ranks: int, precision: str, *, reshard: bool, replicas: int = 1) -> Totals:
    """Our ZeRO-3 bytes; a collective per wrapped module: each layer, and the root with both ends."""
    strategy = Strategy(
        dp=ranks * replicas, zero=3, reshard_after_forward=reshard, shard_group=ranks if replicas > 1 else 0
    )
    stage = only_stage(model, strategy, precision)
    run = Run(global_batch=strategy.dp, precision=precision)
    sync = synchronisation(held_parameters((stage,)), run, strategy, FRAMEWORK)
    found = [("forward", work) for work in sync.forward]
    found += [("backward", work) for work in (*sync.backward, *sync.reduce)]
    result: Totals = {}
    for phase, work in found:
        group = ranks if work.axis == "shard" else replicas
        result[phase, work.kind, group] = (stage.layers + 1, round(float(work.bytes)))
    return result


@pytest.mark.parametrize("reshard", [True, False], ids=["reshard", "keep"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_fsdp2_gathers_and_scatters_our_bytes(precision: str, reshard: bool) -> None:
    theirs = fsdp_events(MODEL, 64, mixed=precision == "bf16", reshard=reshard)
    assert theirs == zero3_totals(MODEL, 64, precision, reshard=reshard)


def test_hsdp_adds_all_reduces_of_the_shards() -> None:
    theirs = fsdp_events(MODEL, 8, mixed=True, reshard=True, replicas=8)
    assert theirs == zero3_totals(MODEL, 8, "bf16", reshard=True, replicas=8)


def bare(model: ModelSpec) -> ModelSpec:
    """Without biases: torch handles each parameter in each of the 4,096 parts, so a few are enough."""
    (layer, count), *_ = model.stacks[0].runs
    layer = replace(
        layer, attention=replace(layer.attention, qkv_bias=False, out_bias=False),
        feed_forward=replace(layer.feed_forward, bias=False),
    )  # fmt: skip
    return replace(model, norm_bias=False, stacks=(replace(model.stacks[0], runs=((layer, count),)),))


def test_fsdp2_of_4096_ranks_pads_each_parameter_by_its_rows() -> None:
    """FSDP2 splits dim 0 of every parameter: ceil(rows / ranks) * ranks rows travel. That is its own convention; ours
    sends the parameters themselves, so the difference is exactly the padding.
    """
    ranks = 4096
    model = bare(gpt(256, 1, 4, vocab=512, seq_len=64))
    theirs = fsdp_events(model, ranks, mixed=True, reshard=True)
    ours = zero3_totals(model, ranks, "bf16", reshard=True)
    with torch.device("meta"):
        module = reference(model, "fp32")
    padding = sum((-(-p.shape[0] // ranks) * ranks - p.shape[0]) * p[0].numel() for p in module.parameters())
    assert padding > 0
    for (phase, kind, group), (count, size) in theirs.items():
        each_bytes = 4 if kind == "reduce_scatter" else 2
        assert (count, size - padding * each_bytes) == ours[phase, kind, group]
