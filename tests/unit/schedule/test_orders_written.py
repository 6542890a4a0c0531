"""The orders of every schedule written out, as their papers and codes draw them, in the notation of order files."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.schedule.make import make_order
from simulator.schedule.order import FORWARD, INPUT_GRAD, WEIGHT_GRAD
from simulator.schedule.order_file import format_order
from simulator.schedule.orders import v_shaped
from simulator.schedule.orders.interleaved import chunk_table
from simulator.schedule.orders.one_f_one_b import alternate, warm_up_then_alternate
from simulator.schedule.orders.zero_bubble import split_columns
from simulator.schedule.wiring import Deadlock
from simulator.spec.strategy import SCHEDULES

FOLDED = ("zbv", "v-half", "v-min", "dualpipev")
WRITTEN = {
    # All forwards, then all backwards.
    ("gpipe", 2, 3, 1): """\
0F0,0F1,0F2,0B0,0B1,0B2
1F0,1F1,1F2,1B0,1B1,1B2
""",
    # Warm-up of p - r - 1.
    ("1f1b", 3, 4, 1): """\
0F0,0F1,0F2,0B0,0F3,0B1,0B2,0B3
1F0,1F1,1B0,1F2,1B1,1F3,1B2,1B3
2F0,2B0,2F1,2B1,2F2,2B2,2F3,2B3
""",
    # Fewer micro-batches than the warm-up of the first rank.
    ("1f1b", 3, 1, 1): """\
0F0,0B0
1F0,1B0
2F0,2B0
""",
    # Warm-up of 2 (p - r - 1).
    ("eager-1f1b", 3, 5, 1): """\
0F0,0F1,0F2,0F3,0F4,0B0,0B1,0B2,0B3,0B4
1F0,1F1,1F2,1B0,1F3,1B1,1F4,1B2,1B3,1B4
2F0,2B0,2F1,2B1,2F2,2B2,2F3,2B3,2F4,2B4
""",
    # Chunk by chunk; the backwards take the micro-batches from the last to the first.
    ("interleaved-bfs", 2, 3, 2): """\
0F0,0F1,0F2,2F0,2F1,2F2,2B2,2B1,2B0,0B2,0B1,0B0
1F0,1F1,1F2,3F0,3F1,3F2,3B2,3B1,3B0,1B2,1B1,1B0
""",
    # Groups of p = 2; warm-up of 2 (p - r - 1) + 2 chunks.
    ("interleaved", 2, 4, 2): """\
0F0,0F1,2F0,2F1,0F2,2B0,0F3,2B1,2F2,0B0,2F3,0B1,2B2,2B3,0B2,0B3
1F0,1F1,3F0,3B0,3F1,3B1,1F2,1B0,1F3,1B1,3F2,3B2,3F3,3B3,1B2,1B3
""",
    # As 1F1B; W trails B by r.
    ("zb-h1", 3, 4, 1): """\
0F0,0F1,0F2,0I0,0W0,0F3,0I1,0W1,0I2,0W2,0I3,0W3
1F0,1F1,1I0,1F2,1I1,1W0,1F3,1I2,1W1,1I3,1W2,1W3
2F0,2I0,2F1,2I1,2F2,2I2,2W0,2F3,2I3,2W1,2W2,2W3
""",
    # Warm-up of 2 + (p - r - 1) chunks.
    ("zb-h1", 2, 2, 2): """\
0F0,0F1,2F0,2F1,2I0,2W0,2I1,2W1,0I0,0W0,0I1,0W1
1F0,1F1,3F0,3I0,3F1,3I1,3W0,1I0,3W1,1I1,1W0,1W1
""",
    # Warm-up of 2 (p - r - 1), W trails B by 2 r.
    ("zb-h2", 2, 4, 1): """\
0F0,0F1,0F2,0I0,0W0,0F3,0I1,0W1,0I2,0W2,0I3,0W3
1F0,1I0,1F1,1I1,1F2,1I2,1W0,1F3,1I3,1W1,1W2,1W3
""",
    # Rank 0 holds stages 0 and 3: 2 p - 1 forwards, then the late stage's passes as they come back.
    ("zbv", 2, 3, 2): """\
0F0,0F1,0F2,3F0,3I0,3W0,3F1,3I1,3W1,0I0,0W0,3F2,3I2,3W2,0I1,0W1,0I2,0W2
1F0,2F0,1F1,2F1,2I0,2W0,1F2,1I0,1W0,2F2,2I1,2W1,1I1,2I2,1I2,1W1,2W2,1W2
""",
    # F, B and W of one second, at most 4 held: rank 0 waits for stage 2 at 2 s, puts 3W0 at 5 s and 3W1 at 10 s.
    ("v-half", 2, 2, 2): """\
