"""What no split of the layers over stages can beat, whichever it is: for rows with one stage per rank and their
balanced split, before it is worked out.

The last rank has the head and a layer. Some rank has at least the mean of the work, and at least the mean number of
layers of each kind, rounded up. Where every backward waits for the next rank's, ranks have to finish in turn as well.
Rank r keeps f_r micro-batches of each of its n_r layers beside their states s: n_r (s + f_r a) bytes, and all n_r
together are the model's layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.parallel.lower import Stage
from simulator.parallel.memory import overhead_bytes
from simulator.parallel.states import held_parameters, state_bytes
from simulator.plan.block import Block
from simulator.plan.bounds import PAIRED
from simulator.result import COMMUNICATION
from simulator.schedule.bounds import BIDIRECTIONAL, FUSED
from simulator.schedule.closed import peak_in_flight

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class _Kind:
    """Layers of one kind: how many the model has, and by row what one of them costs."""

    count: int
    work_s: Floats
    back_s: Floats
    again_s: Floats
    plain_bytes: Floats
    saved_bytes: Floats
    late_bytes: Floats
    beside_bytes: Floats
    state_bytes: Floats


class Uneven:
    """Floors of some rows of a block under any split, for a recomputation and a ZeRO stage."""

    def __init__(self, block: Block, rows: Ints, recompute: str, zero: int, schedule: str) -> None:
        self.block, self.rows, self.schedule = block, rows, schedule
        self.place = block.place[rows]
        self.pp, self.micro_batches = block.columns["pp"][rows], block.micro_batches[rows]
        self.fused = schedule in FUSED
        self.copies = 2 if schedule in BIDIRECTIONAL else 1
        layout = block.layout
        counts: dict[str, int] = {}
        for segment, is_layer in layout.pieces.units:
            if is_layer:
                counts[segment.name] = counts.get(segment.name, 0) + 1
        times = layout.times[recompute]
        paired = schedule in PAIRED
        self.kinds = [
            _Kind(count=count, state_bytes=self._state_bytes(name, zero),
                  work_s=self._rows(_work_s(times[name], ("forward", "input_grad", "weight_grad"), paired)),
                  back_s=self._rows(_work_s(times[name], ("input_grad", "weight_grad"), paired)),
                  again_s=self._rows(_work_s(times[name], ("recompute",), paired)),
                  **self._sizes(layout.memories[recompute][name]))
            for name, count in counts.items()
        ]  # fmt: skip
        names = [segment.name for segment, is_layer in layout.pieces.units if is_layer]
        ends = (names[-1], *(segment.name for segment in layout.pieces.closing))
        self.last_s = sum((self._rows(_work_s(times[name], ("forward", "input_grad", "weight_grad"), paired))
                           for name in ends), start=np.zeros(len(rows)))  # fmt: skip
        self.last_again_s = self._rows(_work_s(times[names[-1]], ("recompute",), paired))
        self.work_s = self._rows(layout.pass_s(recompute, talk=not paired, again=False))
        self.again_s = self._rows(layout.pass_s(recompute, talk=not paired, again=True)) - self.work_s

    def _rows(self, value: Any) -> Floats:
        array = np.asarray(value, np.float64)
        return array[self.place] if array.ndim else np.full(len(self.place), float(array))

    def _sizes(self, memory: Any) -> dict[str, Floats]:
        names = {"plain_bytes": "plain_bytes", "saved_bytes": "saved_bytes", "late_bytes": "late_bytes",
                 "beside_bytes": "largest_bytes"}  # fmt: skip
        return {ours: self._rows(getattr(memory, name)) for ours, name in names.items()}

    def _state_bytes(self, name: str, zero: int) -> Floats:
        """What one layer's parameters take all the time [B]."""
        block = self.block
        held = held_parameters((Stage(index=0, parts=((block.segments[name], 1),), boundary_bytes=0.0),))
        held = replace(held, largest_segment=0.0, largest_layer=0.0)
        setting = block.setting("none", zero)
        whole = sum(state_bytes(held, setting.run, setting.strategy, setting.framework).values())
        return np.broadcast_to(np.asarray(whole, np.float64), (len(block.place),))[self.rows]

    def work_floor_s(self, layers: Ints | None) -> Floats:
        """Seconds that no split can beat; `layers` of each stage are recomputed, all where none are given [s]."""
        least = np.min([kind.again_s for kind in self.kinds], axis=0)
        again = self.again_s
        if layers is not None:
            # The largest stage recomputes so many, every other at least one.
            again = np.minimum((layers + self.pp - 1) * least * (layers > 0), again)
        pass_s, times = self.work_s + again, self.micro_batches / self.copies
        floor = self.micro_batches * pass_s / self.pp
        for kind in self.kinds:
            held = np.ceil(self.copies * kind.count / self.pp)
            run = held * kind.again_s if layers is None else np.minimum(layers, held) * least
            floor = np.maximum(floor, times * (held * kind.work_s + run))
            if self.fused:
                floor = np.maximum(floor, self._in_turn_s(kind, pass_s, layers, least))
        last_s = self.last_s + (self.last_again_s if layers is None else (layers > 0) * self.last_again_s)
        # The last stage has at least one layer besides the head; what comes before it goes there and back.
        floor = np.maximum(floor, times * last_s + (pass_s - last_s if self.fused else 0.0))
        if self.fused:
            left = -np.expm1(self.pp * np.log1p(-1.0 / np.maximum(self.micro_batches, 2)))
            floor = np.maximum(floor, np.where(self.micro_batches > 1, pass_s / left, pass_s))
        return np.asarray(floor)

    def _in_turn_s(self, kind: _Kind, pass_s: Floats, layers: Ints | None, least: Floats) -> Floats:
        """Rank r with forward f and backward b per micro-batch may be at most `lead` forwards ahead. So its last
        forward comes after all others and all but `lead` of its backwards, and then goes down the pipe and back:
        pass + (m - 1) (f + b) - (lead - 1) b.

        Of layers that fill every stage but for a few, as many stages as are over have one more than the others: one of
        them stands at that place or later. Or some stage has two more.
        """
        held = np.ceil(kind.count / self.pp)
        over = kind.count - self.pp * (held - 1)
        found = []
        for number, rank in ((held, over - 1), (held + 1, np.zeros_like(over))):
            run = number * kind.again_s if layers is None else np.minimum(layers, number) * least
            lead = peak_in_flight(self.schedule, pp=self.pp, micro_batches=self.micro_batches, rank=rank, vp=1)
            back = number * kind.back_s + run
            work = number * kind.work_s + run
            found.append(pass_s + (self.micro_batches - 1) * work - (lead - 1) * back)
        return np.asarray(np.minimum(*found))

    def fitted_floor_s(self, limit_bytes: float) -> Floats:
        """Seconds that no split can beat where each stage recomputes the fewest layers with which it fits [s].

        Rank r holds M / (s + f_r a) layers without recomputing any; each layer more takes (s + f_r a) / (f_r c) that
        are, c being what one spares: least where f_r is largest, on the first rank.
        """
        floor = self.work_floor_s(np.zeros(len(self.pp), np.int64))
        if not self.fused:
            return floor
        software = self.block.framework
        room = (limit_bytes - software.context_bytes) * (1.0 - software.fragmentation_fraction)
        room = room - np.min([kind.beside_bytes for kind in self.kinds], axis=0)
        rank = np.arange(int(self.pp.max(initial=1)))[:, None]
        most = peak_in_flight(self.schedule, pp=self.pp, micro_batches=self.micro_batches, rank=rank, vp=1)
        held = np.where(rank < self.pp, most, 0).astype(np.float64)
        for kind in self.kinds:
            whole = kind.state_bytes + held * kind.plain_bytes
            free = np.where(rank < self.pp, np.maximum(room, 0.0) / np.maximum(whole, 1e-9), 0.0).sum(axis=0)
            spared = held[0] * (kind.plain_bytes - kind.saved_bytes)
            again_s = np.maximum(kind.count - free, 0.0) * whole[0] / np.maximum(spared, 1e-9) * kind.again_s
            floor = np.maximum(floor, self.micro_batches * (self.work_s + again_s) / self.pp)
        return np.asarray(floor)

    def memory_floor_bytes(self, layers: Ints | None) -> Floats:
        """Bytes that the fullest rank holds at least under any split [B]."""
        kinds = self.kinds
        # Of partly recomputed stages the last layer may be one that is not.
        whole = -(-sum(kind.count for kind in kinds) // self.pp)
        again = self.fused & np.asarray(True if layers is None else layers >= whole)
        working = np.min([kind.beside_bytes + np.where(again, kind.plain_bytes - kind.saved_bytes, 0.0)
                          for kind in kinds], axis=0)  # fmt: skip
        rank = np.arange(int(self.pp.max(initial=1)))[:, None]
        there = (rank < self.pp).astype(np.float64)
        held = np.zeros_like(there)
        if self.copies == 1:
            most = peak_in_flight(self.schedule, pp=self.pp, micro_batches=self.micro_batches, rank=rank, vp=1)
            held = np.where(rank < self.pp, most, 0).astype(np.float64)
        floor = np.zeros(len(self.pp))
        for kind in kinds:
            count = self.copies * kind.count
            least = kind.saved_bytes if self.fused else np.minimum(kind.saved_bytes, kind.late_bytes)
            floor = np.maximum(floor, _shared(count, kind.state_bytes, held, there, least, 0.0))
            if layers is not None and self.fused:
                spared = (kind.plain_bytes - kind.saved_bytes) * layers
                floor = np.maximum(floor, _shared(count, kind.state_bytes, held, there, kind.plain_bytes, spared))
        allocated = floor + working
        return np.asarray(allocated + sum(overhead_bytes(allocated, self.block.framework).values()))


def _shared(count: int, state: Floats, held: Floats, there: Floats, each: Floats, spared: Any) -> Floats:
    """Bytes M of layers on the fullest rank when every rank is as full: the sum over r of (M + f_r spared) /
    (s + f_r a) is the number of layers.
    """
    share = there / np.maximum(state + held * each, 1e-9)
    found: Floats = (count - (held * share).sum(axis=0) * spared) / share.sum(axis=0)
    return np.maximum(found, 0.0)


def _work_s(time: Any, phases: tuple[str, ...], paired: bool) -> Any:
    return sum(
        seconds for phase in phases for name, seconds in getattr(time, phase).parts.items()
        if not (paired and name in COMMUNICATION)
    )  # fmt: skip
