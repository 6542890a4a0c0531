"""Order files cell by cell: what each becomes, and where each fault is said to stand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.schedule import order_file
from simulator.schedule.make import make_order
from simulator.schedule.order import BACKWARD, FORWARD, INPUT_GRAD, WEIGHT_GRAD
from simulator.schedule.order_file import format_order, parse_order, read_order

F, B, W, BW = FORWARD, INPUT_GRAD, WEIGHT_GRAD, BACKWARD
CELL = "Write <stage><F|I|W|B><micro-batch>, as 2F0."
FROM_0 = "number stages and micro-batches from 0"


def said(text: str) -> list[tuple[str, str, str]]:
    with pytest.raises(InputError) as refused:
        parse_order(text, where="mine.csv")
    return [(problem.where, problem.message, problem.hint) for problem in refused.value.problems]


def test_cells_become_tasks_and_empty_ones_and_comments_nothing() -> None:
    """Five stages on two ranks (three at most on one): rank 0 holds 0, 2 and 4, rank 1 holds 1 and 3."""
    order = parse_order("# mine\n 0F0 ,, 2F0,4F0,4I0,\t4W0,2B0,0I0,0W0\n\n  # and\n1F0,,3F0,3B0,1B0,,\n")
    assert (order.schedule, order.pp, order.vp, order.micro_batches, order.stages) == ("file", 2, 3, 1, 5)
    assert (order.slot_rank.tolist(), order.model_stage.tolist()) == ([0, 1, 0, 1, 0], [0, 1, 2, 3, 4])
    assert order.previous.tolist() == [-1, 0, 1, 2, 3]
    assert order.of_rank(0) == [(0, 0, F), (2, 0, F), (4, 0, F), (4, 0, B), (4, 0, W), (2, 0, BW), (0, 0, B), (0, 0, W)]
    assert order.of_rank(1) == [(1, 0, F), (3, 0, F), (3, 0, BW), (1, 0, BW)]
    assert not order.paired.any()
    columns = (order.slot, order.micro_batch, order.slot_rank, order.model_stage, order.previous, order.rank_start)
    assert {column.dtype for column in columns} == {np.dtype(np.int32)}
    assert (order.kind.dtype, order.paired.dtype) == (np.int8, np.bool_)


def test_more_ranks_than_stages_hold_one_stage_each() -> None:
    """A model of two stages held three times, by six ranks: each copy is a chain of its own."""
    order = parse_order("0F0,0B0\n0F1,0B1\n0F2,0B2\n1F0,1B0\n1F1,1B1\n1F2,1B2\n")
    assert (order.pp, order.vp, order.micro_batches) == (6, 1, 3)
    assert (order.slot_rank.tolist(), order.model_stage.tolist()) == ([0, 3, 1, 4, 2, 5], [0, 1, 0, 1, 0, 1])
    assert order.previous.tolist() == [-1, 0, -1, 2, -1, 4]
    assert order.of_rank(5) == [(5, 2, F), (5, 2, BW)]


def test_pairs_are_two_tasks_of_which_the_first_says_so() -> None:
    text = "0F0,0F1,(0F2;0B0)OVERLAP_F_B,(0F3;0I1)OVERLAP_F_B,0W1,0B2,0B3\n"
    order = parse_order(text)
    assert order.of_rank(0)[2:6] == [(0, 2, F), (0, 0, BW), (0, 3, F), (0, 1, B)]
    assert order.paired.tolist() == [False, False, True, False, True, False, False, False, False]
    assert format_order(order) == text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", [("mine.csv", "holds no tasks", "")]),
        ("0F0,0B0\n,\t,\n", [("mine.csv:2", "this rank runs nothing", "Take its line out.")]),
        # Every cell and line that cannot be read; comments and empty lines count as lines.
        ("#\n0F0,F0,0B0,F1\n\n0G1,1F0,1B0\n",
         [("mine.csv:2", "'F0' is not a task", CELL), ("mine.csv:2", "'F1' is not a task", CELL),
          ("mine.csv:4", "'0G1' is not a task", CELL)]),
        # A pair of which neither number can be is one fault.
        ("(1234567F0;0B12345678)OVERLAP_F_B\n",
         [("mine.csv:1", "'(1234567F0;0B12345678)OVERLAP_F_B' is not a task", CELL)]),
        ("(0F0;0W0)OVERLAP_F_B\n", [("mine.csv:1", "'(0F0;0W0)OVERLAP_F_B' is not a task", CELL)]),
        ("0F2,0B2\n", [("", f"mine.csv: 2 tasks cannot reach stage 0, micro-batch 2: {FROM_0}", "")]),
        ("2F0,2B0\n", [("", f"mine.csv: 2 tasks cannot reach stage 2, micro-batch 0: {FROM_0}", "")]),
        ("0F1,0B1\n", [("mine.csv", "micro-batch 0 never runs", "")]),
        ("1F0,1B0\n", [("", "mine.csv: stage 0 never runs, though stage 1 does", "")]),
        ("0F0,0B0,0F1,0B1\n3F0,3B0,3F1,3B1\n", [("", "mine.csv: stage 1 never runs, though stage 3 does", "")]),
        ("0F0,0B0,1F1,1B1\n1F0,1B0\n", [("mine.csv", "stage 1 on rank 0 is fed by no rank", "")]),
        # Rank 0's chain ends at stage 1 (nobody runs micro-batches 0 and 1 there), rank 1's goes on to ranks 2 and 3.
        ("0F0,0F1,0B0,0B1\n0F2,0F3,0B2,0B3\n1F2,1B2\n1F3,1B3\n",
         [("mine.csv", "the micro-batches of rank 0's stage 0 reach stage 1 on no rank", ""),
          ("mine.csv", "the micro-batches of rank 1's stage 0 reach stage 1 on ranks 2, 3", ""),
          ("mine.csv", "stage 1 on rank 2 is fed by no rank", ""),
          ("mine.csv", "stage 1 on rank 3 is fed by no rank", "")]),
        ("0F0,0B0,0W0\n", [("mine.csv", "W s0 m0 has no B (BW already holds the weight gradient)", "")]),
    ],
)  # fmt: skip
def test_faults_and_their_places(text: str, found: list[tuple[str, str, str]]) -> None:
    assert said(text) == found


def test_text_without_a_name_is_called_an_order() -> None:
    with pytest.raises(InputError) as refused:
        parse_order("0F0\n0X0\n")
    assert [problem.where for problem in refused.value.problems] == ["order:2"]


def test_ranks_that_wait_in_a_circle_are_bad_input() -> None:
    with pytest.raises(InputError, match="rank 0 stands before BW s0 m0 and waits for BW s1 m0 of rank 1"):
        parse_order("0F0,0B0,0F1,0B1\n1F1,1B1,1F0,1B0\n")


def test_a_file_is_named_in_its_faults_and_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("0F0,0B0\n0G0\n", "utf-8")
    with pytest.raises(InputError) as refused:
        read_order(path)
    assert [problem.where for problem in refused.value.problems] == [f"{path}:2"]
    path.write_text("# f\u00fcnf\n0F0,0B0\n", "utf-8")
    size = 1 + 1 + 1 + 2 + 2 + 1 + 8
    monkeypatch.setattr(order_file, "MAX_FILE_BYTES", size)
    assert read_order(path).tasks == 2
    monkeypatch.setattr(order_file, "MAX_FILE_BYTES", size - 1)
    with pytest.raises(InputError, match=rf"mine\.csv: {size} bytes is more than {size - 1}"):
        read_order(str(path))


def test_an_order_with_two_copies_of_the_model_comes_back_as_it_was() -> None:
    order = make_order("dualpipe", pp=4, micro_batches=10)
    again = parse_order(format_order(order))
    assert (again.pp, again.vp, again.slots, again.stages) == (4, 1, 8, 4)
    # Slots by chain: down 0 .. 3, up 4 .. 7, as the built-in numbers them.
    for name in ("slot", "micro_batch", "kind", "paired", "slot_rank", "model_stage", "previous", "rank_start"):
        assert getattr(again, name).tolist() == getattr(order, name).tolist(), name
