"""Serving, as a first step: prefill and decode time of a decoder, its key-value cache and what it costs.

The forward pass of the same operations, on the same devices and links, that training is made of. Decode reads the
weights and the cache once per token: its attention core has one query per sequence over all keys so far; latent
attention runs in its absorbed form, one shared key of rank + rotary dims (DeepSeek-V2 sec. 2.1.2). Assumed: launches
are replayed from a graph, batches are full (continuous batching), prefill and decode take turns on the same devices.
Not modelled: speculative decoding, prefix caches, prefill and decode on separate devices, queueing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from simulator import catalog
from simulator.arch.attention import local_kv_heads
from simulator.arch.layer import Segment
from simulator.arch.operations import DTYPE_BYTES, AttentionCore, Operation, Work
from simulator.cluster.members import as_slowest
from simulator.cluster.network import collective_time_s
from simulator.errors import Complaints
from simulator.parallel.legal import check
from simulator.parallel.lower import Program, lower
from simulator.parallel.recompute import policy_of
from simulator.parallel.setting import Setting, groups_of
from simulator.parallel.states import held_parameters
from simulator.parallel.timing import segment_times
from simulator.spec.hardware import Cluster
from simulator.spec.model import AttentionSpec, ModelSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy

KV_DTYPES = ("bf16", "fp16", "fp8")
MEMORY_SHARE = 0.9
"""Share of device memory that weights and cache may fill (vLLM's gpu_memory_utilization default, 0.9)."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of one replica: `batch` sequences at once, each with a prompt and an answer [tokens]."""

    batch: int
    prompt_tokens: int
    output_tokens: int
    kv_dtype: str = "bf16"


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What serving a model costs; times of one replica, rates of all."""

    model: str
    cluster: str
    devices: int
    replicas: int
    time_to_first_token_s: float
    """Prefill of one prompt, through every pipeline stage."""
    time_per_output_token_s: float
    """One decode step of the whole batch at the mean context, through every pipeline stage."""
    output_tokens_per_s: float
    """All replicas, prefill of the sequences that follow included."""
    output_tokens_per_s_per_device: float
    usd_per_million_tokens: float | None
    weight_bytes: float
    """Of the fullest rank."""
    kv_bytes_per_token: float
    """Of one sequence on the fullest rank, at the full context, averaged over its tokens."""
    kv_bytes: float
    """Of the batch at its full context, on the fullest rank."""
    workspace_bytes: float
    device_memory_bytes: float
    fits: bool
    largest_batch: int
    """Sequences per replica whose cache fits beside the weights."""
    decode_parts_s: dict[str, float]
    """Seconds of one decode step by kind of work and axis."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `shardwise serve --json`."""
        return asdict(self)


def serve(
    model: ModelSpec, cluster: Cluster, strategy: Strategy, load: Load, *, precision: str = "bf16",
    framework: Framework | None = None, price_usd_per_device_hour: float | None = None,
) -> Serving:  # fmt: skip
    """Estimate prefill, decode, cache and price of a model on a cluster; unequal nodes serve as their slowest.

    dp is the number of replicas; with pp stages the batch runs as pp micro-batches in turn. Raises InputError for
    models other than decoders with attention, for cp, vp or ZeRO, and as `estimate` does.
    """
    software = framework or catalog.load_framework("megatron-core")
    _check(model, strategy, load)
    cluster, _ = as_slowest(cluster, precision)
    plain = replace(
        model, head=replace(model.head, mtp_layers=0)
    ), replace(strategy, recompute="none", sequence_parallel=False, schedule="1f1b", micro_batch=1)  # fmt: skip
    prefill = _stages_s(*plain, cluster, load, software, precision, decoding=False)
    decode = _stages_s(*plain, cluster, load, software, precision, decoding=True)
    step_s = sum(decode.seconds) if strategy.pp == 1 else strategy.pp * max(decode.seconds)
    step_s = max(step_s, sum(decode.seconds) + decode.sends_s)
    busiest_prefill_s = max(prefill.seconds)
    round_s = load.batch * busiest_prefill_s + load.output_tokens * step_s
    rate = strategy.dp * load.batch * load.output_tokens / round_s
    memory = _memory(plain[0], strategy, load, prefill.program, precision)
    free = MEMORY_SHARE * cluster.device.memory_bytes - memory["weights"] - memory["workspace"]
    price = price_usd_per_device_hour or cluster.price_usd_per_device_hour or None
    each = memory["kv"] / load.batch
    return Serving(
        model=model.name, cluster=cluster.name, devices=strategy.devices, replicas=strategy.dp,
        time_to_first_token_s=sum(prefill.seconds) + prefill.sends_s, time_per_output_token_s=step_s,
        output_tokens_per_s=rate, output_tokens_per_s_per_device=rate / strategy.devices,
        usd_per_million_tokens=None if price is None else 1e6 * price * strategy.devices / 3600.0 / rate,
        weight_bytes=memory["weights"], kv_bytes_per_token=each / (load.prompt_tokens + load.output_tokens),
        kv_bytes=memory["kv"], workspace_bytes=memory["workspace"], device_memory_bytes=cluster.device.memory_bytes,
        fits=memory["kv"] <= free, largest_batch=max(0, math.floor(free / each)),
        decode_parts_s=decode.parts_s,
    )  # fmt: skip


@dataclass(frozen=True)
class _Stages:
    program: Program
    seconds: list[float]
    parts_s: dict[str, float]
    sends_s: float


def _stages_s(
    model: ModelSpec, strategy: Strategy, cluster: Cluster, load: Load, software: Framework, precision: str, *,
    decoding: bool,
) -> _Stages:  # fmt: skip
    """Forward seconds of every stage: one prompt, or one token of each sequence of a micro-batch."""
    length = 1 if decoding else load.prompt_tokens
    together = load.batch // strategy.pp if decoding else 1
    split = replace(strategy, micro_batch=together)
    run = Run(global_batch=together * strategy.dp, seq_len=length, precision=precision, dropout=0.0, attention="fused")
    # Only the last position of a prompt is projected onto the vocabulary.
    software = replace(software, logits_fraction=1.0 / length)
    check(model, cluster, run, split)
    program = lower(model, run, split, software)
    setting = Setting(run=run, strategy=split, framework=software, cluster=cluster, groups=groups_of(cluster, split))
    segments = {segment.name: segment for stage in program.stages for segment, _ in stage.parts}
    if decoding:
        context = load.prompt_tokens + load.output_tokens / 2.0
        cores = _cores(model)
        segments = {name: _decoding(segment, context, cores.get(name)) for name, segment in segments.items()}
    times = segment_times(segments.values(), policy_of(split), cluster, setting.groups)
    seconds, parts = [], dict[str, float]()
    for stage in program.stages:
        seconds.append(sum(count * float(times[s.name].forward.total_s) for s, count in stage.parts))
        for segment, count in stage.parts:
            for name, value in times[segment.name].forward.parts.items():
                parts[name] = parts.get(name, 0.0) + count * float(value)
    boundary = float(program.stages[0].boundary_bytes)
    sends_s = sum(float(collective_time_s(cluster, "send", boundary, setting.groups["pp"])) for _ in seconds[1:])
    return _Stages(program, seconds, {name: s for name, s in sorted(parts.items()) if s}, sends_s)


def _cores(model: ModelSpec) -> dict[str, AttentionSpec]:
    """The attention of every layer segment, by the segment's name."""
    found: dict[str, AttentionSpec] = {}
    for stack in model.stacks:
        for number, (spec, _) in enumerate(stack.runs):
            if spec.attention is not None:
                found[f"{stack.role}.layer{number}"] = spec.attention
    return found


def _decoding(segment: Segment, context: float, spec: AttentionSpec | None) -> Segment:
    """The segment with one query per sequence over all keys so far."""
    if spec is None:
        return segment
    operations = tuple(
        replace(operation, forward=tuple(_decoding_work(work, context, spec) for work in operation.forward))
        for operation in segment.operations
    )
    return replace(segment, operations=operations)


def _decoding_work(work: Work, context: float, spec: AttentionSpec) -> Work:
    if not isinstance(work, AttentionCore):
        return work
    keys = _kept(spec, context)
    if not spec.latent:
        return replace(work, q_len=1.0, kv_len=keys, causal=False, window=0)
    rank = spec.kv_lora_rank
    return replace(work, q_len=1.0, kv_len=keys, causal=False, window=0, kv_heads=1.0,
                   head_dim=rank + spec.rope_head_dim, value_head_dim=rank)  # fmt: skip


def _kept(spec: AttentionSpec, context: float) -> float:
    """Keys that a layer keeps of a context: at most its window or chunk."""
    window = spec.window or spec.chunk
    return min(context, float(window)) if window else context


def kv_bytes_per_layer(spec: AttentionSpec, context_tokens: float, tp: int, dtype: str) -> float:
    """Cache of one sequence in one layer on one rank [B].

    Keys and values of the local heads; under latent attention one compressed vector and one rotary key for all heads,
    which every tp rank holds whole (DeepSeek-V2 sec. 2.1.4).

    >>> llama = AttentionSpec(heads=64, kv_heads=8, head_dim=128, value_head_dim=128)
    >>> kv_bytes_per_layer(llama, 1.0, 1, "bf16")
    4096.0
    """
    if spec.latent:
        elements = float(spec.kv_lora_rank + spec.rope_head_dim)
    else:
        elements = float(local_kv_heads(spec, tp)) * (spec.head_dim + spec.value_head_dim)
    return elements * _kept(spec, context_tokens) * DTYPE_BYTES[dtype]


def _memory(model: ModelSpec, strategy: Strategy, load: Load, program: Program, precision: str) -> dict[str, float]:
    """Weights, cache and workspace of the rank that holds the most [B]."""
    cores = _cores(model)
    size = DTYPE_BYTES[precision] if precision in ("fp8", "mxfp8", "nvfp4") else DTYPE_BYTES["bf16"]
    size = 4.0 if precision in ("fp32", "tf32") else size
    context = load.prompt_tokens + load.output_tokens
    best: dict[str, float] = {}
    for stage in program.stages:
        caches = [
            count * kv_bytes_per_layer(cores[segment.name], context, strategy.tp, load.kv_dtype)
            for segment, count in stage.parts
            if segment.name in cores
        ]
        live = [sum(float(saved.bytes) for saved in _saves(segment.operations)) for segment, _ in stage.parts]
        parts = {
            "weights": size * float(held_parameters((stage,)).total),
            "kv": load.batch * sum(caches),
            # What a layer saves for backward bounds what it holds at once.
            "workspace": max(live),
        }
        if not best or sum(parts.values()) > sum(best.values()):
            best = parts
    return best


def _saves(operations: Sequence[Operation]) -> list[Any]:
    return [saved for operation in operations for saved in operation.saves]


def _check(model: ModelSpec, strategy: Strategy, load: Load) -> None:
    complaints = Complaints()
    layers = [spec for stack in model.stacks for spec, _ in stack.runs]
    causal = all(spec.attention is not None and spec.attention.causal and spec.lstm is None for spec in layers)
    complaints.require(len(model.stacks) == 1 and causal, f"{model.name} is a {model.architecture} model; only "
                       "decoders with causal attention in every layer are served here.", where="model")  # fmt: skip
    for name, value in (("batch", load.batch), ("prompt_tokens", load.prompt_tokens),
                        ("output_tokens", load.output_tokens)):  # fmt: skip
        complaints.require(1 <= value <= 10**7, f"{name}({value}) must be between 1 and 10,000,000.", where=name)
    for name, plain in (("cp", 1), ("vp", 1), ("zero", 0)):
        found = getattr(strategy, name)
        complaints.require(found == plain, f"{name}({found}) is not modelled in serving.", where=name)
    complaints.require(load.kv_dtype in KV_DTYPES, f"kv_dtype {load.kv_dtype!r} is unknown.", where="kv_dtype",
                       hint=f"Choose from: {', '.join(KV_DTYPES)}.")  # fmt: skip
    if strategy.pp > 1 and load.batch % strategy.pp:
        left = load.batch % strategy.pp
        message = f"batch({load.batch}) % pp({strategy.pp}) = {left}, not 0: the batch runs as pp micro-batches."
        complaints.add(message, where="batch")
    complaints.raise_if_any()
