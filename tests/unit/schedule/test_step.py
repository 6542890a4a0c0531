"""A step's table: the pipeline's tasks, then what ends the step on each rank's streams."""

from __future__ import annotations

import numpy as np
import pytest

import simulator as sim
from simulator.parallel.step_end import StepEnd
from simulator.schedule.engine import Durations, simulate
from simulator.schedule.make import make_order
from simulator.schedule.step import Step

LINE = simulate(make_order("1f1b", pp=2, micro_batches=4), Durations(forward_s=1.0, input_grad_s=2.0))
"""Rank 0 is busy until 15 s; rank 1, whose first forward waits 1 s, until 13 s."""
NOTHING = StepEnd(reduce_s=0.0, optimizer_s=0.0, gather_s=0.0, reduce_hidden_s=0.0, gather_hidden_s=0.0)
Row = tuple[int, str, str, float, float]


def added(step: Step) -> list[Row]:
    """The rows beside the pipeline's own."""
    table = step.columns()
    assert len({len(column) for column in table.values()}) == 1
    rows = zip(*(table[name].tolist() for name in ("rank", "stream", "kind", "start_s", "end_s")), strict=True)
    return list(rows)[len(step.timeline.columns()["rank"]) :]


def test_nothing_around_it_is_the_pipeline_alone() -> None:
    step = Step(timeline=LINE, ends=(NOTHING, NOTHING))
    assert added(step) == []
    for name, column in LINE.columns().items():
        assert step.columns()[name].tolist() == column.tolist()
        assert step.columns()[name].dtype.kind == column.dtype.kind


def test_reduction_optimizer_and_gather_follow_each_other() -> None:
    end = StepEnd(reduce_s=1.0, optimizer_s=0.25, gather_s=2.0, reduce_hidden_s=0.0, gather_hidden_s=0.0)
    step = Step(timeline=LINE, ends=(end, end))
    assert added(step) == [
        row
        for rank, done in ((0, 15.0), (1, 13.0))
        for row in (
            (rank, "gradients", "reduce", done, done + 1.0),
            (rank, "compute", "optimizer", done + 1.0, done + 1.25),
            (rank, "gradients", "gather", done + 1.25, done + 3.25),
        )
    ]
    table = step.columns()
    assert table["micro_batch"][-6:].tolist() == table["stage"][-6:].tolist() == [-1] * 6


def test_what_hides_lies_beside_the_last_backward_and_the_first_forward() -> None:
    end = StepEnd(reduce_s=0.5, optimizer_s=0.0, gather_s=0.25, reduce_hidden_s=1.5, gather_hidden_s=0.75)
    rows = added(Step(timeline=LINE, ends=(end, NOTHING)))
    assert rows == [
        (0, "gradients", "gather", 0.0, 0.75),
        (0, "gradients", "reduce", 13.5, 15.5),
        (0, "gradients", "gather", 15.5, 15.75),
    ]


def test_a_reduction_is_drawn_bucket_by_bucket() -> None:
    end = StepEnd(reduce_s=0.5, optimizer_s=0.0, gather_s=0.0, reduce_hidden_s=1.5, gather_hidden_s=0.0, reduce_count=4)
    rows = added(Step(timeline=LINE, ends=(end, NOTHING)))
    assert rows == [(0, "gradients", "reduce", 13.5 + 0.5 * i, 14.0 + 0.5 * i) for i in range(4)]


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "interleaved", "dualpipe", "chimera"])
@pytest.mark.parametrize("zero", [0, 1, 3])
def test_an_estimates_table_ends_when_its_step_does(schedule: str, zero: int) -> None:
    """The last row of all ends at the step time; a rank's gradient rows are its exposed and hidden seconds."""
    strategy = sim.Strategy(tp=2, pp=4, dp=4, schedule=schedule, vp=2 if schedule == "interleaved" else 1, zero=zero)
    cluster = sim.load_cluster("dgx-a100", nodes=4)
    answer = sim.estimate(sim.load_model("gpt3-1.3b"), cluster, sim.Run(global_batch=64), strategy)
    table = answer.step().columns()
    assert table["end_s"].max() == pytest.approx(answer.step_time_s, rel=1e-12)
    spent = table["end_s"] - table["start_s"]
    for rank, end in enumerate(answer.step().ends):
        mine = (table["rank"] == rank) & (table["stream"] == "gradients")
        assert spent[mine].sum() == pytest.approx(float(end.reduce_s + end.gather_s + end.hidden_s), rel=1e-9)
        updates = spent[(table["rank"] == rank) & (table["kind"] == "optimizer")]
        assert updates.tolist() == pytest.approx([float(end.optimizer_s)])
        start, stop = np.sort(table["start_s"][mine]), np.sort(table["end_s"][mine])
        assert (start[1:] >= stop[:-1] - 1e-9).all()


@pytest.mark.parametrize(("buckets", "drawn"), [(0, 1), (0.4, 1), (2.6, 3), (256, 256), (300, 256)])
def test_as_many_buckets_as_there_are_up_to_256(buckets: float, drawn: int) -> None:
    """The whole reduction, from 14 s on (1 s hides) to 17 s, in equal parts that meet."""
    end = StepEnd(
        reduce_s=2.0, optimizer_s=0.0, gather_s=0.0, reduce_hidden_s=1.0, gather_hidden_s=0.0, reduce_count=buckets
    )
    rows = added(Step(timeline=LINE, ends=(end, NOTHING)))
    assert len(rows) == drawn
    assert (rows[0][3], rows[-1][4]) == (14.0, 17.0)
    assert [row[4] - row[3] for row in rows] == pytest.approx([3.0 / drawn] * drawn)


def test_rows_of_no_length_are_not_drawn_and_columns_keep_their_types() -> None:
    end = StepEnd(reduce_s=0.0, optimizer_s=0.5, gather_s=0.0, reduce_hidden_s=0.0, gather_hidden_s=0.0)
    table, plain = Step(timeline=LINE, ends=(NOTHING, end)).columns(), LINE.columns()
    assert [table[name][-1] for name in table] == [1, "compute", -1, -1, "optimizer", 13.0, 13.5]
    for name in ("rank", "stage", "micro_batch", "start_s", "end_s"):
        assert table[name].dtype == plain[name].dtype


def test_a_step_has_an_end_for_each_rank() -> None:
    with pytest.raises(ValueError, match="longer"):
        Step(timeline=LINE, ends=(NOTHING,)).columns()
