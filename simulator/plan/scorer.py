"""Memory and bound of every strategy of a block, for one ZeRO stage and schedule at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.plan.block import Block
from simulator.plan.ladder import FITTED, Ladder
from simulator.plan.uneven import Uneven

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Entry:
    """Some rows of a block under equal options, those that do not fit among them (not `kept`)."""

    chosen: Mapping[str, Any]
    rows: Ints
    kept: Mask
    layers: Ints
    bound_s: Floats
    memory_bytes: Floats
    refused: Ints


    def among(self, some: Mask | Ints) -> Entry:
        """The entry's rows among some."""
        columns = {name: getattr(self, name)[some] for name in _COLUMNS}
        return Entry(chosen=self.chosen, **columns)


_COLUMNS = ("rows", "kept", "layers", "bound_s", "memory_bytes", "refused")
Fits = Callable[[Ints], Mask]


@dataclass(frozen=True, eq=False, slots=True)
class Steps:
    """Numbers of layers of rows among which `pick` finds one that fits (-1: none does)."""

    ladder: Ladder
    some: Mask
    """Rows that have any."""
    pick: Callable[[Fits], Ints]
    slowest: bool = False
    """The most layers come first: those with fewer, and faster, follow from there."""
    fits: bool = False
    """Where some layers must be recomputed, the fewest of each stage are looked at too."""

    @property
    def least(self) -> int:
        """The smallest number that is looked at."""
        return 0 if self.ladder.none else 1

    def refused(self, layers: Ints) -> Ints:
        """How many numbers do not fit when `layers` is what was picked."""
        fewer = np.zeros_like(layers) if self.slowest else self.ladder.below(layers)
        return np.where(layers >= 0, fewer, self.ladder.members())

    def of(self, rows: Ints) -> Steps:
        """Those of some rows."""
        whole = self.ladder
        ladder = Ladder(none=whole.none, full=whole.full, partial=whole.partial[rows], layers=whole.layers[rows])
        if not self.slowest:
            return Steps(ladder, self.some[rows], ladder.fewest, fits=self.fits)
        most = np.maximum(ladder.partial, 1)
        return Steps(ladder, self.some[rows], lambda fits: np.where(fits(most), most, -1), slowest=True)


