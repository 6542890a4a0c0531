"""Bytes a rank puts on the wire in one step, by axis, read off the same program that costs time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from simulator.arch.layer import Segment
from simulator.arch.operations import Collective, Number
from simulator.cluster.network import wire_bytes
from simulator.cluster.placement import Group
from simulator.parallel.gradients import synchronisation
from simulator.parallel.lower import Program, Stage
from simulator.parallel.recompute import policy_of, recomputed_operations
from simulator.parallel.setting import Setting
from simulator.parallel.states import held_parameters
from simulator.spec.strategy import Strategy

AXIS_OF = {"dp_cp": "dp", "shard": "dp", "replicas": "dp", "edp": "dp"}
"""Gradient and parameter traffic is reported as data parallelism's."""


def stage_collectives(parts: Iterable[tuple[Segment, Any]], strategy: Strategy) -> list[tuple[Collective, Any]]:
    """Collectives of one micro-batch through segments, with how often each runs."""
    policy = policy_of(strategy)
    found: list[tuple[Collective, Any]] = []
    for segment, count in parts:
        again = {id(operation) for operation in recomputed_operations(segment, policy)}
        for operation in segment.operations:
            forwards = operation.forward * (2 if id(operation) in again else 1)
            works = (*forwards, *operation.input_grad, *operation.weight_grad)
            found += [(work, count) for work in works if isinstance(work, Collective)]
    return found


def traffic_bytes(program: Program, stages: Sequence[Stage], setting: Setting) -> dict[str, Number]:
    """Bytes sent per device and step by a rank that holds `stages`."""
    strategy, groups = setting.strategy, setting.groups
    sent: dict[str, Number] = defaultdict(float)
    _add(sent, stage_collectives(_joined(stages), strategy), groups, program.micro_batches)
    for stage in stages:
        if strategy.stages > 1:
            neighbours = int(stage.index > 0) + int(stage.index < strategy.stages - 1)
            boundary = program.stages[min(stage.index, strategy.stages - 2)].boundary_bytes
            sent["pp"] = sent["pp"] + neighbours * program.micro_batches * boundary
    held = held_parameters(tuple(stages))
    sync = synchronisation(held, setting.run, strategy, setting.framework)
    _add(sent, [(c, 1) for c in (*sync.reduce, *sync.gather, *sync.tensor)], groups, 1)
    _add(sent, [(c, 1) for c in (*sync.forward, *sync.backward)], groups, program.micro_batches)
    return dict(sent)


def _joined(stages: Sequence[Stage]) -> Iterable[tuple[Segment, Any]]:
    """The segments that some stages hold, with how often: equal ones are looked at once."""
    parts: dict[int, tuple[Segment, Any]] = {}
    for segment, count in (part for stage in stages for part in stage.parts):
        parts[id(segment)] = segment, count + parts.get(id(segment), (segment, 0))[1]
    return parts.values()


def _add(
    sent: dict[str, Number], collectives: Iterable[tuple[Collective, Any]], groups: Mapping[str, Group], times: int
) -> None:
    for collective, count in collectives:
        axis = AXIS_OF.get(collective.axis, collective.axis)
        each = wire_bytes(collective.kind, collective.bytes, groups[collective.axis].size)
        sent[axis] = sent[axis] + times * count * each
