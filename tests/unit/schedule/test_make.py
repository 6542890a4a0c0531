"""What a schedule does not allow is refused with its rule."""

import pytest

from simulator.errors import InputError
from simulator.schedule import make
from simulator.schedule.make import make_order
from simulator.spec.strategy import SCHEDULES


@pytest.mark.parametrize(
    ("schedule", "sizes", "rule"),
    [
        ("1f1b", {"pp": 4, "micro_batches": 8, "vp": 2}, "one stage per rank"),
        ("1f1b", {"pp": 0, "micro_batches": 0}, r"pp\(0\) must be at least 1"),
        ("gpipe", {"pp": 4, "micro_batches": 8, "group_size": 4}, "no group size"),
        ("interleaved", {"pp": 4, "micro_batches": 8, "vp": 1}, "needs vp >= 2"),
        ("interleaved", {"pp": 1, "micro_batches": 8, "vp": 2}, "needs pp >= 2"),
        ("interleaved", {"pp": 4, "micro_batches": 3, "vp": 2}, r"pp\(4\) <= group_size\(4\) <= micro_batches\(3\)"),
        ("interleaved", {"pp": 4, "micro_batches": 9, "vp": 2}, r"mod group_size\(4\) = 1 must be 0 or at least pp"),
        ("interleaved", {"pp": 4, "micro_batches": 9, "vp": 2, "group_size": 3}, r"<= group_size\(3\)"),
        ("zbv", {"pp": 4, "micro_batches": 8}, r"needs vp = 2 \(the V\), got vp\(1\)"),
        ("v-half", {"pp": 1, "micro_batches": 8, "vp": 2}, "needs pp >= 2"),
        ("dualpipe", {"pp": 3, "micro_batches": 8}, "even pp"),
        ("dualpipe", {"pp": 4, "micro_batches": 9}, "even micro_batches"),
        ("dualpipe", {"pp": 4, "micro_batches": 6}, r"micro_batches\(6\) >= 2 pp\(8\)"),
        ("dualpipev", {"pp": 4, "micro_batches": 7, "vp": 2}, r"micro_batches\(7\) >= 2 pp\(8\)"),
        ("chimera", {"pp": 4, "micro_batches": 6}, r"mod pp\(4\) = 2"),
        ("1f1b1", {"pp": 4, "micro_batches": 6}, "Did you mean 1f1b"),
    ],
)
def test_refusals_name_the_rule(schedule, sizes, rule):
    with pytest.raises(InputError, match=rule):
        make_order(schedule, **sizes)


def test_every_problem_is_listed():
    with pytest.raises(InputError) as found:
        make_order("dualpipe", pp=3, micro_batches=5, vp=2)
    assert len(found.value.problems) == 4


def test_refusals_say_the_nearest_sizes():
    with pytest.raises(InputError, match="Use 8 or 12 micro-batches"):
        make_order("interleaved", pp=4, micro_batches=9, vp=2)


def test_fewer_micro_batches_than_ranks_break_one_rule_and_not_two() -> None:
    with pytest.raises(InputError) as found:
        make_order("interleaved", pp=4, micro_batches=3, vp=2)
    (problem,) = found.value.problems
    assert problem.message == "interleaved needs pp(4) <= group_size(4) <= micro_batches(3)"
    assert (problem.where, problem.hint) == ("group_size", "Use a group_size of 4 and at least 4 micro-batches.")


def test_the_last_group_may_be_short_when_it_still_fills_the_pipe():
    order = make_order("interleaved", pp=4, micro_batches=11, vp=2, group_size=6)
    assert order.tasks == 4 * 11 * 2 * 2


def test_the_same_sizes_give_the_same_value():
    assert make_order("zbv", pp=4, micro_batches=8, vp=2) is make_order("zbv", pp=4, micro_batches=8, vp=2)


def test_only_schedules_that_can_pair_do():
    with pytest.raises(InputError, match="cannot pair"):
        make_order("1f1b", pp=4, micro_batches=8, paired=True)
    plain = make_order("interleaved", pp=4, micro_batches=8, vp=2)
    paired = make_order("interleaved", pp=4, micro_batches=8, vp=2, paired=True)
    assert not plain.paired.any()
    # All forwards but the 2 (p - r - 1) + (v - 1) p + 1 of the warm-up run beside a backward.
    assert paired.paired.sum() == sum(16 - (2 * (3 - rank) + 4 + 1) for rank in range(4))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_has_an_order(schedule):
    vp = 2 if schedule in {"interleaved", "interleaved-bfs", "zbv", "v-half", "v-min", "dualpipev"} else 1
    order = make_order(schedule, pp=4, micro_batches=8, vp=vp)
    assert order.stages == 4 * vp
    assert order.splits_backward == (schedule in {"zb-h1", "zb-h2", "zbv", "v-half", "v-min", "dualpipe", "dualpipev"})


def test_only_recent_orders_are_kept():
    kept = make._Recent(most_tasks=100)
    first = kept.get(("1f1b", 2, 10, 1, 0, False))
    assert kept.get(("1f1b", 2, 10, 1, 0, False)) is first
    kept.get(("1f1b", 2, 20, 1, 0, False))
    assert len(kept.orders) == 1
    assert kept.get(("1f1b", 2, 10, 1, 0, False)) is not first


def test_orders_stay_up_to_the_last_task_that_there_is_room_for() -> None:
    """Two ranks, 10 and 5 micro-batches, forward and backward: 40 + 20 = 60 tasks."""
    for room, left in ((60, 2), (59, 1)):
        kept = make._Recent(most_tasks=room)
        for count in (10, 5):
            kept.get(("1f1b", 2, count, 1, 0, False))
        assert len(kept.orders) == left


def spelled(order, rank):
    return " ".join(f"{'FBWD'[kind]}{number}" for _, number, kind in order.of_rank(rank))


def test_hand_written_1f1b_of_three_ranks():
    order = make_order("1f1b", pp=3, micro_batches=4)
    assert spelled(order, 0) == "F0 F1 F2 D0 F3 D1 D2 D3"
    assert spelled(order, 2) == "F0 D0 F1 D1 F2 D2 F3 D3"


def test_hand_written_zb_h1_of_two_ranks():
    # Rank 1 puts its weight gradients off by one.
    order = make_order("zb-h1", pp=2, micro_batches=3)
    assert spelled(order, 0) == "F0 F1 B0 W0 F2 B1 W1 B2 W2"
    assert spelled(order, 1) == "F0 B0 F1 B1 W0 F2 B2 W1 W2"