0F0,0F1,3F0,3I0,3W0,3F1,3I1,0I0,3W1,0I1,0W0,0W1
1F0,2F0,1F1,2I0,2F1,1I0,2W0,2I1,1I1,1W0,2W1,1W1
""",
    # Micro-batches 0 .. 4 go down, 5 .. 9 up: ranks 3 and 2 are ranks 0 and 1 with the two halves exchanged.
    ("dualpipe", 4, 10, 1): """\
0F0,0F1,0F2,3F5,3I5,3W5,3F6,(0F3;3B6)OVERLAP_F_B,(3F7;0B0)OVERLAP_F_B,(0F4;3B7)OVERLAP_F_B,(3F8;0B1)OVERLAP_F_B,\
3B8,(3F9;0B2)OVERLAP_F_B,3B9,0I3,0W3,0I4,0W4
1F0,2F5,1F1,2F6,1F2,2B5,(2F7;1B0)OVERLAP_F_B,(1F3;2B6)OVERLAP_F_B,(2F8;1B1)OVERLAP_F_B,(1F4;2B7)OVERLAP_F_B,\
(2F9;1B2)OVERLAP_F_B,2B8,1B3,2I9,1I4,2W9,1W4
1F5,2F0,1F6,2F1,1F7,2B0,(2F2;1B5)OVERLAP_F_B,(1F8;2B1)OVERLAP_F_B,(2F3;1B6)OVERLAP_F_B,(1F9;2B2)OVERLAP_F_B,\
(2F4;1B7)OVERLAP_F_B,2B3,1B8,2I4,1I9,2W4,1W9
0F5,0F6,0F7,3F0,3I0,3W0,3F1,(0F8;3B1)OVERLAP_F_B,(3F2;0B5)OVERLAP_F_B,(0F9;3B2)OVERLAP_F_B,(3F3;0B6)OVERLAP_F_B,\
3B3,(3F4;0B7)OVERLAP_F_B,3B4,0I8,0W8,0I9,0W9
""",
    # The same in the V of two ranks: both slots of a rank take all micro-batches.
    ("dualpipev", 2, 4, 2): """\
0F0,0F1,0F2,3F0,3I0,3W0,3F1,(0F3;3B1)OVERLAP_F_B,(3F2;0B0)OVERLAP_F_B,3B2,(3F3;0B1)OVERLAP_F_B,3B3,0I2,0W2,0I3,0W3
1F0,2F0,1F1,2F1,1F2,2B0,(2F2;1B0)OVERLAP_F_B,(1F3;2B1)OVERLAP_F_B,(2F3;1B1)OVERLAP_F_B,2B2,1B2,2I3,1I3,2W3,1W3
""",
    # Two units of four: of each, two go down and two up; the second unit begins before the first has ended.
    ("chimera", 4, 8, 1): """\
