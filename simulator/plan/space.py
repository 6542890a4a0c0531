"""The legal space as columns: counted by arithmetic, then narrowed rule by rule, every refusal counted by its reason.

A row of the columns is one set of degrees. Options (schedule, ZeRO stage, recomputation, ...) multiply a row; which
of them a row may take is a mask per value. The rules are those of `parallel/legal.py` and `schedule/make.py`, here over
columns (a property test holds the two together). Values that change nothing are counted once: sequence parallelism
without tp, the way context is exchanged without cp, schedules and placements without a pipeline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from math import lcm
from typing import Any, cast

import numpy as np

from simulator.cluster.spans import NET_KINDS
from simulator.errors import InputError
from simulator.numbers import divisors
from simulator.parallel.legal import attentions, expert_specs
from simulator.parallel.lower import sequence_lengths
from simulator.plan.limits import DEGREES, OPTIONS, Limits, check_limits
from simulator.plan.menus import Menu, menu_of
from simulator.plan.table import Columns, Ints, Mask, Table
from simulator.schedule.make import check_sizes
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import CONTEXT_KINDS, Strategy

OUTSIDE = "{} leaves the scale-up domain of {} devices (limit it yourself to allow that)"
UNFOLDED = "ep * etp does not fold into tp * cp * dp"


@dataclass(frozen=True, eq=False, kw_only=True)
class Space:
    """Legal strategies: bases (tp, pp, cp, dp, micro-batch, vp) with the ways to fold experts into each, and for each
    option the values with the bases that may take them. Row r is base r % bases under fold r // bases.
    """

    base: Columns
    folds: tuple[tuple[int, int], ...]
    """(ep, etp)."""
    options: Mapping[str, Mapping[Any, Mask]]
    carried: Mapping[str, Any]
    considered: int
    """Strategies before any rule, counted without enumerating them."""
    legal: int
    rejected: Mapping[str, int]

    @property
    def bases(self) -> int:
        return len(self.base["tp"])

    def rows(self) -> Ints:
        """All rows whose experts fold, in order."""
        ranks = self.base["tp"] * self.base["cp"] * self.base["dp"]
        return np.concatenate([
            fold * self.bases + np.flatnonzero(ranks % (ep * etp) == 0) for fold, (ep, etp) in enumerate(self.folds)
        ])  # fmt: skip

    def choices(self) -> Ints:
        """How many strategies each base stands for, under one fold."""
        count = np.ones(self.bases, np.int64)
        for allowed in self.options.values():
            count *= np.sum(list(allowed.values()), axis=0)
        return count

    def columns(self, rows: Ints) -> Columns:
        """The degrees of some rows."""
        base, fold = rows % self.bases, rows // self.bases
        folds = np.array(self.folds, np.int64)
        return {**{name: column[base] for name, column in self.base.items()},
                "ep": folds[fold, 0], "etp": folds[fold, 1]}  # fmt: skip

    def strategy(self, row: int, chosen: Mapping[str, Any]) -> Strategy:
        """One strategy of the space."""
        degrees = {name: int(column[0]) for name, column in self.columns(np.array([row])).items() if name in DEGREES}
        fields = {**degrees, **chosen, **self.carried}
        if degrees["pp"] == 1:
            fields["schedule"] = "1f1b"
        if fields["schedule"] not in ("interleaved", "zb-h1"):
            fields["group_size"] = 0
        if fields["recompute"] != "modules":
            fields["recompute_modules"] = ()
        return Strategy(**fields)

    def strategies(self) -> Iterator[Strategy]:
        """Every legal strategy, one by one."""
        rows = self.rows()
        for chosen, mask in self.combinations(OPTIONS):
            for row in rows[mask[rows % self.bases]].tolist():
                yield self.strategy(row, chosen)

    def combinations(self, names: Sequence[str]) -> Iterator[tuple[dict[str, Any], Mask]]:
        """Every combination of values of some options, with the bases that may take it."""
        yield from self._combined(tuple(names), np.ones(self.bases, np.bool_))

    def _combined(self, names: tuple[str, ...], mask: Mask) -> Iterator[tuple[dict[str, Any], Mask]]:
        if not names:
            yield {}, mask
            return
        for value, allowed in self.options[names[0]].items():
            both = mask & allowed
            if both.any():
                for chosen, rows in self._combined(names[1:], both):
                    yield {names[0]: value, **chosen}, rows


@dataclass(frozen=True, kw_only=True)
class _Choices:
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


def build_space(model: ModelSpec, cluster: Cluster, run: Run, framework: Framework, limits: Limits) -> Space:
    """The legal strategies for all devices of a cluster.

    Raises InputError for limits that make no sense. A space may be empty.
    """
    check_limits(limits)
    menu = menu_of(framework)
    table = _degrees(cluster, limits)
    choices = _choices(model, cluster, run, menu, limits, sorted(set(table["pp"].tolist())))
    virtual = np.array([len(choices.vp[pp]) for pp in table["pp"].tolist()], np.int64)
    pairs = tuple((ep, etp) for ep in choices.ep for etp in choices.etp)
    batches, folds = len(choices.micro_batch), len(pairs)
    weight = _multiplicities(table, choices) * virtual * (batches * folds)
    considered = int(weight.sum())
    domain = 0 if limits.asked("tp") else scale_up_devices(cluster)
    _narrow_degrees(table, model, run, domain, weight)
    table.cross("micro_batch", choices.micro_batch)
    weight = _multiplicities(table, choices) * np.array([len(choices.vp[pp]) for pp in table["pp"].tolist()], np.int64)
    table.keep(run.global_batch % (table["dp"] * table["micro_batch"]) == 0, weight * folds,
               "the global batch is not a multiple of dp * micro-batch")  # fmt: skip
    table.cross_by("vp", "pp", choices.vp)
    weight = _multiplicities(table, choices) * folds
    table.keep(table["pp"] * table["vp"] <= model.layers, weight, "more pipeline stages than layers")
    legal_pairs = _narrow_folds(table, model, pairs, 0 if limits.asked("etp") else scale_up_devices(cluster), choices)
    options = {**_allowed_splits(table, model, run, choices), **_allowed_options(table, run, choices, menu, limits)}
    masks = _option_masks(table, options, _multiplicities(table, choices) * _foldings(table, legal_pairs))
    return Space(
        base=table.columns, folds=legal_pairs, options=masks, carried=limits.carried(), considered=considered,
        legal=considered - sum(table.rejected.values()), rejected=dict(table.rejected),
    )  # fmt: skip


def _degrees(cluster: Cluster, limits: Limits) -> Table:
    """Every way to write the devices as tp * pp * cp * dp."""
    devices = cluster.devices
    rows = []
    for tp in limits.choices("tp", divisors(devices)):
        for pp in limits.choices("pp", divisors(devices)):
            for cp in limits.choices("cp", divisors(devices)):
                dp, rest = divmod(devices, tp * pp * cp)
                if dp and not rest and dp in limits.choices("dp", (dp,)):
                    rows.append((tp, pp, cp, dp))
    if not rows:
        raise InputError([f"No tp * pp * cp * dp within the limits gives the {devices} devices of {cluster.name}."])
    columns = np.array(rows, np.int64).T
    return Table(dict(zip(("tp", "pp", "cp", "dp"), columns, strict=True)))


def _choices(
    model: ModelSpec, cluster: Cluster, run: Run, menu: Menu, limits: Limits, pipelines: Sequence[int]
) -> _Choices:
    mixtures = expert_specs(model)
    counts = divisors(reduce(lcm, (spec.count for spec in mixtures))) if mixtures else (1,)
    widths = [size for size in divisors(cluster.devices) if all(spec.hidden % size == 0 for spec in mixtures)]
    return _Choices(
        micro_batch=limits.choices("micro_batch", divisors(run.global_batch)),
        ep=limits.choices("ep", counts),
        etp=limits.choices("etp", widths if mixtures else (1,)),
        vp={pp: limits.choices("vp", virtual_stages(model.layers, pp)) for pp in pipelines},
        schedule=limits.choices("schedule", menu.schedules),
        zero=limits.choices("zero", sorted({*menu.zero, *menu.zero_flat})),
        recompute=limits.choices("recompute", _recompute(limits)),
        sequence_parallel=limits.choices("sequence_parallel", (True, False)),
        context_kind=limits.choices("context_kind", CONTEXT_KINDS),
        order=limits.choices("order", menu.orders),
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


def _multiplicities(table: Table, choices: _Choices) -> Ints:
    """How many combinations of options each row stands for, before any rule on them."""
    split, context, pipe = table["tp"] > 1, table["cp"] > 1, table["pp"] > 1
    replicated = table["dp"] * table["cp"] > 1
    count = len(choices.recompute) * np.where(split, len(choices.sequence_parallel), 1)
    count = count * np.where(context, len(choices.context_kind), 1)
    count = count * np.where(pipe, len(choices.schedule), 1) * np.where(replicated, len(choices.zero), 1)
    return cast("Ints", count * np.where(pipe & (table["dp"] > 1), len(choices.order), 1))


def scale_up_devices(cluster: Cluster) -> int:
    """Devices of the largest domain that no network crosses: a node, an NVL72 rack, a slice."""
    inner = [tier.size for tier in cluster.tiers if tier.kind not in NET_KINDS]
    return max(inner, default=cluster.devices_per_node)


def _narrow_degrees(table: Table, model: ModelSpec, run: Run, domain: int, weight: Ints) -> None:
    """Rules on tp, pp, cp and dp alone. tp stays within `domain` devices (0: anywhere)."""
    attention = attentions(model)
    hidden = {spec.feed_forward.hidden for stack in model.stacks for spec, _ in stack.runs if spec.feed_forward}
    recurrent = any(spec.lstm for stack in model.stacks for spec, _ in stack.runs)
    tp = table["tp"]
    heads = np.all([a.heads % tp == 0 for a in attention] or [tp > 0], axis=0)
    groups = np.all([(a.kv_heads % tp == 0) | (tp % a.kv_heads == 0) for a in attention] or [tp > 0], axis=0)
    widths = np.all([size % tp == 0 for size in hidden] or [tp > 0], axis=0)
    rules = (
        (heads, "tp does not divide the attention heads"),
        (groups, "neither of tp and the key/value heads divides the other"),
        (widths, "tp does not divide the feed-forward size"),
        (tp <= (domain or tp), OUTSIDE.format("tp", domain)),
        ((tp == 1) | (not recurrent), "tensor parallelism of LSTM layers is not modelled"),
        (table["pp"] <= model.layers, "more pipeline stages than layers"),
        (run.global_batch % table["dp"] == 0, "the global batch is not a multiple of dp * micro-batch"),
    )
    left = np.ones(len(tp), np.bool_)
    for mask, reason in rules:
        lost = left & ~mask
        if lost.any():
            table.rejected[reason] += int(weight[lost].sum())
            left &= mask
    table.columns = {name: column[left] for name, column in table.columns.items()}


def _narrow_folds(
    table: Table, model: ModelSpec, pairs: Sequence[tuple[int, int]], domain: int, choices: _Choices
) -> tuple[tuple[int, int], ...]:
    """Expert degrees: divisibility, the domain, folding. Returns the (ep, etp) that some base may take."""
    specs = expert_specs(model)
    weight = _multiplicities(table, choices)
    total = int(weight.sum())
    legal = []
    for ep, etp in pairs:
        if any(spec.count % ep for spec in specs) or (not specs and ep > 1):
            table.rejected["ep does not divide the experts"] += total
        elif any(spec.hidden % etp for spec in specs) or (not specs and etp > 1):
            table.rejected["etp does not divide the expert size"] += total
        elif domain and etp > domain:
            table.rejected[OUTSIDE.format("etp", domain)] += total
        else:
            legal.append((ep, etp))
    lost = int((weight * (len(legal) - _foldings(table, legal))).sum())
    if lost:
        table.rejected[UNFOLDED] += lost
    return tuple(legal)


def _foldings(table: Table, pairs: Sequence[tuple[int, int]]) -> Ints:
    """How many of the (ep, etp) fold into each row's tp * cp * dp."""
    ranks = table["tp"] * table["cp"] * table["dp"]
    count = np.zeros(len(ranks), np.int64)
    for ep, etp in pairs:
        count += ranks % (ep * etp) == 0
    return count


