"""The rules of a legal strategy over columns, every refusal counted by its reason: those of `parallel/legal.py` and
`schedule/make.py` (a property test holds the two together).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import numpy as np

from simulator.cluster.spans import NET_KINDS
from simulator.errors import InputError
from simulator.parallel.legal import attentions, expert_specs
from simulator.parallel.lower import sequence_lengths
from simulator.plan.choices import Choices, splittable
from simulator.plan.limits import OPTIONS, Limits
from simulator.plan.menus import Menu
from simulator.plan.table import Ints, Mask, Table
from simulator.schedule.make import check_sizes
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Run

OUTSIDE = "{} leaves the scale-up domain of {} devices (limit it yourself to allow that)"
UNFOLDED = "ep * etp does not fold into tp * cp * dp"


def scale_up_devices(cluster: Cluster) -> int:
    """Devices of the largest domain that no network crosses: a node, an NVL72 rack, a slice."""
    inner = [tier.size for tier in cluster.tiers if tier.kind not in NET_KINDS]
    return max(inner, default=cluster.devices_per_node)


def narrow_degrees(table: Table, model: ModelSpec, run: Run, domain: int, weight: Ints) -> None:
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


def narrow_folds(
    table: Table, model: ModelSpec, pairs: Sequence[tuple[int, int]], domain: int, weight: Ints
) -> tuple[tuple[int, int], ...]:
    """Expert degrees: divisibility, the domain, folding. Returns the (ep, etp) that some base may take."""
    specs = expert_specs(model)
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
    lost = int((weight * (len(legal) - foldings(table, legal))).sum())
    if lost:
        table.rejected[UNFOLDED] += lost
    return tuple(legal)


def foldings(table: Table, pairs: Sequence[tuple[int, int]]) -> Ints:
    """How many of the (ep, etp) fold into each row's tp * cp * dp."""
    ranks = table["tp"] * table["cp"] * table["dp"]
    count = np.zeros(len(ranks), np.int64)
    for ep, etp in pairs:
        count += ranks % (ep * etp) == 0
    return count


Allowed = Mapping[Any, tuple[Mask, Mask, str]]
"""By value: rows where it is counted, rows where it is legal, the reason where it is not."""


def option_masks(
    table: Table, options: Mapping[str, Allowed], left: Ints
) -> dict[str, dict[Any, Mask]]:
    """For each option its values and the rows that may take them; refusals are counted on the way, but for
    recomputation, which refuses none.
    """
    for name in OPTIONS:
        if name != "recompute":
            left = _count_refused(table.rejected, options[name], left)
    return {name: {value: once & ok for value, (once, ok, _) in options[name].items()} for name in OPTIONS}


def allowed_splits(table: Table, model: ModelSpec, run: Run, choices: Choices) -> dict[str, Allowed]:
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


def allowed_options(
    table: Table, run: Run, choices: Choices, menu: Menu, limits: Limits
) -> dict[str, Allowed]:
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


def allowed_layer_splits(table: Table, layers: int, choices: Choices) -> Allowed:
    free = splittable(table["pp"], table["vp"], layers)
    return {split: (_once(split, choices.split, free), np.ones(len(free), np.bool_), "") for split in choices.split}


def _once(value: Any, values: Sequence[Any], matters: Mask) -> Mask:
    """Where an option changes nothing, its first value stands for all."""
    return matters if value != values[0] else np.ones(len(matters), np.bool_)


def _count_refused(rejected: Counter[str], allowed: Allowed, left: Ints) -> Ints:
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