class Scorer:
    """Entries of one block. With `fewest`, of the numbers of layers to recompute only the least that fits is kept."""

    def __init__(self, block: Block, *, limit_bytes: float, ceiling_s: Callable[[], float], fewest: bool) -> None:
        self.block, self.limit_bytes, self.ceiling_s, self.fewest = block, limit_bytes, ceiling_s, fewest
        space = block.layout.space
        self.base = block.layout.rows[block.part] % space.bases
        kinds = list(space.options["recompute"])
        named = space.carried.get("recompute_layers", 0)
        steps = () if named else tuple(kind for kind in ("none", "full") if kind in kinds)
        self.others = tuple(kind for kind in kinds if kind not in steps)
        self.named, self.stepped = named, steps
        self.ladder = Ladder(none="none" in steps, full="full" in steps, partial=space.partial[self.base],
                             layers=space.largest_stage(self.base))  # fmt: skip
        self.fitted = space.fitted[self.base]
        single = (block.columns["vp"] == 1) & (block.mapping == "looped")
        self.beaten = self.fitted & single & fewest
        """Rows of which one number for all stages is no faster than the fewest of each (`plan/fitted.py`)."""
        self.splits = {split: mask[self.base] for split, mask in space.options["split"].items()}

    def entries(self, zero: int, schedule: str, taken: Mask) -> Iterator[Entry]:
        """All entries of the rows `taken`."""
        chosen = {"zero": zero, "schedule": schedule}
        for split, mask in self.splits.items():
            rows = np.flatnonzero(taken & mask)
            if not rows.size:
                continue
            rule = self._even if split == "even" else self._balanced
            for kind in self.others:
                yield from rule({**chosen, "split": split, "recompute": kind}, rows, None)
            for some in self._steps():
                yield from rule({**chosen, "split": split, "recompute": "full"}, rows, some)

    def _steps(self) -> list[Steps]:
        """Which numbers of layers are looked at together: all, of which the fewest that fit are kept; or each end, and
        what is between, from the most on.
        """
        whole = self.ladder
        if self.fewest:
            every = Steps(whole, whole.partial + 1 > 0, whole.fewest, fits=whole.none and whole.full)
            return [every] if whole.none or whole.full else []
        zero = np.zeros_like(whole.partial)
        some = np.ones_like(whole.partial, np.bool_)
        ends = [Ladder(none=none, full=not none, partial=zero, layers=whole.layers)
                for none, offered in ((True, whole.none), (False, whole.full)) if offered]  # fmt: skip
        result = [Steps(end, some, end.fewest, fits=end.full and whole.none) for end in ends]
        if whole.partial.any():
            between = Ladder(none=False, full=False, partial=whole.partial, layers=whole.layers)
            most = np.maximum(whole.partial, 1)
            result.append(Steps(between, whole.partial > 0, lambda fits: np.where(fits(most), most, -1), slowest=True))
        return result

    def _even(self, chosen: Mapping[str, Any], rows: Ints, steps: Steps | None) -> Iterator[Entry]:
        block, zero, schedule = self.block, chosen["zero"], chosen["schedule"]
        if steps is None:
            memory = block.memory_bytes(chosen["recompute"], zero, schedule)
            bound = block.coarse_s(chosen["recompute"], zero, schedule)
            fits = memory <= self.limit_bytes
            whole = Entry(chosen=chosen, rows=np.arange(len(fits)), kept=fits, layers=np.full(len(fits), -1),
                          bound_s=bound, memory_bytes=memory, refused=(~fits).astype(np.int64))  # fmt: skip
            yield whole.among(rows)
            return

        def memory_bytes(layers: Ints) -> Floats:
            return _stepped(layers, lambda: block.memory_bytes("none", zero, schedule),
                            lambda some: block.memory_bytes("full", zero, schedule, some))  # fmt: skip

        layers = steps.pick(lambda some: memory_bytes(some) <= self.limit_bytes)
        fits = layers >= 0
        least = np.where(fits, layers, steps.least) if not steps.slowest else np.ones_like(layers)
        bound = _stepped(least, lambda: block.coarse_s("none", zero, schedule),
                         lambda some: block.coarse_s("full", zero, schedule, some))  # fmt: skip
        memory = memory_bytes(np.where(fits, layers, steps.least))
        again = self.fitted & (layers > 0) & steps.fits
        whole = Entry(chosen=chosen, rows=np.arange(len(fits)), kept=fits & ~(again & self.beaten), layers=layers,
                      bound_s=bound, memory_bytes=memory, refused=steps.refused(layers))  # fmt: skip
        yield whole.among(rows[steps.some[rows]])
        offered = rows[(self.fitted & steps.fits & (layers != 0))[rows]]
        if offered.size:
            fewest_s = block.fitted_s(zero, schedule, self.limit_bytes)
            least_bytes = block.memory_bytes("full", zero, schedule)
            entry = Entry(chosen=chosen, rows=whole.rows, kept=fits, layers=np.full(len(fits), FITTED),
                          bound_s=fewest_s, memory_bytes=least_bytes, refused=(~fits).astype(np.int64))  # fmt: skip
            yield entry.among(offered)

    def _balanced(self, chosen: Mapping[str, Any], rows: Ints, steps: Steps | None) -> Iterator[Entry]:
        """By floors that hold for any split; rows whose work takes too long are not asked whether they fit."""
        block, zero, schedule = self.block, chosen["zero"], chosen["schedule"]
        kinds = [chosen["recompute"]] if steps is None else self.stepped
        named = np.full(len(rows), self.named) if steps is None and self.named else None
        floors = {kind: Uneven(block, rows, kind, zero, schedule) for kind in kinds}
        first = np.full(len(rows), 0 if steps is None else steps.least)

        def floor_s(some: Mapping[str, Uneven], layers: Ints) -> Floats:
            if steps is None:
                return some[kinds[0]].work_floor_s(named)
            return _stepped(layers, lambda: some["none"].work_floor_s(None),
                            lambda again: np.asarray(some["full"].work_floor_s(again)))  # fmt: skip

        quick = floor_s(floors, first) < self.ceiling_s()
        if not quick.any():
            return
        if not quick.all():
            rows = rows[quick]
            floors = {kind: Uneven(block, rows, kind, zero, schedule) for kind in kinds}
            named = named[quick] if named is not None else None
        if steps is None:
            memory = floors[kinds[0]].memory_floor_bytes(named)
            layers, fits = np.full(len(rows), -1), memory <= self.limit_bytes
            bound, refused = floor_s(floors, layers), (~fits).astype(np.int64)
            yield Entry(chosen=chosen, rows=rows, kept=fits, layers=layers, bound_s=bound, memory_bytes=memory,
                        refused=refused)  # fmt: skip
            return

        def memory_bytes(layers: Ints) -> Floats:
            return _stepped(layers, lambda: floors["none"].memory_floor_bytes(None),
                            lambda again: np.asarray(floors["full"].memory_floor_bytes(again)))  # fmt: skip

        mine = steps.of(rows)
        layers = mine.pick(lambda some: memory_bytes(some) <= self.limit_bytes)
        fits = layers >= 0
        start = np.where(fits, layers, mine.least)
        bound = floor_s(floors, np.ones_like(start) if mine.slowest else start)
        memory = memory_bytes(start)
        yield Entry(chosen=chosen, rows=rows, kept=fits & mine.some, layers=layers, bound_s=bound, memory_bytes=memory,
                    refused=mine.refused(layers) * mine.some)  # fmt: skip
        if mine.fits and (offered := self.fitted[rows]).any():
            least_bytes = floors["full"].memory_floor_bytes(None)
            entry = Entry(chosen=chosen, rows=rows, kept=fits, layers=np.full(len(rows), FITTED),
                          bound_s=floors["full"].fitted_floor_s(self.limit_bytes), memory_bytes=least_bytes,
                          refused=(~fits).astype(np.int64))  # fmt: skip
            yield entry.among(offered)


def _stepped(layers: Ints, none: Callable[[], Floats], full: Callable[[Ints], Floats]) -> Floats:
    """By row what holds without recomputation where `layers` is 0, else with so many."""
    without = layers == 0
    if without.all():
        return none()
    found = full(np.maximum(layers, 1))
    return np.where(without, none(), found) if without.any() else found