_Allowed = Mapping[Any, tuple[Mask, Mask, str]]
"""By value: rows where it is counted, rows where it is legal, the reason where it is not."""


def _option_masks(table: Table, options: Mapping[str, _Allowed], left: Ints) -> dict[str, dict[Any, Mask]]:
    """For each option its values and the rows that may take them; refusals are counted on the way."""
    for name in OPTIONS:
        left = _count_refused(table.rejected, options[name], left)
    return {name: {value: once & ok for value, (once, ok, _) in options[name].items()} for name in OPTIONS}


def _allowed_splits(table: Table, model: ModelSpec, run: Run, choices: _Choices) -> dict[str, _Allowed]:
    """Sequence parallelism and context parallelism: the sequence and the heads must divide."""
    tp, cp = table["tp"], table["cp"]
    everywhere = np.ones(len(tp), np.bool_)
    lengths = [length for length in (*sequence_lengths(model, run), run.target_seq_len) if length]
    splits: dict[Any, tuple[Mask, Mask, str]] = {}
    for split in choices.sequence_parallel:
        unit = cp * tp if split else cp
        fits = np.all([length % unit == 0 for length in lengths], axis=0)
        once = _once(split, choices.sequence_parallel, tp > 1)
        splits[split] = (once, fits, "the sequence is not a multiple of cp (and of tp)")
    whole = np.all([(a.heads // tp) % cp == 0 for a in attentions(model)] or [everywhere], axis=0)
    kinds: dict[Any, tuple[Mask, Mask, str]] = {}
    for kind in choices.context_kind:
        legal = whole | (cp == 1) | (kind != "ulysses")
        kinds[kind] = (_once(kind, choices.context_kind, cp > 1), legal, "ulysses: cp does not divide the heads")
    return {"sequence_parallel": splits, "context_kind": kinds}


def _allowed_options(
    table: Table, run: Run, choices: _Choices, menu: Menu, limits: Limits
) -> dict[str, _Allowed]:
    """Placement, ZeRO stage, recomputation and schedule."""
    pp, dp, cp = table["pp"], table["dp"], table["cp"]
    everywhere = np.ones(len(pp), np.bool_)
    zeros: dict[Any, tuple[Mask, Mask, str]] = {}
    for zero in choices.zero:
        offered = everywhere if limits.asked("zero") else _offered(zero, menu, pp)
        reason = "the framework has no such ZeRO stage with a pipeline"
        zeros[zero] = (_once(zero, choices.zero, dp * cp > 1), offered | (dp * cp == 1), reason)
    micro_batches = run.global_batch // (dp * table["micro_batch"])
    schedules: dict[Any, tuple[Mask, Mask, str]] = {}
    for schedule in choices.schedule:
        sizes = _schedulable(schedule, table, micro_batches, int(limits.fix.get("group_size", 0)))
        once = _once(schedule, choices.schedule, pp > 1)
        schedules[schedule] = (once, sizes, "the schedule does not take these sizes")
    return {
        "order": {order: (_once(order, choices.order, (pp > 1) & (dp > 1)), everywhere, "") for order in choices.order},
        "zero": zeros,
        "recompute": dict.fromkeys(choices.recompute, (everywhere, everywhere, "")),
        "schedule": schedules,
    }


def _once(value: Any, values: Sequence[Any], matters: Mask) -> Mask:
    """Where an option changes nothing, its first value stands for all."""
    return matters if value != values[0] else np.ones(len(matters), np.bool_)


def _count_refused(rejected: Counter[str], allowed: _Allowed, left: Ints) -> Ints:
    """Share out each row's combinations over an option's values, and count the refused ones."""
    offered = np.sum([once for once, _, _ in allowed.values()], axis=0)
    each = left // np.maximum(offered, 1)
    for once, ok, reason in allowed.values():
        lost = int(each[once & ~ok].sum())
        if lost:
            rejected[reason] += lost
    return cast("Ints", each * np.sum([once & ok for once, ok, _ in allowed.values()], axis=0))


def _offered(zero: int, menu: Menu, pp: Ints) -> Mask:
    return cast("Mask", ((pp == 1) & (zero in menu.zero_flat)) | (zero in menu.zero))


def _schedulable(schedule: str, table: Table, micro_batches: Ints, group_size: int) -> Mask:
    """Rows whose sizes a schedule takes; each distinct set of sizes is asked once."""
    pp, vp = table["pp"], table["vp"]
    code = (pp * (vp.max(initial=1) + 1) + vp) * (micro_batches.max(initial=1) + 1) + micro_batches
    _, first, place = np.unique(code, return_index=True, return_inverse=True)
    sizes = zip(pp[first].tolist(), vp[first].tolist(), micro_batches[first].tolist(), strict=True)
    taken = [_takes(schedule if p > 1 else "1f1b", p, v, m, group_size) for p, v, m in sizes]
    return cast("Mask", np.array(taken, np.bool_)[place.reshape(-1)])


@cache
def _takes(schedule: str, pp: int, vp: int, micro_batches: int, group_size: int) -> bool:
    grouped = schedule == "interleaved" or (schedule == "zb-h1" and vp > 1)
    try:
        check_sizes(schedule, pp=pp, micro_batches=micro_batches, vp=vp, group_size=group_size if grouped else 0)
    except InputError:
        return False
    return True

