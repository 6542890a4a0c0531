"""Orders against the tables of torch.distributed.pipelining, action by action."""

import pytest

from simulator.schedule.make import make_order
from simulator.schedule.order_file import format_order, parse_order

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tables():
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.pipelining import PipelineStage
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def table(name, p, m, v, *, folded=False):
        from torch.distributed.pipelining import schedules

        dist.init_process_group("fake", rank=0, world_size=p, store=FakeStore())
        try:
            held = [0, 2 * p - 1] if folded else [chunk * p for chunk in range(v)]
            stages = [
                PipelineStage(
                    nn.Linear(1, 1),
                    index,
                    p * v,
                    torch.device("cpu"),
                    input_args=torch.zeros(1, 1),
                    output_args=torch.zeros(1, 1),
                )
                for index in held
            ]
            kind = getattr(schedules, name)
            schedule = kind(stages[0] if v == 1 else stages, n_microbatches=m, loss_fn=lambda a, b: a.sum())
            found = getattr(schedule, "pipeline_order", None) or schedule._get_pipeline_order()
        finally:
            dist.destroy_process_group()
        # What torch adds for its gradient reduction is no task of the order.
        cells = [[str(action) for action in found[rank] if action is not None] for rank in range(p)]
        return [[cell for cell in row if "REDUCE_GRAD" not in cell] for row in cells]

    return table


def ours(schedule, p, m, v, group_size=0):
    order = make_order(schedule, pp=p, micro_batches=m, vp=v, group_size=group_size)
    return [line.split(",") for line in format_order(order).splitlines()]


SIZES = [(2, 4), (4, 8), (4, 12), (8, 16), (8, 32)]


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_gpipe(tables, p, m):
    assert ours("gpipe", p, m, 1) == tables("ScheduleGPipe", p, m, 1)


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_1f1b(tables, p, m):
    theirs = tables("Schedule1F1B", p, m, 1)
    # torch 2.13 numbers the forwards of the last rank 1 .. m in this table (its runtime counts from 0).
    number = iter(range(m))
    theirs[-1] = [f"{p - 1}F{next(number)}" if "F" in cell else cell for cell in theirs[-1]]
    assert ours("1f1b", p, m, 1) == theirs


@pytest.mark.parametrize("v", [2, 3])
@pytest.mark.parametrize(("p", "m"), SIZES)
def test_interleaved(tables, p, m, v):
    assert ours("interleaved", p, m, v) == tables("ScheduleInterleaved1F1B", p, m, v)


def test_interleaved_with_larger_groups(tables):
    # torch makes rounds of m / (m // p) micro-batches: 10 on 4 ranks are two groups of 5.
    assert ours("interleaved", 4, 10, 2, group_size=5) == tables("ScheduleInterleaved1F1B", 4, 10, 2)


@pytest.mark.parametrize("v", [2, 3])
@pytest.mark.parametrize(("p", "m"), SIZES)
def test_breadth_first(tables, p, m, v):
    assert ours("interleaved-bfs", p, m, v) == tables("ScheduleLoopedBFS", p, m, v)


@pytest.mark.parametrize("v", [2, 3])
@pytest.mark.parametrize(("p", "m"), SIZES)
def test_interleaved_zero_bubble(tables, p, m, v):
    assert ours("zb-h1", p, m, v) == tables("ScheduleInterleavedZeroBubble", p, m, v)


@pytest.mark.parametrize(("p", "m"), [*SIZES, (4, 3), (8, 9)])
def test_zbv(tables, p, m):
    assert ours("zbv", p, m, 2) == tables("ScheduleZBVZeroBubble", p, m, 2, folded=True)


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_dualpipe_v(tables, p, m):
    assert ours("dualpipev", p, m, 2) == tables("ScheduleDualPipeV", p, m, 2, folded=True)


def test_torch_reads_our_file_and_we_read_torchs(tables, tmp_path):
    from torch.distributed.pipelining.schedules import _Action

    text = format_order(make_order("dualpipev", pp=4, micro_batches=8, vp=2))
    cells = [[str(_Action.from_str(cell)) for cell in line.split(",")] for line in text.splitlines()]
    assert cells == tables("ScheduleDualPipeV", 4, 8, 2, folded=True)
    theirs = "\n".join(",".join(row) for row in tables("ScheduleZBVZeroBubble", 4, 8, 2, folded=True))
    order = parse_order(theirs)
    assert order.tasks == make_order("zbv", pp=4, micro_batches=8, vp=2).tasks
    assert order.slot_rank.tolist() == [0, 1, 2, 3, 3, 2, 1, 0]
