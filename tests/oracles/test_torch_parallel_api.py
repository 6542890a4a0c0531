"""Collectives of torch's own parallel APIs, with transformers' Llama where it fits, beside ours.

Where torch's API does something else than the framework that we model, the exact difference stands in the test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from simulator.arch.layer import layer_segment
from simulator.arch.operations import Collective
from simulator.arch.parameters import COUNTING, parameters
from simulator.arch.shard import Shard
from simulator.catalog import load_framework, load_model
from simulator.parallel.gradients import synchronisation
from simulator.parallel.lower import lower
from simulator.parallel.states import held_parameters
from simulator.spec.model import ModelSpec
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy
from tests.support import gpt, mixture

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily  # noqa: E402

from simulator.validate.torch_counts.collectives import Recorder, fake_world  # noqa: E402

LAYERS, SEQ_LEN = 2, 256
Totals = dict[tuple[str, str, int], tuple[int, int]]


@contextmanager
def default_dtype(dtype: Any) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture
def flat_meshes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mesh of two dims reads its rank table, which must be a real tensor under fake ones."""
    from torch.distributed.device_mesh import DeviceMesh

    joined = DeviceMesh._concatenate

    def concatenate(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return joined(*args, **kwargs)

    monkeypatch.setattr(DeviceMesh, "_concatenate", staticmethod(concatenate))


def llama_layers() -> Any:
    """transformers' Llama-3 8B, two layers, without its head."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=4096, num_hidden_layers=LAYERS, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14336, vocab_size=1024,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return transformers.LlamaModel(config)


def split_layers(model: Any, mesh: Any, *, sequence: bool) -> None:
    """torch's tensor-parallel plan of a Llama layer; inputs are gathered once for q, k, v and for gate, up."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor import Shard as Part
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    whole, outside = Replicate(), Part(1) if sequence else Replicate()
    plan: dict[str, Any] = {f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}
    plan |= {f"mlp.{name}_proj": ColwiseParallel() for name in ("gate", "up")}
    plan |= {name: RowwiseParallel(output_layouts=outside) for name in ("self_attn.o_proj", "mlp.down_proj")}
    plan["self_attn"] = PrepareModuleInput(
        input_kwarg_layouts={"hidden_states": outside}, desired_input_kwarg_layouts={"hidden_states": whole}
    )
    plan["mlp"] = PrepareModuleInput(input_layouts=(outside,), desired_input_layouts=(whole,))
    if sequence:
        plan |= {"input_layernorm": SequenceParallel(), "post_attention_layernorm": SequenceParallel()}
    for layer in model.layers:
        parallelize_module(layer, mesh, plan)


def layers_once(model: Any, *, width: int, tokens: int) -> Any:
    """Run the decoder layers on a batch of one, as the model calls them."""
    x = torch.zeros(1, tokens, width, requires_grad=True)
    place = model.rotary_emb(x, torch.arange(SEQ_LEN)[None])
    for layer in model.layers:
        x = layer(x, position_embeddings=place, attention_mask=None)
    return x


def llama_events(ranks: int, *, sequence: bool) -> Totals:
    from torch.distributed.device_mesh import init_device_mesh

    with fake_world(64), default_dtype(torch.bfloat16):
        mesh = init_device_mesh("cpu", (64 // ranks, ranks), mesh_dim_names=("dp", "tp"))["tp"]
        with FakeTensorMode():
            model = llama_layers()
            split_layers(model, mesh, sequence=sequence)
            tokens = SEQ_LEN // ranks if sequence else SEQ_LEN
            layers_once(model, width=4096, tokens=tokens).sum().backward()
            with Recorder() as recorder:
                loss = layers_once(model, width=4096, tokens=tokens).sum()
                recorder.phase = "backward"
                loss.backward()
    return recorder.totals()


def layer_totals(model: ModelSpec, shard: Shard, axis: str, ranks: int, layers: int = LAYERS) -> Totals:
    """Our collectives of some equal layers on one axis."""
    segment = layer_segment(model.stacks[0].layer(0), model, shard=shard, kernels=COUNTING, name="layer")
    counts: Counter[Any] = Counter()
    sizes: Counter[Any] = Counter()
    for operation in segment.operations:
        for phase, works in (
            ("forward", operation.forward),
            ("backward", (*operation.input_grad, *operation.weight_grad)),
        ):
            for work in works:
                if isinstance(work, Collective) and work.axis == axis:
                    counts[phase, work.kind, ranks] += layers
                    sizes[phase, work.kind, ranks] += layers * round(float(work.bytes))
    return {key: (counts[key], sizes[key]) for key in counts}


@pytest.mark.usefixtures("flat_meshes")
def test_torchs_tensor_parallel_llama_reduces_as_ours() -> None:
    ours = layer_totals(load_model("llama3.1-8b"), Shard(micro_batch=1, seq_len=SEQ_LEN, tp=8), "tp", 8)
    assert llama_events(8, sequence=False) == ours


@pytest.mark.usefixtures("flat_meshes")
def test_torchs_sequence_parallel_llama_keeps_what_megatron_gathers_again() -> None:
    """DTensor keeps the gathered input for backward; Megatron, which we model, keeps its shard and gathers it again:
    2 all-gathers of b s h per layer in backward more. Everything else is equal.
    """
    shard = Shard(micro_batch=1, seq_len=SEQ_LEN, tp=8, sequence_parallel=True)
    ours = layer_totals(load_model("llama3.1-8b"), shard, "tp", 8)
    count, size = ours["backward", "all_gather", 8]
    again = 2 * LAYERS
    ours["backward", "all_gather", 8] = (count - again, size - again * SEQ_LEN * 4096 * 2)
    theirs = llama_events(8, sequence=True)
    assert theirs == ours


@pytest.mark.usefixtures("flat_meshes")
def test_fsdp_on_top_of_tensor_parallelism_over_512_ranks() -> None:
    """64 x 8 ranks: FSDP gathers 1/8 of the split matrices and the whole norms, tensor parallelism is as before."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    with fake_world(512):
        mesh = init_device_mesh("cpu", (64, 8), mesh_dim_names=("dp", "tp"))
        with FakeTensorMode():
            model = llama_layers()
            split_layers(model, mesh["tp"], sequence=False)
            for layer in model.layers:
                fully_shard(layer, mesh=mesh["dp"], mp_policy=policy, reshard_after_forward=True)
            layers_once(model, width=4096, tokens=SEQ_LEN).sum().backward()
            with Recorder() as recorder:
                loss = layers_once(model, width=4096, tokens=SEQ_LEN).sum()
                recorder.phase = "backward"
                loss.backward()
    spec = load_model("llama3.1-8b")
    shard = Shard(micro_batch=1, seq_len=SEQ_LEN, tp=8)
    segment = layer_segment(spec.stacks[0].layer(0), spec, shard=shard, kernels=COUNTING, name="layer")
    held = sum(round(float(weight.elements)) for operation in segment.operations for weight in operation.weights)
    ours = layer_totals(spec, shard, "tp", 8)
    ours["forward", "all_gather", 64] = ours["backward", "all_gather", 64] = (LAYERS, LAYERS * held * 2)
    ours["backward", "reduce_scatter", 64] = (LAYERS, LAYERS * held * 4)
    assert recorder.totals() == ours

SMALL = gpt(256, 2, 4, vocab=128, seq_len=32)


def small_sync(zero: int) -> tuple[int, Any]:
    """A small GPT's parameters, and what our program sends for them at the step's end."""
    model, framework = SMALL, replace(load_framework("pytorch"), vocab_multiple=1)
    run, strategy = Run(global_batch=8, precision="fp32"), Strategy(dp=8, zero=zero)
    stages = lower(model, run, strategy, framework).stages
    return parameters(model).total, synchronisation(held_parameters(stages), run, strategy, framework)


def plain_gpt(model: ModelSpec) -> Any:
    from simulator.parallel.recompute import Policy
    from simulator.validate.torch_counts.blocks import Setting
    from simulator.validate.torch_counts.tally import build

    kernels = replace(COUNTING, activation_dtype="fp32", gemm_dtype="fp32")
    module = build(Setting(model=model, kernels=kernels, policy=Policy()))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.02)
    return module


def test_ddp_buckets_sum_to_our_all_reduce() -> None:
    """DDP reduces buckets of at most 25 MB (1 MB first); together they are our one all-reduce of every gradient."""
    from torch.nn.parallel import DistributedDataParallel

    buckets: list[int] = []

    def hook(_, bucket):
        buckets.append(bucket.buffer().numel() * bucket.buffer().element_size())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    count, sync = small_sync(0)
    (reduce,) = sync.reduce
    with fake_world(8):
        module = DistributedDataParallel(plain_gpt(SMALL), bucket_cap_mb=1)
        module.register_comm_hook(None, hook)
        module(torch.zeros(1, 32, dtype=torch.int64)).backward()
        assert buckets == [reduce.bytes]  # The first step only learns in which order gradients come.
        buckets.clear()
        module(torch.zeros(1, 32, dtype=torch.int64)).backward()
    assert len(buckets) > 1
    assert sum(buckets) == reduce.bytes == 4 * count
    assert (reduce.kind, reduce.axis) == ("all_reduce", "dp_cp")


def test_zero_1_broadcasts_what_ours_gathers() -> None:
    """torch's ZeroRedundancyOptimizer leaves the all-reduce to DDP and broadcasts each rank's updated parameters; ours
    reduce-scatters and gathers. What is gathered equals the sum of the broadcasts: every parameter once.
    """
    from torch.distributed.optim import ZeroRedundancyOptimizer

    count, sync = small_sync(1)
    with fake_world(8):
        module = plain_gpt(SMALL)
        optimizer = ZeroRedundancyOptimizer(module.parameters(), torch.optim.Adam, lr=1e-3)
        module(torch.zeros(1, 32, dtype=torch.int64)).backward()
        with Recorder() as recorder:
            optimizer.step()
    broadcasts = [event.bytes for event in recorder.events if event.kind == "broadcast"]
    (scatter,), (gather,) = sync.reduce, sync.gather
    assert sum(broadcasts) == gather.bytes == scatter.bytes == 4 * count
    assert (scatter.kind, gather.kind) == ("reduce_scatter", "all_gather")


def test_expert_parallel_exchanges_are_all_to_alls_of_the_routed_rows() -> None:
    """Dispatch and combine, forward and backward, through torch's functional all-to-all with autograd."""
    import torch.distributed as dist
    from torch.distributed._functional_collectives import all_to_all_single_autograd

    model = mixture(hidden=512, experts=8, top_k=2, expert_hidden=1024)
    spec = model.stacks[0].layer(0).experts
    rows, local = 2 * 128 * spec.top_k, spec.count // 8
    with fake_world(64):
        group = dist.new_group(list(range(8)))
        with FakeTensorMode(), default_dtype(torch.bfloat16):
            up, down = nn.Linear(512, 2048, bias=False), nn.Linear(1024, 512, bias=False)
            x = torch.zeros(rows, 512, requires_grad=True)
            with Recorder() as recorder:
                there = all_to_all_single_autograd(x, [rows // 8] * 8, [rows // 8] * 8, group)
                gate, value = up(there).chunk(2, -1)
                made = down(nn.functional.silu(gate) * value)
                back = all_to_all_single_autograd(made, [rows // 8] * 8, [rows // 8] * 8, group)
                recorder.phase = "backward"
                back.sum().backward()
    ours = layer_totals(model, Shard(micro_batch=2, seq_len=128, ep=8), "ep", 8, layers=1)
    assert local == 1
    assert recorder.totals() == ours
