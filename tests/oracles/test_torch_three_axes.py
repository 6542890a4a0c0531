"""Collectives of three axes at once equal torch's own parallel APIs together: `torch.distributed.pipelining`, DTensor's
tensor and sequence parallelism, FSDP2 and functional all-to-alls, on fake groups of 64 to 4,096 ranks in one process.

Layers only: a pipeline's ends differ from its middle, and torch's plans know no vocabulary-parallel loss.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from simulator.arch.operations import Collective
from simulator.catalog import load_framework, load_model
from simulator.parallel.gradients import synchronisation
from simulator.parallel.lower import Stage, lower
from simulator.parallel.states import held_parameters
from simulator.schedule.make import make_order
from simulator.schedule.order import FORWARD
from simulator.spec.model import ModelSpec
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy
from tests.support import gpt, mixture

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from simulator.validate.torch_counts.collectives import Recorder, fake_world  # noqa: E402
from tests.oracles.test_torch_parallel_api import (  # noqa: E402
    LAYERS,
    SEQ_LEN,
    default_dtype,
    flat_meshes,
    llama_layers,
    split_layers,
)

__all__ = ["flat_meshes"]

MICRO_BATCHES, STAGES = 8, 4
Totals = dict[tuple[str, int], tuple[int, int]]
TITAN = replace(load_framework("torchtitan"), vocab_multiple=1, gradient_reduce_dtype="fp32")
"""torchtitan shards with FSDP2 and, in a pipeline, gathers once a step and scatters gradients once
(reshard_after_forward off, `PipelineStage.perform_reduce_grad`): our ZeRO-2. Gradients reduced in fp32."""


class Layers(nn.Module):
    """A middle stage: transformers' Llama layers as the model calls them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.layers, self.rotary = model.layers, model.rotary_emb

    def forward(self, x: Any) -> Any:
        place = self.rotary(x, torch.arange(SEQ_LEN)[None])
        for layer in self.layers:
            x = layer(x, position_embeddings=place, attention_mask=None)
        return x


