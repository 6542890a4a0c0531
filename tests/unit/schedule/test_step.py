"""What stands around the pipeline: gradient buckets, gathers, clipping, the optimizer, slowdown."""

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.schedule.engine import Durations
from simulator.schedule.make import make_order
from simulator.schedule.step import StepEnd, run_step

ORDER = make_order("1f1b", pp=2, micro_batches=4)
DURATIONS = Durations(forward_s=1.0, input_grad_s=2.0)
PIPELINE = (4 + 1) * 3.0


def step(**options):
    return run_step(ORDER, DURATIONS, end=StepEnd(**options))


def parts(found):
    return (
        found.busy_s
        + found.idle_s
        + found.exposed_reduce_s
        + found.wait_s
        + found.clip_s
        + found.optimizer_s
        + found.exposed_gather_s
        + found.rest_s
    )


def test_nothing_around_it_is_the_pipeline_alone():
    assert step().step_time_s == PIPELINE


def test_without_overlap_everything_is_added():
    found = step(reduce_s=1.0, reduce_buckets=5, clip_s=0.5, optimizer_s=0.25, gather_s=2.0)
    assert found.step_time_s == pytest.approx(PIPELINE + 1.0 + 0.5 + 0.25 + 2.0)
    assert found.hidden_reduce_s.tolist() == pytest.approx([0.0, 0.0])


def test_buckets_hide_behind_the_last_backward_but_for_the_last_one():
    # Four buckets of 0.25 s come up every 0.5 s of the last backward: only the last is exposed.
    found = step(reduce_s=1.0, reduce_buckets=4, overlap_reduce=True)
    assert found.step_time_s == pytest.approx(PIPELINE + 0.25)
    assert found.hidden_reduce_s.tolist() == pytest.approx([0.75, 0.75])


def test_long_buckets_queue():
    # Ready at 0.5, 1, 1.5, 2 s of the last backward, 1.5 s each: done 0.5 + 6 s after its start.
    found = step(reduce_s=6.0, reduce_buckets=4, overlap_reduce=True)
    assert found.step_time_s == pytest.approx(PIPELINE - 2.0 + 0.5 + 6.0)


def test_reducing_after_every_micro_batch_sends_more_and_hides_it():
    found = step(reduce_s=1.0, overlap_reduce=True, reduce_each=True)
    assert found.step_time_s == pytest.approx(PIPELINE + 1.0)
    assert found.hidden_reduce_s.tolist() == pytest.approx([3.0, 3.0])


def test_gathers_hide_behind_the_first_forward_but_for_the_first_bucket():
    found = step(gather_s=0.5, gather_buckets=2, overlap_gather=True)
    assert found.step_time_s == pytest.approx(PIPELINE + 0.25)
    assert found.exposed_gather_s.tolist() == [0.0, 0.0]


def test_gathers_longer_than_the_forward_stall_it():
    # Buckets at 1 and 2 s; the second half of the forward needs the second: it ends at 2.5 instead of 1.
    found = step(gather_s=2.0, gather_buckets=2, overlap_gather=True)
    assert found.timeline.end_s[0] == pytest.approx(2.5)


def test_the_norm_makes_every_rank_wait_for_the_last():
    found = step(clip_s=0.5)
    assert found.wait_s.tolist() == [0.0, 2.0]  # Rank 1 is done one backward before rank 0.


def test_slowdown_stretches_what_runs_beside_a_collective_by_hand():
    order = make_order("1f1b", pp=1, micro_batches=1)
    found = run_step(
        order,
        Durations(forward_s=1.0, input_grad_s=2.0),
        end=StepEnd(gather_s=0.0, reduce_s=0.5, reduce_buckets=2, overlap_reduce=True, slowdown=1.25),
    )
    # The first bucket leaves half-way and runs 0.25 s beside compute, which gets 0.2 s done: 0.05 s late.
    assert found.slowed_s[0] == pytest.approx(0.05)
    assert found.step_time_s == pytest.approx(1.0 + 2.05 + 0.25)


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1", "interleaved", "zbv", "dualpipe", "chimera"])
def test_the_parts_of_every_rank_sum_to_the_step(schedule):
    vp = 2 if schedule in {"interleaved", "zbv"} else 1
    order = make_order(schedule, pp=4, micro_batches=8, vp=vp)
    stages = order.stages
    end = StepEnd(
        reduce_s=np.linspace(0.5, 1.5, stages),
        reduce_buckets=3,
        overlap_reduce=True,
        gather_s=0.3,
        gather_buckets=2,
        overlap_gather=True,
        clip_s=0.1,
        optimizer_s=[0.1, 0.2, 0.3, 0.4],
        slowdown=1.2,
    )
    durations = Durations(forward_s=np.linspace(1, 2, stages), input_grad_s=1.5, weight_grad_s=1.0)
    found = run_step(order, durations, end=end)
    assert parts(found) == pytest.approx(np.full(4, found.step_time_s), rel=1e-12)
    assert (found.slowed_s > 0).all()
    for rank in range(4):  # One collective at a time on a rank's gradient stream.
        mine = found.collective_rank == rank
        start, stop = np.sort(found.collective_start_s[mine]), np.sort(found.collective_end_s[mine])
        assert (start[1:] >= stop[:-1] - 1e-9).all()


def test_a_slowdown_below_one_is_refused():
    with pytest.raises(InputError, match=r"slowdown\(0.5\)"):
        step(slowdown=0.5)


def test_columns_hold_the_gradient_stream_and_the_end_of_the_step():
    found = step(reduce_s=1.0, reduce_buckets=2, clip_s=0.5, optimizer_s=0.25, gather_s=2.0)
    table = found.columns()
    rows = [
        (rank, stream, kind, end - start)
        for rank, stream, kind, start, end in zip(
            *(table[name].tolist() for name in ("rank", "stream", "kind", "start_s", "end_s")), strict=True
        )
        if kind not in {"F", "BW"}
    ]
    assert rows == [
        *[(rank, "gradients", "reduce", 0.5) for rank in (0, 0, 1, 1)],
        *[
            (rank, "compute", kind, spent)
            for kind, spent in (("clip", 0.5), ("optimizer", 0.25), ("gather", 2.0))
            for rank in (0, 1)
        ],
    ]
    assert table["end_s"].max() == found.step_time_s
    assert len({len(column) for column in table.values()}) == 1
