"""Orders of one's own: read, refused with their place, written back."""

from pathlib import Path

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.schedule.engine import Durations, simulate
from simulator.schedule.make import make_order
from simulator.schedule.order_file import format_order, parse_order, read_order
from simulator.spec.strategy import SCHEDULES

TWO_RANKS = """\
# two ranks, three micro-batches
0F0,0F1,0B0,0F2,0B1,0B2
1F0,1B0,1F1,1B1,1F2,1B2
"""


def test_a_file_runs_like_the_schedule_it_spells(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(TWO_RANKS, "utf-8")
    mine, built = read_order(path), make_order("1f1b", pp=2, micro_batches=3)
    durations = Durations(forward_s=[1.0, 2.0], input_grad_s=[3.0, 2.5])
    assert mine.schedule == "file"
    assert simulate(mine, durations).end_s.tolist() == simulate(built, durations).end_s.tolist()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_written_and_read_back_every_schedule_is_the_same(schedule):
    vp = 2 if schedule in {"interleaved", "interleaved-bfs", "zbv", "v-half", "v-min", "dualpipev"} else 1
    order = make_order(schedule, pp=4, micro_batches=8, vp=vp)
    again = parse_order(format_order(order))
    durations = Durations(forward_s=np.arange(1.0, 4 * vp + 1), input_grad_s=2.0, weight_grad_s=0.5)
    assert format_order(again) == format_order(order)
    assert simulate(again, durations).end_s.tolist() == simulate(order, durations).end_s.tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no tasks"),
        ("# nothing\n\n", "holds no tasks"),
        ("0F0,0B0\n1F0,1X0\n", "order:2: '1X0' is not a task"),
        ("0F0,0F1,0B0\n1F0,1B0,1F1,1B1\n", "B s0 m1 is missing"),
        ("0F0,0B0,0B0\n1F0,1B0\n", "BW s0 m0 stands 2 times|B s0 m0 stands 2 times"),
        ("0B0,0F0\n1F0,1B0\n", "B s0 m0 comes before its F"),
        ("0F0,0W0,0I0\n1F0,1B0\n", "W s0 m0 comes before its B"),
        ("0F0,0I0\n1F0,1B0\n", "W s0 m0 is missing"),
        ("0F0,0B0,0W0\n1F0,1B0\n", "BW already holds"),
        ("0F0,0B0\n2F0,2B0\n", "stage 1 never runs"),
        ("0F0,0B0,1F1,1B1\n1F0,1B0\n", "stage 1 on rank 0 is fed by no rank"),
        ("0F0,0B0,1F0,1B0\n1F0,1B0\n", "rank 0's stage 0 reach stage 1 on ranks 0, 1"),
        ("0F0,0F1,0B0,0B1\n1F2,1B2,1F3,1B3\n", "rank 0's stage 0 reach stage 1 on no rank"),
        ("0F0,(0F1;0I0)OVERLAP_F_B,0W0,0B1\n1F1,1B1,(1F0;1B0)OVERLAP_F_B\n", "rank 1 stands before F s1 m1"),
        ("0F9999999\n", "number stages and micro-batches from 0"),
        ("0F0,0B0,0F1,0B1\n1F1,1B1,1F0,1B0\n", "rank 1 stands before F s1 m1 and waits for F s0 m1 of rank 0"),
    ],
)
def test_bad_files_are_refused_with_what_is_wrong(text, message):
    with pytest.raises(InputError, match=message):
        parse_order(text)


def test_a_file_that_is_not_there_is_bad_input():
    with pytest.raises(InputError, match="cannot be read"):
        read_order(Path("no/such/file.csv"))


def test_a_file_that_is_not_text_is_bad_input(tmp_path):
    path = tmp_path / "noise.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_order(path)


def test_the_example_does_what_its_page_says():
    order = read_order(Path(__file__).resolve().parents[3] / "examples" / "schedules" / "last-rank-splits.csv")
    ones = Durations(forward_s=1.0, input_grad_s=1.0, weight_grad_s=1.0)
    assert simulate(order, ones).makespan_s == 29.0
    assert simulate(make_order("1f1b", pp=3, micro_batches=8), ones).makespan_s == 30.0