0F0,0F1,3F2,3B2,3F3,3B3,0B0,0F4,0B1,0F5,3F6,3B6,3F7,3B7,0B4,0B5
1F0,2F2,1F1,2F3,2B2,1B0,2B3,1B1,1F4,2F6,1F5,2F7,2B6,1B4,2B7,1B5
1F2,2F0,1F3,2F1,2B0,1B2,2B1,1B3,1F6,2F4,1F7,2F5,2B4,1B6,2B5,1B7
0F2,0F3,3F0,3B0,3F1,3B1,0B2,0F6,0B3,0F7,3F4,3B4,3F5,3B5,0B6,0B7
""",
}


@pytest.mark.parametrize("sizes", WRITTEN, ids=str)
def test_orders_are_what_one_writes_down_for_them(sizes: tuple[str, int, int, int]) -> None:
    schedule, pp, micro_batches, vp = sizes
    assert format_order(make_order(schedule, pp=pp, micro_batches=micro_batches, vp=vp)) == WRITTEN[sizes]


def test_all_micro_batches_in_one_group_and_forwards_paired_with_backwards() -> None:
    """Groups of 3 on 2 ranks: warm-up of 2 + 3 chunks on rank 0 and of 3 on rank 1; pairing takes one more."""
    sizes = {"pp": 2, "micro_batches": 3, "vp": 2, "group_size": 3}
    assert format_order(make_order("interleaved", **sizes)) == (
        "0F0,0F1,0F2,2F0,2F1,2F2,2B0,2B1,2B2,0B0,0B1,0B2\n1F0,1F1,1F2,3F0,3B0,3F1,3B1,3F2,3B2,1B0,1B1,1B2\n"
    )
    assert format_order(make_order("interleaved", **sizes, paired=True)) == (
        "0F0,0F1,0F2,2F0,2F1,2F2,2B0,2B1,2B2,0B0,0B1,0B2\n"
        "1F0,1F1,1F2,3F0,(3F1;3B0)OVERLAP_F_B,(3F2;3B1)OVERLAP_F_B,3B2,1B0,1B1,1B2\n"
    )


BLOCKS = {
    # Slots of the four passes (F early, F late, B late, B early) of micro-batch 0 on each rank, as Qi et al. 2024 draw
    # them; those of every later micro-batch follow 6 slots after. V-Half: 1, 2, 1 and 2 from rank to rank.
    ("v-half", 2): [(0, 7, 8, 16), (1, 5, 9, 14)],
    ("v-half", 3): [(0, 7, 8, 16), (1, 5, 9, 14), (2, 3, 10, 12)],
    ("v-half", 4): [(0, 13, 14, 28), (1, 11, 15, 26), (2, 9, 16, 24), (3, 7, 17, 22)],
    ("v-min", 2): [(0, 3, 4, 7), (1, 2, 5, 6)],
    ("v-min", 3): [(0, 7, 8, 15), (1, 6, 9, 14), (2, 5, 10, 13)],
    ("v-min", 4): [(0, 7, 8, 15), (1, 6, 9, 14), (2, 5, 10, 13), (3, 4, 11, 12)],
}


@pytest.mark.parametrize(("schedule", "pp"), BLOCKS)
def test_forwards_and_backwards_of_a_repeated_block(schedule: str, pp: int) -> None:
    """Seven micro-batches: the passes of all of them by slot. Where weight gradients go does not move them."""
    order = make_order(schedule, pp=pp, micro_batches=7, vp=2)
    for rank, slots in enumerate(BLOCKS[schedule, pp]):
        late = 2 * pp - 1 - rank
        passes = [(rank, FORWARD), (late, FORWARD), (late, INPUT_GRAD), (rank, INPUT_GRAD)]
        turns = sorted((6 * number + slot, (stage, number, kind))
                       for number in range(7) for slot, (stage, kind) in zip(slots, passes, strict=True))  # fmt: skip
        assert [task for task in order.of_rank(rank) if task[2] != WEIGHT_GRAD] == [task for _, task in turns]


@pytest.mark.parametrize(
    ("schedule", "pp", "least"), [("v-half", 4, 6), ("v-min", 5, 6), ("v-min", 4, 5), ("v-half", 3, 5)]
)
def test_a_repeated_block_needs_the_room_that_it_is_given(
    schedule: str, pp: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """p + 2 and 2 (p + 4) / 3 half stages, the published least, suffice; that of one micro-batch alone does not."""
    given = []

    def recorded(*arguments: object, limit: list[float]) -> object:
        given.append(limit)
        return place(*arguments, limit=limit)

    place = v_shaped.place_weights
    monkeypatch.setattr(v_shaped, "place_weights", recorded)
    {"v-half": v_shaped.v_half, "v-min": v_shaped.v_min}[schedule](pp, 9)
    assert given == [[least] * pp]
    monkeypatch.setattr(v_shaped, "place_weights", lambda *arguments, limit: place(*arguments, limit=[1.0] * pp))
    with pytest.raises(Deadlock, match=rf"^{schedule} at pp\({pp}\) cannot hold its activations in {least} half"):
        {"v-half": v_shaped.v_half, "v-min": v_shaped.v_min}[schedule](pp, 9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_order_says_what_it_is(schedule: str) -> None:
    vp = 2 if schedule in FOLDED else 3 if schedule.startswith("interleaved") else 1
    order = make_order(schedule, pp=4, micro_batches=12, vp=vp)
    assert (order.schedule, order.pp, order.vp, order.micro_batches) == (schedule, 4, vp, 12)
    split = 3 if order.splits_backward and not schedule.startswith("dualpipe") else 2
    if not schedule.startswith("dualpipe"):
        assert np.diff(order.rank_start).tolist() == [12 * vp * split] * 4
    assert order.stages == 4 * vp
    whole = (order.rank_start, order.slot, order.micro_batch, order.slot_rank, order.model_stage, order.previous)
    assert {column.dtype for column in whole} == {np.dtype(np.int32)}
    assert (order.kind.dtype, order.paired.dtype) == (np.int8, np.bool_)


def test_positions_and_chunks_are_small_integers() -> None:
    """Five forwards, two of them first: F F F B F B F B B B."""
    forward_at, backward_at = alternate(5, 2)
    assert (forward_at.tolist(), backward_at.tolist()) == ([0, 1, 2, 4, 6], [3, 5, 7, 8, 9])
    chunk, number = chunk_table(5, 2, 3)
    assert (chunk.tolist(), number.tolist()) == ([0, 0, 0, 1, 1, 1, 0, 0, 1, 1], [0, 1, 2, 0, 1, 2, 3, 4, 3, 4])
    whole, split = warm_up_then_alternate(7, 2, 1), split_columns(0, 1, 1, 2, 2, (1, 0))
    assert whole.tolist() == [[7, 0, 0], [7, 1, 0], [7, 0, 3], [7, 1, 3]]
    assert split.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 2], [0, 1, 1], [0, 1, 2]]
    assert {part.dtype for part in (forward_at, backward_at, chunk, number, whole, split)} == {np.dtype(np.int32)}
