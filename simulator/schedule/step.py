"""A whole optimizer step on a timeline: the pipeline, and what ends the step on every rank.

How long the end takes is `parallel/step_end.py`'s; this lays it out on the ranks' streams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from simulator.parallel.step_end import StepEnd
from simulator.schedule.timeline import Columns, Timeline

MOST_BUCKETS = 256
"""Drawn for a rank; more are drawn as so many."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """One step as it repeats: the pipeline's timeline, and by rank what follows its last backward."""

    timeline: Timeline
    ends: Sequence[StepEnd]

    def columns(self) -> Columns:
        """The step as a table: the timeline's columns, and what ends the step.

        Adds stream "gradients" (kinds "reduce" and "gather") and, on "compute", "optimizer"; they belong to no stage
        and no micro-batch (-1). What of a reduction hides beside the last backward is drawn right before the rank's
        last task ends, and all of it as equal buckets; what of a gather hides beside the next step's first forward is
        drawn beside this one's, since steps repeat.
        """
        rows = [row for row in self._rows() if row[-1] > row[-2]]
        table = self.timeline.columns()
        for place, (name, column) in enumerate(table.items()):
            added = np.array([row[place] for row in rows], column.dtype if name in _NUMBERS else None)
            table[name] = np.concatenate([column, added])
        return table

    def _rows(self) -> Iterator[tuple[int, str, int, int, str, float, float]]:
        """In the sequence of the timeline's columns."""
        nowhere = (-1, -1)
        opens, closes = self.timeline.rank_start_s.tolist(), self.timeline.rank_end_s.tolist()
        for rank, (end, opened_s, done_s) in enumerate(zip(self.ends, opens, closes, strict=True)):
            reduced_s = done_s + float(end.reduce_s)
            updated_s = reduced_s + float(end.optimizer_s)
            yield rank, "gradients", *nowhere, "gather", opened_s, opened_s + float(end.gather_hidden_s)
            edges = np.linspace(done_s - float(end.reduce_hidden_s), reduced_s, _buckets(end) + 1).tolist()
            for begins_s, ends_s in pairwise(edges):
                yield rank, "gradients", *nowhere, "reduce", begins_s, ends_s
            yield rank, "compute", *nowhere, "optimizer", reduced_s, updated_s
            yield rank, "gradients", *nowhere, "gather", updated_s, updated_s + float(end.gather_s)


def _buckets(end: StepEnd) -> int:
    return max(1, min(round(float(end.reduce_count)), MOST_BUCKETS))


_NUMBERS = ("rank", "stage", "micro_batch", "start_s", "end_s")
