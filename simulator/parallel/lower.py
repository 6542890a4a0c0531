"""One rank's program for each pipeline stage: the segments it holds, with local shapes, in order.

FLOPs, memory, traffic and time are all read off this program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simulator.arch.layer import (
    Segment,
    embedding_segment,
    head_segment,
    layer_segment,
    mtp_segment,
    norm_segment,
)
from simulator.arch.operations import Number, Operation, Weight
from simulator.arch.shard import Kernels, Shard, is_split, kernels_for
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One pipeline stage (one virtual stage of one rank): distinct segments with their counts, in model order."""

    index: int
    parts: tuple[tuple[Segment, Any], ...]
    """(segment, how many of it): an int, or an array over strategies in which 0 is none."""
    boundary_bytes: Number
    """Activation sent to the next stage per micro-batch, local [B]; 0 for the last stage."""

    @property
    def layers(self) -> Any:
        return sum(count for segment, count in self.parts if segment.recomputable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """All stages of one strategy, and the distinct segments they are made of."""

    stages: tuple[Stage, ...]
    segments: tuple[Segment, ...]
    kernels: Kernels
    shard: Shard
    micro_batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """A model's segments with local shapes, before they are dealt out to stages."""

    units: tuple[tuple[Segment, bool], ...]
    """Everything between embedding and head in model order; the flag says which are layers."""
    distinct: tuple[Segment, ...]
    opening: Segment
    closing: tuple[Segment, ...]
    tied: bool
    kernels: Kernels
    shards: list[Shard]

    @property
    def layers(self) -> int:
        return sum(1 for _, is_layer in self.units if is_layer)


def sequence_lengths(model: ModelSpec, run: Run) -> tuple[int, int]:
    """Tokens per sequence of the first stack and of the decoder of an encoder-decoder (0 when there is one stack)."""
    first = run.seq_len or model.seq_len
    if len(model.stacks) == 1:
        return first, 0
    return first, run.target_seq_len or model.target_seq_len or first


def shard_for(model: ModelSpec, run: Run, framework: Framework, degrees: Strategy, *, stack: int = 0) -> Shard:
    """The local view of a stack's layers. Degrees may be arrays (a namespace with Strategy's numeric fields)."""
    first, second = sequence_lengths(model, run)
    return Shard(
        micro_batch=degrees.micro_batch,
        seq_len=second if stack else first,
        memory_seq_len=first if stack else 0,
        tp=degrees.tp,
        cp=degrees.cp,
        ep=degrees.ep,
        etp=degrees.etp,
        sequence_parallel=degrees.sequence_parallel or not is_split(degrees.tp),
        context_kind=degrees.context_kind,
        vocab_multiple=framework.vocab_multiple,
        capacity_factor=run.capacity_factor,
        capacity_per_choice=framework.capacity_per_choice,
        routing_group=run.routing_group,
        imbalance=run.expert_imbalance,
    )


def kernels_of(model: ModelSpec, run: Run, framework: Framework, strategy: Strategy) -> Kernels:
    """The framework's kernels with the strategy's overlap options applied."""
    tp, moe = strategy.overlap_tp, strategy.overlap_moe
    return kernels_for(
        model, run, framework,
        overlap_tp=framework.overlap_tp if tp is None else tp,
        overlap_moe=framework.overlap_moe if moe is None else moe,
    )  # fmt: skip


def layers_of_stages(layers: int, stages: int, explicit: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Layers of each stage in model order: as given, or even with the remainder on the stages after the first.

    The first stage also holds the embedding and the last the head, so a remainder goes to the middle.

    >>> layers_of_stages(61, 4)
    (15, 16, 15, 15)
    """
    if explicit:
        return explicit
    base, extra = divmod(layers, stages)
    return tuple(base + (1 if 0 < index <= extra else 0) for index in range(stages))


def lower(model: ModelSpec, run: Run, strategy: Strategy, framework: Framework) -> Program:
    """Split a model over pipeline stages and give each stage its program."""
    pieces = pieces_of(model, run, strategy, framework)
    split = layers_of_stages(pieces.layers, strategy.stages, strategy.layers_per_stage)
    boundaries = boundary_bytes(model, pieces.shards, pieces.kernels, split)
    parts: dict[tuple[int, ...], tuple[tuple[Segment, int], ...]] = {}
    stages = []
    for index, held in enumerate(deal(pieces, split)):
        key = tuple(map(id, held))
        if key not in parts:
            parts[key] = _runs(held)
        stages.append(Stage(index=index, parts=parts[key], boundary_bytes=boundaries[index]))
    return Program(
        stages=tuple(stages),
        segments=pieces.distinct,
        kernels=pieces.kernels,
        shard=pieces.shards[0],
        micro_batches=run.global_batch // (strategy.dp * strategy.micro_batch),
    )  # fmt: skip


def pieces_of(model: ModelSpec, run: Run, strategy: Strategy, framework: Framework) -> Pieces:
    """All segments of a model with one rank's shapes. The strategy's degrees may be arrays."""
    kernels = kernels_of(model, run, framework, strategy)
    shards = [shard_for(model, run, framework, strategy, stack=index) for index in range(len(model.stacks))]
    units, distinct = _units(model, shards, kernels)
    head = head_segment(model, shard=shards[-1], kernels=kernels)
    depth = model.head.mtp_layers
    depths = [mtp_segment(model, shard=shards[-1], kernels=kernels)] * depth if depth else []
    return Pieces(
        units=tuple(units),
        distinct=tuple(distinct),
        opening=embedding_segment(model, shard=shards[0], kernels=kernels),
        closing=(head, *depths),
        tied=model.head.tied,
        kernels=kernels,
        shards=shards,
    )


def deal(pieces: Pieces, split: tuple[int, ...]) -> list[list[Segment]]:
    """The segments of each stage, in order, for a number of layers on each."""
    stages = _cut(list(pieces.units), split)
    stages[-1] += pieces.closing
    stages[0].insert(0, pieces.opening)
    if len(stages) > 1 and pieces.tied:
        stages[-1].append(tied_copy(pieces.opening))
    return stages


def _units(model: ModelSpec, shards: list[Shard], kernels: Kernels) -> tuple[list[tuple[Segment, bool]], list[Segment]]:
    """The model's middle as a flat list of segments; the flag says which are layers. Equal layers share a segment."""
    units: list[tuple[Segment, bool]] = []
    distinct: list[Segment] = []
    for stack, shard in zip(model.stacks, shards, strict=True):
        for number, (spec, count) in enumerate(stack.runs):
            same = next((i for i, (other, _) in enumerate(stack.runs[:number]) if other == spec), None)
            name = f"{stack.role}.layer{number if same is None else same}"
            segment = next((s for s in distinct if s.name == name), None)
            if segment is None:
                segment = layer_segment(spec, model, shard=shard, kernels=kernels, name=name)
                distinct.append(segment)
            units += [(segment, True)] * count
        final = norm_segment(model, stack, shard=shard, kernels=kernels)
        distinct.append(final)
        units.append((final, False))
    return units, distinct


def _cut(units: list[tuple[Segment, bool]], split: tuple[int, ...]) -> list[list[Segment]]:
    """Deal the layers out by `split`; a stack's final norm stays with its last layer."""
    stages: list[list[Segment]] = [[] for _ in split]
    stage, left = 0, split[0]
    for segment, is_layer in units:
        while is_layer and left == 0:
            stage += 1
            left = split[stage]
        stages[stage].append(segment)
        left -= int(is_layer)
    return stages


def _runs(held: list[Segment]) -> tuple[tuple[Segment, int], ...]:
    counts: dict[int, int] = {}
    seen: dict[int, Segment] = {}
    for segment in held:
        key = id(segment)
        counts[key] = counts.get(key, 0) + 1
        seen[key] = segment
    return tuple((segment, counts[key]) for key, segment in seen.items())


def tied_copy(embedding: Segment) -> Segment:
    """The last stage's copy of a tied table: memory and gradient traffic, no work of its own."""
    table = embedding.operations[0].weights[0]
    copy = Weight(name="head.tied_copy", elements=table.elements)
    operation = Operation(name="head.tied_copy", weights=(copy,))
    return Segment(name="head.tied_copy", operations=(operation,), input_bytes=0.0, recomputable=False)


def boundary_bytes(
    model: ModelSpec, shards: list[Shard], kernels: Kernels, split: tuple[int, ...]
) -> list[Number]:
    """Bytes each stage sends on. A stage with decoder layers also passes the encoder's output along, one that ends with
    the encoder sends nothing else (Megatron-LM megatron/core/pipeline_parallel/schedules.py get_tensor_shapes).
    """
    each = [shard.split_tokens * model.hidden * kernels.element_bytes for shard in shards]
    passed, result = 0, []
    for layers in split:
        passed += layers
        result.append(each[0] if passed <= model.stacks[0].layers else each[0] + each[1])
    result[-1] = 0.0
    return result
