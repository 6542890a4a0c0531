"""Graphs of two small orders node by node, who waits for whom in a circle, and what of a long order repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.schedule.make import make_order
from simulator.schedule.order import Order, build_order, loop_placement
from simulator.schedule.steady import LEAST_NODES, Zone
from simulator.schedule.wiring import Deadlock, wiring
from tests.unit.schedule.paired import FOLDED


def _order(columns: list[Any], pairs: list[list[int]], schedule: str = "hand") -> Order:
    """Two ranks of one stage each; `pairs` are places of the first of two tasks on their rank."""
    paired = [np.isin(np.arange(len(column)), pair) for column, pair in zip(columns, pairs, strict=True)]
    return build_order(schedule, 2, 1, 2, [np.array(column) for column in columns], placement=loop_placement(2, 1),
                       paired=paired)  # fmt: skip


# Tasks 0 to 3: F0 m0, then F0 m1 with BW0 m0, then BW0 m1; tasks 4 to 7: F1 m0, BW1 m0, F1 m1, BW1 m1.
PAIRED = _order([[(0, 0, 0), (0, 1, 0), (0, 0, 3), (0, 1, 3)], [(1, 0, 0), (1, 0, 3), (1, 1, 0), (1, 1, 3)]],
                [[1], []])  # fmt: skip


def test_a_pair_between_two_ranks_node_by_node() -> None:
    """Eleven nodes: each task one, each slot's parameters one, the pair one more.

    Level 1: parameters of 0 and of 1. 2: F0 m0. 3: wait for F0 m1's input (none), F1 m0. 4: BW1 m0. 5: the pair. 6: its
    gradient, F1 m1. 7: BW1 m1. 8: BW0 m1.
    """
    graph = wiring(PAIRED)
    assert graph.nodes == 11
    assert graph.rank == [0, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0]
    # 1 and 2 are the slots' parameters, 3 + n is node n's output: F1 m0 reads node 2, the pair's backward node 5, ...
    assert graph.after == [1, 2, 0, 0, 3 + 2, 0, 3 + 5, 0, 3 + 6, 0, 3 + 9]
    # Of [F0, F1, B0, B1, W0, W1, BW0, BW1, zero, pairs].
    assert graph.duration_index.tolist() == [8, 8, 0, 8, 1, 7, 9, 8, 1, 7, 6]
    # Of [none, F from 0, F from 1, B from 0, B from 1].
    assert graph.send_index.tolist() == [0, 0, 1, 0, 0, 4, 1, 0, 0, 4, 0]
    assert graph.task_node.tolist() == [2, 6, 6, 10, 4, 5, 8, 9]
    assert graph.send_node.tolist() == [2, 6, 7, 10, 4, 5, 8, 9]
    assert graph.pairs.tolist() == [[0, 0, 3]]
    assert graph.second.tolist() == [False, False, True, *[False] * 5]
    assert graph.sends.tolist() == [True, True, False, False, False, True, False, True]
    assert graph.zones == ()
    assert wiring(PAIRED) is graph


def test_kinds_of_pairs_are_counted_once() -> None:
    """Stages 0 and 1 on one rank: F s0 with BW s1, F s1 with B s0; its nodes stand one after the other."""
    graph = wiring(FOLDED)
    assert graph.pairs.tolist() == [[0, 1, 3], [1, 0, 1]]
    mine = np.array(graph.rank) == 0
    # Parameters of slot 0, F s0, parameters of slot 1, F s1; wait, pair, gradient; the same; W, B, BW, W.
    assert graph.duration_index[mine].tolist() == [8, 0, 8, 1, 8, 9, 8, 8, 10, 8, 4, 3, 6, 5]
    assert wiring(make_order("1f1b", pp=1, micro_batches=1)).pairs.shape == (0, 3)
    assert not graph.send_index.any()
    assert not graph.sends.any()
    twice = make_order("dualpipe", pp=2, micro_batches=8)
    kinds = {(int(twice.stage[task]), int(twice.stage[task + 1]), int(twice.kind[task + 1]))
             for task in np.flatnonzero(twice.paired)}  # fmt: skip
    assert {tuple(pair) for pair in wiring(twice).pairs.tolist()} == kinds
    assert len(wiring(twice).pairs) == len(kinds)


CIRCLE = "kinds are F, B, W, BW: the ranks wait for each other in a circle"


@pytest.mark.parametrize(
    ("columns", "pairs", "lines"),
    [
        # The pair's backward waits for BW1 m0, which is behind F1 m1, which reads the pair's forward.
        ([[(0, 0, 0), (0, 1, 0), (0, 0, 3), (0, 1, 3)], [(1, 1, 0), (1, 0, 0), (1, 0, 3), (1, 1, 3)]], [[1], []],
         ["rank 0 stands before F s0 m1 and waits for BW s1 m0 of rank 1",
          "rank 1 stands before F s1 m1 and waits for F s0 m1 of rank 0"]),
        # The pair's forward waits for F0 m1, which is behind BW0 m0, which reads the pair's backward.
        ([[(0, 0, 0), (0, 0, 3), (0, 1, 0), (0, 1, 3)], [(1, 0, 0), (1, 1, 0), (1, 0, 3), (1, 1, 3)]], [[], [1]],
         ["rank 0 stands before BW s0 m0 and waits for BW s1 m0 of rank 1",
          "rank 1 stands before F s1 m1 and waits for F s0 m1 of rank 0"]),
    ],
)  # fmt: skip
def test_a_circle_through_a_pair_names_what_each_rank_waits_for(columns: Any, pairs: Any, lines: list[str]) -> None:
    with pytest.raises(Deadlock) as found:
        wiring(_order(columns, pairs))
    assert str(found.value).splitlines() == [*lines, CIRCLE]
    with pytest.raises(InputError) as refused:
        wiring(_order(columns, pairs, "file"))
    assert str(refused.value).splitlines() == [*lines, CIRCLE]


def test_ranks_that_are_through_are_not_named() -> None:
    """Slot 0 is a pipeline by itself, on rank 0; ranks 1 and 2 wait for each other."""
    columns = [[(0, 0, 0), (0, 0, 3)], [(1, 0, 0), (1, 0, 3), (1, 1, 0), (1, 1, 3)],
               [(2, 1, 0), (2, 1, 3), (2, 0, 0), (2, 0, 3)]]  # fmt: skip
    placement = (np.arange(3, dtype=np.int32), np.array([0, 0, 1], np.int32), np.array([-1, -1, 1], np.int32))
    with pytest.raises(Deadlock) as found:
        wiring(build_order("hand", 3, 1, 2, [np.array(column) for column in columns], placement=placement))
    assert str(found.value).splitlines() == [
        "rank 1 stands before BW s1 m0 and waits for BW s2 m0 of rank 2",
        "rank 2 stands before F s2 m1 and waits for F s1 m1 of rank 1",
        CIRCLE,
    ]


def test_one_rank_repeats_from_its_first_micro_batch_on() -> None:
    """A node for parameters, then F and BW in turn."""
    count = LEAST_NODES // 2
    assert wiring(make_order("1f1b", pp=1, micro_batches=count)).zones == (Zone(1, 2 * count + 1, 2, 0, 0),)
    assert wiring(make_order("1f1b", pp=1, micro_batches=count - 1)).zones == ()


def _repeats(order: Order) -> list[tuple[Any, ...]]:
    """By node: rank, work, send and how far back it reads (0: what is there at once); parameters are like nothing."""
    graph = wiring(order)
    base = 1 + order.slots
    back = [node + base - after if after >= base else 0 for node, after in enumerate(graph.after)]
    own = [node if 0 < after < base else -1 for node, after in enumerate(graph.after)]
    return list(zip(graph.rank, graph.duration_index.tolist(), graph.send_index.tolist(), back, own, strict=True))


@pytest.mark.parametrize(
    ("name", "pp", "vp", "zones"),
    [("1f1b", 2, 1, 1), ("gpipe", 2, 1, 2), ("interleaved", 2, 2, 1), ("zb-h1", 3, 1, 1), ("zbv", 2, 2, 1),
     ("dualpipe", 2, 1, 1)],
)  # fmt: skip
def test_zones_are_as_long_as_the_graph_repeats(name: str, pp: int, vp: int, zones: int) -> None:
    order = make_order(name, pp=pp, vp=vp, micro_batches=180)
    graph, nodes = wiring(order), _repeats(order)
    assert len(graph.zones) == zones
    after, base = graph.after, 1 + order.slots
    for zone in graph.zones:
        same = [nodes[node] == nodes[node - zone.period] for node in range(zone.first + zone.period, zone.stop)]
        assert all(same)
        assert zone.first == 0 or nodes[zone.first - 1] != nodes[zone.first - 1 + zone.period]
        assert zone.stop == len(nodes) or nodes[zone.stop] != nodes[zone.stop - zone.period]
        assert zone.lookback == max(node[3] for node in nodes[zone.first : zone.stop])
        read = [zone.stop - (after[node] - base) for node in range(zone.stop, len(nodes)) if after[node] >= base]
        assert zone.reach == max([0, *read])
