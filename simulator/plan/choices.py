"""What every field of a strategy may be before any rule, and how many combinations that makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import lcm
from typing import cast

import numpy as np

from simulator.numbers import divisors
from simulator.parallel.legal import expert_specs
from simulator.plan.limits import SPLITS, STAGES, Limits
from simulator.plan.menus import Menu
from simulator.plan.table import Ints, Mask, Table
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Run
from simulator.spec.strategy import CONTEXT_KINDS


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The values of every field before any rule."""

    micro_batch: tuple[int, ...]
    ep: tuple[int, ...]
    etp: tuple[int, ...]
    vp: Mapping[int, tuple[int, ...]]
    schedule: tuple[str, ...]
    zero: tuple[int, ...]
    recompute: tuple[str, ...]
    sequence_parallel: tuple[bool, ...]
    context_kind: tuple[str, ...]
    order: tuple[tuple[str, ...], ...]
    partial: bool
    fitted: bool
    """Full recomputation of the fewest layers of each stage that fit."""
    split: tuple[str, ...]


def choices_of(
    model: ModelSpec, cluster: Cluster, run: Run, menu: Menu, limits: Limits, pipelines: Sequence[int]
) -> Choices:
    mixtures = expert_specs(model)
    counts = divisors(reduce(lcm, (spec.count for spec in mixtures))) if mixtures else (1,)
    carried_layers = "recompute_layers" in limits.fix
    some = menu.partial_recompute or "full" in limits.allow.get("recompute", ())
    stages = limits.choices("recompute_stages", STAGES if some else STAGES[:1])
    recompute = ("full",) if limits.fix.get("recompute_layers") else limits.choices("recompute", _recompute(limits))
    widths = [size for size in divisors(cluster.devices) if all(spec.hidden % size == 0 for spec in mixtures)]
    return Choices(
        micro_batch=limits.choices("micro_batch", divisors(run.global_batch)),
        ep=limits.choices("ep", counts),
        etp=limits.choices("etp", widths if mixtures else (1,)),
        vp={pp: limits.choices("vp", virtual_stages(model.layers, pp)) for pp in pipelines},
        schedule=limits.choices("schedule", menu.schedules),
        zero=limits.choices("zero", sorted({*menu.zero, *menu.zero_flat})),
        recompute=recompute,
        sequence_parallel=limits.choices("sequence_parallel", (True, False)),
        context_kind=limits.choices("context_kind", CONTEXT_KINDS),
        order=limits.choices("order", menu.orders),
        partial=some and "alike" in stages and not carried_layers,
        fitted="fitted" in stages and {"none", "full"} <= set(recompute) and not carried_layers,
        split=limits.choices("split", SPLITS if menu.uneven_splits else SPLITS[:1]),
    )


def _recompute(limits: Limits) -> tuple[str, ...]:
    named = ("modules",) if limits.fix.get("recompute_modules") else ()
    return ("none", "selective", "full", *named)


def virtual_stages(layers: int, pp: int) -> tuple[int, ...]:
    """Virtual stages per rank worth telling apart: the fewest for each size of the largest stage.

    >>> virtual_stages(12, 2), virtual_stages(61, 16)
    ((1, 2, 3, 6), (1, 2))
    """
    if pp == 1:
        return (1,)
    most = max(layers // pp, 1)
    found: dict[int, int] = {}
    for vp in range(1, most + 1):
        found.setdefault(-(-layers // (pp * vp)), vp)
    return tuple(found.values())


def virtual_choices(pp: Ints, layers: int, choices: Choices) -> Ints:
    """How many combinations of virtual stages and what depends on them each row stands for."""
    count: dict[int, int] = {}
    for each, virtual in choices.vp.items():
        column = np.array(virtual, np.int64)
        count[each] = int(stage_choices_of(np.full_like(column, each), column, layers, choices).sum())
    return np.array([count[each] for each in pp.tolist()], np.int64)


def stage_choices_of(pp: Ints, vp: Ints, layers: int, choices: Choices) -> Ints:
    """How many combinations of recomputation and layer split each row stands for."""
    recompute = len(choices.recompute) + partial_layers(pp, vp, layers, choices) + fittable(pp, choices)
    return recompute * np.where(splittable(pp, vp, layers), len(choices.split), 1)


def partial_layers(pp: Ints, vp: Ints, layers: int, choices: Choices) -> Ints:
    """The most layers that full recomputation may run again without running all: one less than the largest stage."""
    if not (choices.partial and "full" in choices.recompute):
        return np.zeros(len(pp), np.int64)
    return cast("Ints", -(-layers // (pp * vp)) - 1)


def fittable(pp: Ints, choices: Choices) -> Mask:
    """Where stages may recompute different numbers of layers."""
    return np.asarray((pp > 1) & choices.fitted)


def splittable(pp: Ints, vp: Ints, layers: int) -> Mask:
    """Where layers can be dealt out in more than one way: one stage per rank, and more layers than stages."""
    return np.asarray((pp > 1) & (vp == 1) & (pp < layers))


def multiplicities(table: Table, choices: Choices) -> Ints:
    """How many combinations of options each row stands for, before any rule on them; recomputation and layer split
    aside.
    """
    split, context, pipe = table["tp"] > 1, table["cp"] > 1, table["pp"] > 1
    replicated = table["dp"] * table["cp"] > 1
    count = np.where(split, len(choices.sequence_parallel), 1)
    count = count * np.where(context, len(choices.context_kind), 1)
    count = count * np.where(pipe, len(choices.schedule), 1) * np.where(replicated, len(choices.zero), 1)
    return cast("Ints", count * np.where(pipe & (table["dp"] > 1), len(choices.order), 1))
