"""What activation recomputation keeps and what it runs again.

Recomputation is the removal of named tensors: full keeps a layer's input, selective drops what the recomputed
modules produce inside their borders (Korthikanti 2022 sec. 5; Megatron-Core `--recompute-modules`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.arch.layer import Segment
from simulator.arch.operations import Number, Operation, Saved
from simulator.cluster.elementwise import minimum
from simulator.parallel.lower import Stage
from simulator.spec.strategy import Strategy

SELECTIVE = frozenset({"core_attn"})


@dataclass(frozen=True, slots=True)
class Policy:
    """`full` recomputes whole layers; otherwise the modules named are recomputed."""

    full: bool = False
    offloaded: bool = False
    """The layer inputs that full recomputation keeps are in host memory."""
    modules: frozenset[str] = frozenset()


def policy_of(strategy: Strategy) -> Policy:
    """The policy of a strategy's recompute option."""
    if strategy.recompute == "full":
        return Policy(full=True, offloaded=strategy.offload_inputs)
    if strategy.recompute == "selective":
        return Policy(modules=SELECTIVE)
    if strategy.recompute == "modules":
        return Policy(modules=frozenset(strategy.recompute_modules))
    return Policy()


def recomputed_layers(strategy: Strategy, stage: Stage) -> Any:
    """How many of a stage's layers full recomputation runs again, if it holds as many: all where none are named."""
    named: Any = strategy.recompute_layers
    if isinstance(named, tuple):
        return named[stage.index]
    if isinstance(named, np.ndarray):
        return np.where(named > 0, named, stage.layers)
    return named or stage.layers


def recomputed_parts(stage: Stage, strategy: Strategy) -> list[tuple[Segment, Number, Number]]:
    """(segment, how many of it fall under the policy, how many do not) in model order: full recomputation takes the
    first layers of a stage.
    """
    if isinstance(strategy.recompute_layers, int) and strategy.recompute_layers == 0:
        return [(segment, count, 0) for segment, count in stage.parts]
    left = recomputed_layers(strategy, stage)
    parts: list[tuple[Segment, Number, Number]] = []
    for segment, count in stage.parts:
        if not segment.recomputable:
            parts.append((segment, count, 0))
            continue
        again = minimum(count, left)
        left = left - again
        parts.append((segment, again, count - again))
    return parts


def saved_tensors(segment: Segment, policy: Policy) -> tuple[Saved, ...]:
    """Tensors kept from forward to backward by one micro-batch of a segment."""
    if policy.full and segment.recomputable:
        kept = Saved(name=f"{segment.name}.input", bytes=segment.input_bytes, boundary=True)
        return () if policy.offloaded else (kept,)
    return tuple(
        saved
        for operation in segment.operations
        for saved in operation.saves
        if saved.boundary or not policy.modules.intersection(operation.modules)
    )


def saved_bytes(segment: Segment, policy: Policy) -> Number:
    """Bytes kept from forward to backward by one micro-batch of a segment [B]."""
    return sum(saved.bytes for saved in saved_tensors(segment, policy))


def recomputed_operations(segment: Segment, policy: Policy) -> tuple[Operation, ...]:
    """Operations whose forward runs again in backward."""
    if policy.full:
        return segment.operations if segment.recomputable else ()
    return tuple(operation for operation in segment.operations if policy.modules.intersection(operation.modules))

