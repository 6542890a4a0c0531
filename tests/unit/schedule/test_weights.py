"""Where weight gradients go, second by second, on two ranks whose tasks all take different times."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.schedule.order import FORWARD, INPUT_GRAD, Ints, folded_placement, loop_placement
from simulator.schedule.orders.weights import Speeds, place_weights

SPEEDS = Speeds([2.0, 3.0], [5.0, 4.0], [1.0, 2.0], 0.5, 1.0, 0.0)
"""F 2 and 3 s, B 5 and 4 s, W 1 and 2 s; a transfer takes half a second; W lets all go; no patience."""
FIRST, SECOND = "F0 F1 B0 F2 B1 B2", "F0 B0 F1 B1 F2 B2"


def plan(text: str, slots: dict[str, int]) -> Ints:
    """`F0` is the forward of micro-batch 0 on slot `slots[""]`, `lateF0` that on slot `slots["late"]`."""
    rows = [(slots[cell[:-2]], int(cell[-1]), "FB".index(cell[-2])) for cell in text.split()]
    return np.array(rows, np.int32)


def spelled(column: Ints) -> str:
    return " ".join(f"{'FBW'[kind]}{number}" for _, number, kind in column.tolist())


def placed(speeds: Speeds = SPEEDS, limit: tuple[float, float] = (9.0, 9.0), first: str = FIRST) -> list[str] | None:
    sequences = [plan(first, {"": 0}), plan(SECOND, {"": 1})]
    found = place_weights(sequences, loop_placement(2, 1), 3, speeds, limit=limit)
    return None if found is None else [spelled(column) for column in found]


def test_a_weight_gradient_fills_each_wait() -> None:
    """Rank 0: F 0 .. 2 .. 4, waits for B0 (rank 1: F0 2.5 .. 5.5, B0 .. 9.5) until 10, B0 .. 15, F2 .. 17, B1 (on rank
    1 .. 16.5) .. 22; B2 is there at 26, after rank 1's W0 16.5 .. 18.5, F2 .. 21.5, B2 .. 25.5: W0, W1, B2, W2.
    Rank 1: F1 9.5 .. 12.5, B1 .. 16.5; F2 is there only at 17.5."""
    assert placed() == ["F0 F1 B0 F2 B1 W0 W1 B2 W2", "F0 B0 F1 B1 W0 F2 B2 W1 W2"]


@pytest.mark.parametrize(("patience", "fills"), [(0.5, True), (0.51, False), (1.0, False)])
def test_a_patient_rank_waits_for_what_comes_sooner(patience: float, fills: bool) -> None:
    """Rank 1 waits 1 s for F2, half of its W. Rank 0's waits of 3 s and 2 s (4 and 3) are longer than its W."""
    second = "F0 B0 F1 B1 W0 F2 B2 W1 W2" if fills else "F0 B0 F1 B1 F2 B2 W0 W1 W2"
    assert placed(replace(SPEEDS, patience=patience)) == ["F0 F1 B0 F2 B1 W0 W1 B2 W2", second]


@pytest.mark.parametrize(
    ("share", "limit", "fits"),
    [
        # Before F2, rank 0 holds two micro-batches less what B0 has let go, and needs room for one more.
        (1.0, 3.0, True), (1.0, 2.99, False), (1.0, 2.0, False), (0.5, 2.5, True), (0.5, 2.49, False), (0.0, 2.0, True),
        (0.1, 2.1, True), (0.3, 2.3, True), (0.7, 2.7, True),
    ],
)  # fmt: skip
def test_a_forward_without_room_waits_for_a_weight_gradient(share: float, limit: float, fits: bool) -> None:
    found = placed(replace(SPEEDS, weight_share=share), (limit, 9.0))
    assert found is not None
    assert found[0].startswith("F0 F1 B0 F2" if fits else "F0 F1 B0 W0 F2")


def test_room_is_each_ranks_own() -> None:
    assert placed(limit=(2.0, 1.0)) == ["F0 F1 B0 W0 F2 B1 W1 B2 W2", "F0 B0 W0 F1 B1 W1 F2 B2 W2"]
    assert placed(limit=(1.99, 9.0)) is placed(limit=(9.0, 0.99)) is None


def test_what_the_backward_lets_go_counts_at_once() -> None:
    """Half goes with B, half with W: limit 1.5 on rank 1 lets F1 begin after B0, and F2 only after W0."""
    assert placed(replace(SPEEDS, weight_share=0.5), (9.0, 1.5)) == [
        "F0 F1 B0 F2 B1 W0 W1 B2 W2",
        "F0 B0 F1 B1 W0 F2 B2 W1 W2",
    ]
    found = placed(replace(SPEEDS, weight_share=0.5, patience=100.0), (9.0, 1.5))
    assert found is not None
    assert found[1] == "F0 B0 F1 B1 W0 F2 B2 W1 W2"


def test_ranks_that_wait_in_a_circle_have_no_place() -> None:
    assert placed(first="B0 F0 F1 F2 B1 B2") is None


def test_a_stage_on_the_same_rank_needs_no_transfer() -> None:
    """The V of two ranks, transfers of 10 s. Rank 1 gets F at 12, runs both stages until 16; rank 0's late stage runs
    26 .. 30 .. 36 and then W, since its B is there at 65 only; rank 1's late B runs 46 .. 48, its early B at once."""
    speeds = Speeds([2.0, 3.0, 1.0, 4.0], [5.0, 7.0, 2.0, 6.0], [1.0] * 4, 10.0, 1.0, 0.0)
    text = "F0 lateF0 lateB0 B0"
    sequences = [plan(text, {"": 0, "late": 3}), plan(text, {"": 1, "late": 2})]
    found = place_weights(sequences, folded_placement(2), 1, speeds, limit=[2.0, 2.0])
    assert found is not None
    assert [column.tolist() for column in found] == [
        [[0, 0, 0], [3, 0, 0], [3, 0, 1], [3, 0, 2], [0, 0, 1], [0, 0, 2]],
        [[1, 0, 0], [2, 0, 0], [2, 0, 1], [1, 0, 1], [2, 0, 2], [1, 0, 2]],
    ]
    assert {column.dtype for column in found} == {np.dtype(np.int32)}


def test_equal_speeds_are_those_of_the_handcrafted_orders() -> None:
    ones = [1.0] * 3
    assert Speeds.equal(3) == Speeds(ones, ones, ones, 0.0, 1.0, 0.0)
    assert (FORWARD, INPUT_GRAD) == (0, 1)
