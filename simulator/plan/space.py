"""The legal space as columns: counted by arithmetic, then narrowed rule by rule, every refusal counted by its reason.

A row of the columns is one set of degrees. Options (schedule, ZeRO stage, recomputation, ...) multiply a row; which
of them a row may take is a mask per value. Values that change nothing are counted once: sequence parallelism without
tp, the way context is exchanged without cp, schedules and placements without a pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from simulator.errors import InputError
from simulator.numbers import divisors
from simulator.plan.choices import (
    choices_of,
    fittable,
    multiplicities,
    partial_layers,
    stage_choices_of,
    virtual_choices,
)
from simulator.plan.limits import DEGREES, OPTIONS, Limits, check_limits
from simulator.plan.menus import menu_of
from simulator.plan.rules import (
    allowed_layer_splits,
    allowed_options,
    allowed_splits,
    foldings,
    narrow_degrees,
    narrow_folds,
    option_masks,
    scale_up_devices,
)
from simulator.plan.table import Columns, Ints, Mask, Table
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy


@dataclass(frozen=True, eq=False, kw_only=True)
class Space:
    """Legal strategies: bases (tp, pp, cp, dp, micro-batch, vp) with the ways to fold experts into each, and for each
    option the values with the bases that may take them. Row r is base r % bases under fold r // bases.
    """

    base: Columns
    folds: tuple[tuple[int, int], ...]
    """(ep, etp)."""
    options: Mapping[str, Mapping[Any, Mask]]
    partial: Ints
    """For each base the numbers of layers that full recomputation may stop at: 1 up to this many."""
    fitted: Mask
    """For each base whether stages may recompute the fewest layers of each that fit."""
    layers: int
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
        for name, allowed in self.options.items():
            count *= np.sum(list(allowed.values()), axis=0) + (self.partial + self.fitted if name == "recompute" else 0)
        return count

    def largest_stage(self, base: Ints) -> Ints:
        """Layers of the largest stage of some bases under the even split."""
        return cast("Ints", -(-self.layers // (self.base["pp"][base] * self.base["vp"][base])))

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
        fields.pop("split")
        if degrees["pp"] == 1:
            fields["schedule"] = "1f1b"
        if fields["schedule"] not in ("interleaved", "zb-h1"):
            fields["group_size"] = 0
        if fields["recompute"] != "modules":
            fields["recompute_modules"] = ()
        if fields["recompute"] != "full":
            fields["recompute_layers"] = 0
        return Strategy(**fields)

    def strategies(self) -> Iterator[tuple[Strategy, str, str]]:
        """Every legal strategy, one by one, with its split and whether its stages recompute as many layers ("alike") or
        the fewest that fit ("fitted"). Numbers of each stage are left to who works them out (`plan/balance.py`,
        `plan/fitted.py`).
        """
        rows = self.rows()
        for chosen, mask in self.combinations(OPTIONS):
            for row in rows[mask[rows % self.bases]].tolist():
                yield self.strategy(row, chosen), chosen["split"], "alike"
                if chosen["recompute"] == "full":
                    for layers in range(1, int(self.partial[row % self.bases]) + 1):
                        yield self.strategy(row, {**chosen, "recompute_layers": layers}), chosen["split"], "alike"
                    if self.fitted[row % self.bases]:
                        yield self.strategy(row, chosen), chosen["split"], "fitted"

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


def build_space(model: ModelSpec, cluster: Cluster, run: Run, framework: Framework, limits: Limits) -> Space:
    """The legal strategies for all devices of a cluster.

    Raises InputError for limits that make no sense. A space may be empty.
    """
    check_limits(limits)
    menu = menu_of(framework)
    table = _degrees(cluster, limits)
    choices = choices_of(model, cluster, run, menu, limits, sorted(set(table["pp"].tolist())))
    virtual = virtual_choices(table["pp"], model.layers, choices)
    pairs = tuple((ep, etp) for ep in choices.ep for etp in choices.etp)
    batches, folds = len(choices.micro_batch), len(pairs)
    weight = multiplicities(table, choices) * virtual * (batches * folds)
    considered = int(weight.sum())
    domain = 0 if limits.asked("tp") else scale_up_devices(cluster)
    narrow_degrees(table, model, run, domain, weight)
    table.cross("micro_batch", choices.micro_batch)
    weight = multiplicities(table, choices) * virtual_choices(table["pp"], model.layers, choices)
    table.keep(run.global_batch % (table["dp"] * table["micro_batch"]) == 0, weight * folds,
               "the global batch is not a multiple of dp * micro-batch")  # fmt: skip
    table.cross_by("vp", "pp", choices.vp)
    stage_choices = stage_choices_of(table["pp"], table["vp"], model.layers, choices)
    weight = multiplicities(table, choices) * folds * stage_choices
    table.keep(table["pp"] * table["vp"] <= model.layers, weight, "more pipeline stages than layers")
    stage_choices = stage_choices_of(table["pp"], table["vp"], model.layers, choices)
    weight = multiplicities(table, choices) * stage_choices
    legal_pairs = narrow_folds(table, model, pairs, 0 if limits.asked("etp") else scale_up_devices(cluster), weight)
    options = {**allowed_splits(table, model, run, choices), **allowed_options(table, run, choices, menu, limits)}
    options["split"] = allowed_layer_splits(table, model.layers, choices)
    partial = partial_layers(table["pp"], table["vp"], model.layers, choices)
    masks = option_masks(table, options, weight * foldings(table, legal_pairs))
    return Space(
        base=table.columns, folds=legal_pairs, options=masks, partial=partial,
        fitted=fittable(table["pp"], choices), layers=model.layers,
        carried=limits.carried(), considered=considered,
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