class Ring(torch.autograd.Function):
    """torch's ring attention (private functions of torch 2.13) around flash attention."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, group: Any) -> Any:
        from torch.distributed.tensor.experimental._context_parallel import _attention as ring

        made = ring._templated_ring_attention(
            group, 2, torch.ops.aten._scaled_dot_product_flash_attention, query=q, key=k, value=v, is_causal=False,
            dropout_p=0.0,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, made[0], made[1])
        ctx.group, ctx.rest = group, made[2:8]
        return made[0]

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        from torch.distributed.tensor.experimental._context_parallel import _attention as ring

        (q, k, v, out, total), rest = ctx.saved_tensors, ctx.rest
        grads = ring._templated_ring_attention_backward(
            ctx.group, 2, torch.ops.aten._scaled_dot_product_flash_attention_backward.default, grad_out=grad,
            grad_out_name="grad_out", query=q, key=k, value=v, out=out, logsumexp=total, is_causal=False,
            cum_seq_q=rest[0], cum_seq_k=rest[1], max_q=rest[2], max_k=rest[3], dropout_p=0.0, philox_seed=rest[4],
            philox_offset=rest[5],
        )  # fmt: skip
        return *grads[:3], None


class RingLayer(nn.Module):
    """A GPT layer whose sequences are split: its keys and values go around."""

    def __init__(self, width: int, heads: int, group: Any) -> None:
        super().__init__()
        self.heads, self.group = heads, group
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        x = x + self.out(Ring.apply(q, k, v, self.group).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Experts(nn.Module):
    """A stage of mixtures without their attention: rows travel to this rank's one expert and back, twice a layer."""

    def __init__(self, spec: Any, width: int, group: Any) -> None:
        super().__init__()
        self.group, self.copies, self.ranks = group, spec.top_k, spec.count
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(width, 2 * spec.hidden, bias=False),
                           "down": nn.Linear(spec.hidden, width, bias=False)}) for _ in range(LAYERS)
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        from torch.distributed._functional_collectives import all_to_all_single_autograd

        for layer in self.layers:
            rows = x.flatten(0, 1).repeat_interleave(self.copies, 0)
            parts = [rows.shape[0] // self.ranks] * self.ranks
            there = all_to_all_single_autograd(rows, parts, parts, self.group)
            gate, value = layer["up"](there).chunk(2, -1)
            back = all_to_all_single_autograd(layer["down"](nn.functional.silu(gate) * value), parts, parts, self.group)
            x = x + back.unflatten(0, (-1, self.copies)).sum(1).view_as(x)
        return x


def pipeline_step(module: nn.Module, shape: tuple[int, ...], group: Any, monkeypatch: pytest.MonkeyPatch) -> Totals:
    """The second step of 1F1B of this rank's stage, by kind and ranks; the first one lets FSDP and DTensor set up."""
    from torch.distributed.pipelining import Schedule1F1B, schedules
    from torch.distributed.pipelining._utils import InferenceMode
    from torch.distributed.pipelining.stage import PipelineStage

    def static(_: Any, stages: list[Any], *__: Any) -> None:
        """Shapes are given; the vote about them would read a tensor's value."""
        for stage in stages:
            stage._inference_mode = InferenceMode.STATIC

    monkeypatch.setattr(schedules._PipelineSchedule, "_warmup_p2p", static)
    one = torch.zeros(shape)
    stage = PipelineStage(
        module, group.rank(), STAGES, torch.device("cpu"), group=group, input_args=(one.clone().requires_grad_(),),
        output_args=(one.clone().requires_grad_(),), input_grads=(one,), output_grads=(one,),
    )  # fmt: skip
    schedule = Schedule1F1B(stage, MICRO_BATCHES, loss_fn=lambda made, target: (made - target).sum(), scale_grads=False)
    whole = torch.zeros(MICRO_BATCHES * shape[0], *shape[1:])
    inputs = (whole,) if stage.is_first else ()
    last = {"target": whole, "losses": []} if stage.is_last else {}
    schedule.step(*inputs, **last)
    for parameter in module.parameters():
        parameter.grad = None
    with Recorder() as recorder:
        schedule.step(*inputs, **last)
    counts: Counter[Any] = Counter()
    sizes: Counter[Any] = Counter()
    for event in recorder.events:
        # A message has no group of its own size: it goes to a neighbour.
        key = event.kind, 0 if event.kind in ("send", "recv") else event.ranks
        counts[key] += 1
        sizes[key] += event.bytes
    return {key: (counts[key], sizes[key]) for key in counts}


def ours(
    model: ModelSpec, strategy: Strategy, stage_index: int, axes: dict[str, int], *, micro_batch: int = 1
) -> Totals:
    """Our collectives of one step on a stage's layers: of each micro-batch on `axes`, messages, and the step's end."""
    run = Run(global_batch=strategy.dp * MICRO_BATCHES * micro_batch, precision="bf16", seq_len=SEQ_LEN)
    program = lower(model, run, strategy, TITAN)
    whole = program.stages[stage_index]
    stage = Stage(index=stage_index, boundary_bytes=whole.boundary_bytes,
                  parts=tuple((segment, count) for segment, count in whole.parts if segment.recomputable))  # fmt: skip
    assert stage.layers == LAYERS
    found: Counter[Any] = Counter()
    sizes: Counter[Any] = Counter()

    def add(work: Collective, times: int, collectives: int) -> None:
        if work.axis in axes:
            key = work.kind, axes[work.axis]
            found[key] += collectives
            sizes[key] += times * round(float(work.bytes))

    for segment, count in stage.parts:
        for operation in segment.operations:
            for work in (*operation.forward, *operation.input_grad, *operation.weight_grad):
                if isinstance(work, Collective):
                    add(work, count * MICRO_BATCHES, count * MICRO_BATCHES)
    sync = synchronisation(held_parameters((stage,)), run, strategy, TITAN)
    for work in (*sync.gather, *sync.reduce):
        add(work, 1, LAYERS)
    for work in sync.tensor:
        # Ours sums the gradients of all norms over tp at once, DTensor each one.
        add(work, 1, 2 * LAYERS)
    result: Totals = {key: (found[key], sizes[key]) for key in found}
    messages = our_messages(stage_index)
    size = round(float(whole.boundary_bytes or program.stages[0].boundary_bytes))
    result["send", 0] = result["recv", 0] = (messages, messages * size)
    return result


def our_messages(rank: int) -> int:
    """Activations and gradients that our 1F1B sends from a rank; as many arrive."""
    order = make_order("1f1b", pp=STAGES, micro_batches=MICRO_BATCHES)
    count = 0
    for task in range(order.rank_start[rank], order.rank_start[rank + 1]):
        forward, slot = order.kind[task] == FORWARD, order.slot[task]
        count += int((order.following[slot] if forward else order.previous[slot]) >= 0)
    return count


def llama_of(layers: int) -> ModelSpec:
    spec = load_model("llama3.1-8b")
    (kind, _), *_ = spec.stacks[0].runs
    return replace(spec, stacks=(replace(spec.stacks[0], runs=((kind, layers),)),))


@pytest.mark.usefixtures("flat_meshes")
@pytest.mark.parametrize(
    ("tp", "dp", "stage_index", "sequence"), [(8, 2, 1, False), (8, 16, 0, True), (8, 128, 2, True), (4, 8, 3, False)],
    ids=["64 ranks", "512 ranks, sp, first", "4096 ranks, sp", "128 ranks, last"],
)  # fmt: skip
def test_fsdp_on_tensor_parallelism_in_a_pipeline(
    tp: int, dp: int, stage_index: int, sequence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FSDP x tp (+ sp) x pp. DTensor keeps the gathered input for backward where Megatron, which we model, gathers its
    shard again (test_torch_parallel_api): two all-gathers of b s h a layer and micro-batch more are ours.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    with fake_world(STAGES * dp * tp, rank=stage_index * dp * tp), default_dtype(torch.bfloat16):
        mesh = init_device_mesh("cpu", (STAGES, dp, tp), mesh_dim_names=("pp", "dp", "tp"))
        with FakeTensorMode():
            model = llama_layers()
            split_layers(model, mesh["tp"], sequence=sequence)
            for layer in model.layers:
                fully_shard(layer, mesh=mesh["dp"], mp_policy=policy, reshard_after_forward=False)
            module = fully_shard(Layers(model), mesh=mesh["dp"], mp_policy=policy, reshard_after_forward=False)
            tokens = SEQ_LEN // tp if sequence else SEQ_LEN
            theirs = pipeline_step(module, (1, tokens, 4096), mesh.get_group("pp"), monkeypatch)
    strategy = Strategy(tp=tp, pp=STAGES, dp=dp, zero=2, sequence_parallel=sequence)
    expected = ours(llama_of(LAYERS * STAGES), strategy, stage_index, {"tp": tp, "shard": dp})
    if sequence:
        count, size = expected["all_gather", tp]
        again = 2 * LAYERS * MICRO_BATCHES
        expected["all_gather", tp] = (count - again, size - again * SEQ_LEN * 4096 * 2)
    assert theirs == expected


@pytest.mark.usefixtures("flat_meshes")
@pytest.mark.parametrize("stage_index", [1, 3])
def test_experts_and_their_replicas_in_a_pipeline(stage_index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """ep x expert replicas under FSDP x pp on 256 ranks: all-to-alls of the routed rows over ep, parameters and
    gradients of a rank's expert over its 8 replicas.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    ep, replicas = 8, 8
    model = mixture(hidden=512, layers=LAYERS * STAGES, experts=ep, top_k=2, expert_hidden=1024)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    with fake_world(STAGES * replicas * ep, rank=stage_index * replicas * ep), default_dtype(torch.bfloat16):
        mesh = init_device_mesh("cpu", (STAGES, replicas, ep), mesh_dim_names=("pp", "edp", "ep"))
        with FakeTensorMode():
            stage = Experts(model.stacks[0].layer(0).experts, 512, mesh.get_group("ep"))
            for layer in stage.layers:
                for name in ("up", "down"):
                    fully_shard(layer[name], mesh=mesh["edp"], mp_policy=policy, reshard_after_forward=False)
            module = fully_shard(stage, mesh=mesh["edp"], mp_policy=policy, reshard_after_forward=False)
            theirs = pipeline_step(module, (2, SEQ_LEN, 512), mesh.get_group("pp"), monkeypatch)
    strategy = Strategy(pp=STAGES, dp=ep * replicas, ep=ep, zero=2, micro_batch=2)
    expected = ours(model, strategy, stage_index, {"ep": ep, "edp": replicas}, micro_batch=2)
    # `up` and `down` are gathered and scattered one by one.
    for kind in ("all_gather", "reduce_scatter"):
        count, size = expected[kind, replicas]
        expected[kind, replicas] = (2 * count, size)
    assert set(expected) > {("all_to_all", ep), ("all_gather", replicas), ("reduce_scatter", replicas)}
    assert theirs == {key: value for key, value in expected.items() if value[0]}


@pytest.mark.usefixtures("flat_meshes")
def test_fsdp_and_context_parallelism_in_a_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """cp x FSDP over dp and cp x pp on 256 ranks. torch gathers keys and values once each way, as ours does, and passes
    their fp32 gradients around in as many messages as there are ranks, which together are what ours reduce-scatters.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor.experimental._context_parallel import _attention as ring

    cp, dp, width, stage_index = 8, 8, 512, 1
    monkeypatch.setattr(ring._cp_options, "enable_load_balance", False)
    monkeypatch.setattr(ring._cp_options, "rotate_method", ring._RotateMethod.ALL_GATHER)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    first = stage_index * dp * cp
    with fake_world(STAGES * dp * cp, rank=first), default_dtype(torch.bfloat16):
        mesh = init_device_mesh("cpu", (STAGES, dp * cp), mesh_dim_names=("pp", "shard"))
        group = dist.new_group(list(range(first, first + cp)))
        with FakeTensorMode():
            stage = nn.Sequential(*(RingLayer(width, 8, group) for _ in range(LAYERS)))
            for layer in stage:
                fully_shard(layer, mesh=mesh["shard"], mp_policy=policy, reshard_after_forward=False)
            module = fully_shard(stage, mesh=mesh["shard"], mp_policy=policy, reshard_after_forward=False)
            theirs = pipeline_step(module, (1, SEQ_LEN // cp, width), mesh.get_group("pp"), monkeypatch)
    model = gpt(width, LAYERS * STAGES, 8, vocab=512, seq_len=SEQ_LEN)
    strategy = Strategy(pp=STAGES, dp=dp, cp=cp, zero=2, context_kind="all-gather")
    expected = ours(model, strategy, stage_index, {"cp": cp, "shard": dp * cp})
    count, size = expected.pop(("reduce_scatter", cp))
    assert count == LAYERS * MICRO_BATCHES
    expected["all_to_all", cp] = (cp * count, size)
    assert theirs == expected
