"""The engine's recurrence on wirings written by hand: who waits for what; which nodes run, which are written down."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.schedule.recurrence import Times, Work, run_nodes
from simulator.schedule.steady import Zone
from simulator.schedule.wiring import Wiring

NONE = np.zeros(0)


class Slices(list[int]):
    """A list that notes which parts of it were read."""

    def __init__(self, values: Any) -> None:
        super().__init__(values)
        self.read: list[tuple[int, int]] = []

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            self.read.append((key.start, key.stop))
        return super().__getitem__(key)


def _graph(rank: list[int], after: list[int], *zones: Zone) -> Wiring:
    empty: Any = np.zeros(0, np.int32)
    return Wiring(rank=rank, after=Slices(after), duration_index=empty, send_index=empty, task_node=empty,
                  send_node=empty, pairs=empty, second=empty, sends=empty, zones=zones)  # fmt: skip


def _work(seconds: Any, sends: Any = NONE, lates: Any = NONE, launches: Any = NONE, **how: bool) -> Work:
    columns = (np.asarray(column, np.float64) for column in (seconds, sends, lates, launches))
    names = ("seconds", "sends", "lates", "launches")
    return Work(**dict(zip(names, columns, strict=True)), **how)


def _runs(graph: Wiring) -> list[tuple[int, int]]:
    """The nodes that were run, piece by piece, empty pieces left out."""
    assert isinstance(graph.after, Slices)
    return [(first, stop) for first, stop in graph.after.read if first < stop]


# Rank 0 runs nodes 0, 2, 3, 5 and 6, rank 1 the others. Node 1 reads node 0, node 4 node 3, node 5 node 4; node 2 only
# waits for parameters that are there at 5 s; the others read what is there from the start.
RANK = [0, 1, 0, 0, 1, 0, 0, 1]
AFTER = [0, 2, 1, 0, 5, 6, 0, 0]
SECONDS, SENDS = [3, 7, 0, 2, 1, 4, 1, 2], [2, 0, 0, 3, 0, 11, 1, 0]
LATES, LAUNCHES = [1, 0, 0, 0, 5, 13, 0, 0], [4, 1, 0, 6, 0, 2, 0, 0]
BEGIN = [0.0, 5.0]


def _lists(times: Times) -> dict[str, list[float]]:
    return {name: getattr(times, name).tolist() for name in ("start", "launched", "end", "sent", "arrived")}


def test_nodes_start_when_their_rank_is_free_and_their_input_there() -> None:
    """Node 4 waits for rank 1 (10 s), not for node 3 (7 s)."""
    found = run_nodes(_graph(RANK, AFTER), _work(SECONDS), 2, BEGIN)
    ends = [3, 10, 5, 7, 11, 15, 16, 13]
    assert _lists(found) == {"start": [], "launched": [], "end": ends, "sent": ends, "arrived": ends}


@pytest.mark.parametrize(
    ("blocking", "end", "sent", "arrived"),
    [
        # Node 6 ends at 24, and the port is busy until 34 with what node 5 sent.
        (False, [3, 13, 5, 7, 14, 23, 24, 16], [3, 13, 5, 7, 14, 23, 34, 16], [6, 13, 5, 10, 19, 47, 35, 16]),
        # Rank 0 stands still until 6, 11 and 47, rank 1 until 19.
        (True, [3, 13, 6, 8, 14, 23, 48, 21], [3, 13, 6, 8, 14, 23, 48, 21], [6, 13, 6, 11, 19, 47, 49, 21]),
    ],
)
def test_sends_queue_for_their_rank_s_port(blocking: bool, end: Any, sent: Any, arrived: Any) -> None:
    found = run_nodes(_graph(RANK, AFTER), _work(SECONDS, SENDS, LATES, blocking=blocking), 2, BEGIN)
    assert _lists(found) == {"start": [], "launched": [], "end": end, "sent": sent, "arrived": arrived}


HOST = [
    # The host runs ahead: 4 and 10 s of launches bind nodes 0 and 3, those of node 5 end long before it starts.
    (False, False, {"start": [0, 7, 5, 5, 14, 20, 24, 15], "launched": [4, 1, 4, 10, 1, 12, 12, 1],
                    "end": [4, 14, 5, 10, 15, 24, 25, 17], "sent": [4, 14, 5, 10, 15, 24, 35, 17],
                    "arrived": [7, 14, 5, 13, 20, 48, 36, 17]}),
    (False, True, {"start": [0, 7, 7, 7, 14, 20, 48, 20], "launched": [4, 1, 4, 10, 1, 12, 12, 1],
                   "end": [4, 14, 7, 10, 15, 24, 49, 22], "sent": [4, 14, 7, 10, 15, 24, 49, 22],
                   "arrived": [7, 14, 7, 13, 20, 48, 50, 22]}),
    # The host waits for the rank and for the input before it launches.
    (True, False, {"start": [0, 7, 5, 5, 14, 20, 24, 15], "launched": [4, 8, 5, 11, 14, 22, 24, 15],
                   "end": [4, 14, 5, 11, 15, 24, 25, 17], "sent": [4, 14, 5, 11, 15, 24, 35, 17],
                   "arrived": [7, 14, 5, 14, 20, 48, 36, 17]}),
    (True, True, {"start": [0, 7, 7, 7, 16, 22, 50, 22], "launched": [4, 8, 7, 13, 16, 24, 50, 22],
                  "end": [4, 14, 7, 13, 17, 26, 51, 24], "sent": [4, 14, 7, 13, 17, 26, 51, 24],
                  "arrived": [7, 14, 7, 16, 22, 50, 52, 24]}),
]  # fmt: skip


@pytest.mark.parametrize(("waits", "blocking", "expected"), HOST)
def test_launches_run_ahead_or_wait(waits: bool, blocking: bool, expected: dict[str, list[float]]) -> None:
    work = _work(SECONDS, SENDS, LATES, LAUNCHES, waits=waits, blocking=blocking)
    assert _lists(run_nodes(_graph(RANK, AFTER), work, 2, BEGIN)) == expected


def test_rounding_lets_no_output_leave_before_it_is_there() -> None:
    """0.1 + 0.7 - 0.7 is less than 0.1 in floating point."""
    assert (0.1 + 0.7) - 0.7 < 0.1
    found = run_nodes(_graph([0], [0]), _work([0.1], [0.7], [0.0]), 1, [0.0])
    assert found.sent.tolist() == found.end.tolist() == [0.1]


def test_a_zone_is_run_for_a_block_and_a_period_and_then_written_down() -> None:
    """Of 1000 nodes 128 are run, and 4 more so that what is left are whole periods of 7; the next period repeats."""
    zone = Zone(first=5, stop=1005, period=7, lookback=0, reach=0)
    seconds = np.concatenate([np.full(5, 100.0), np.resize(np.arange(1.0, 8.0), 1000), np.full(3, 1000.0)])
    graph = _graph([0] * 1008, [0] * 1008, zone)
    found = run_nodes(graph, _work(seconds), 1, [0.0])
    assert _runs(graph) == [(0, 5), (5, 137), (137, 144), (1005, 1008)]
    assert found.end.tolist() == np.cumsum(seconds).tolist()


def test_two_zones_are_written_down_one_after_the_other() -> None:
    zones = Zone(first=2, stop=602, period=1, lookback=0, reach=0), Zone(605, 1205, 2, 0, 0)
    seconds = np.concatenate([[3, 5], np.ones(600), [50, 60, 70], np.resize([2.0, 7.0], 600), [11, 13]])
    graph = _graph([0] * 1207, [0] * 1207, *zones)
    found = run_nodes(graph, _work(seconds), 1, [0.0])
    assert _runs(graph) == [(0, 2), (2, 130), (130, 131), (602, 605), (605, 733), (733, 735), (1205, 1207)]
    assert found.end.tolist() == np.cumsum(seconds).tolist()


@pytest.mark.parametrize(
    ("length", "pieces"),
    [
        # 128 nodes and 2 over; one period of 3, then one for each of the 2 ranks; then twice as many in whole periods.
        (1000, [(0, 4), (4, 134), (134, 137), (137, 140), (140, 401), (401, 404), (404, 407), (407, 929), (929, 932),
                (932, 935), (935, 1006)]),
        # The third block of 522 and two periods just fit, two times two periods do not.
        (931, [(0, 4), (4, 134), (134, 137), (137, 140), (140, 401), (401, 404), (404, 407), (407, 929), (929, 932),
               (932, 937)]),
        (928, [(0, 4), (4, 134), (134, 137), (137, 140), (140, 401), (401, 404), (404, 407), (407, 934)]),
    ],
)  # fmt: skip
def test_ranks_that_drift_apart_are_run_node_by_node(length: int, pieces: list[tuple[int, int]]) -> None:
    """Rank 0 works 2 s in a period, rank 1 works 5 s: they never move by one time."""
    nodes = length + 6
    zone = Zone(first=4, stop=length + 4, period=3, lookback=0, reach=0)
    rank = np.resize([0, 0, 1], nodes)
    seconds = np.where(rank == 0, 1.0, 5.0)
    graph = _graph(rank.tolist(), [0] * nodes, zone)
    found = run_nodes(graph, _work(seconds), 2, [0.0])
    assert _runs(graph) == pieces
    for one in (0, 1):
        assert found.end[rank == one].tolist() == np.cumsum(seconds[rank == one]).tolist()


def _turn(k: int) -> tuple[int, int]:
    """When the k-th node of rank 0 and of rank 1 end: 1 and 3 s after the other one's last, which takes 10 s to come.

    13 s and 11 s in turn, so both have moved by 24 s after two.
    """
    return (1 + 24 * (k // 2), 3 + 24 * (k // 2)) if k % 2 == 0 else (14 + 24 * (k // 2), 14 + 24 * (k // 2))


@pytest.mark.parametrize("more", [0, 2])
def test_a_state_that_repeats_after_two_periods_is_found_over_all_ranks(more: int) -> None:
    """Ranks 2 and 3 do nothing in the zone, and stay where they were; what follows reads 11 nodes back."""
    stop = 604 + more
    pairs = range(1, (stop - 2) // 2)
    rank = [2, 3, 0, 1] + [0, 1] * len(pairs) + [2, 3, 3]
    read = [-1, -1, -1, -1, *(node for k in pairs for node in (1 + 2 * k, 2 * k)), stop - 7, -1, stop - 11]
    seconds = [50, 70, 1, 3] + [1, 3] * len(pairs) + [2, 3, 4]
    lates = [0, 0, 10, 10] + [10, 10] * len(pairs) + [0, 0, 0]
    zone = Zone(first=4, stop=stop, period=2, lookback=3, reach=11)
    graph = _graph(rank, [1 + node for node in read], zone)
    found = run_nodes(graph, _work(seconds, np.zeros(len(rank)), lates), 4, [0.0])
    assert _runs(graph) == [(0, 4), (4, 132), (132, 134), (134, 140), (604, stop + 3)]
    ends = [end for k in range((stop - 2) // 2) for end in _turn(k)]
    # Of nodes 2, 3, 4, ... the ends are those of turn 0, 0, 1, ...
    last = [ends[stop - 9] + 10 + 2, 70 + 3, ends[stop - 13] + 10 + 4]
    assert found.end.tolist() == [50, 70, *ends, *last]
    assert found.sent.tolist() == found.end.tolist()
    assert found.arrived.tolist() == [50, 70, *(end + 10 for end in ends), *last]


def test_outputs_on_their_way_must_have_moved_as_well() -> None:
    """A rank reads its output of 200 nodes ago, which takes 1000 s to come: 200 nodes in 1001 s, most of them 1 s."""
    nodes = 2000
    after = [0] * 200 + [1 + node for node in range(nodes - 200)]
    zone = Zone(first=200, stop=nodes, period=1, lookback=200, reach=0)
    found = run_nodes(_graph([0] * nodes, after, zone), _work(np.ones(nodes), np.zeros(nodes), np.full(nodes, 1e3)), 1,
                      [0.0])  # fmt: skip
    assert found.end.tolist() == [k // 200 * 1001 + k % 200 + 1 for k in range(nodes)]


def test_a_port_that_falls_behind_is_no_steady_state() -> None:
    """A rank sends for 1/2 s after every 1/4 s of work."""
    nodes = 601
    whole = Zone(first=0, stop=600, period=1, lookback=0, reach=0)
    work = _work(np.full(nodes, 0.25), np.full(nodes, 0.5), np.zeros(nodes))
    found = run_nodes(_graph([0] * nodes, [0] * nodes, whole), work, 1, [0.0])
    assert found.arrived.tolist() == [0.25 + 0.5 * (k + 1) for k in range(nodes)]
    # A port that was taken for 1000 s keeps what takes no time to send until then.
    later = Zone(first=1, stop=601, period=1, lookback=0, reach=0)
    work = _work(np.ones(nodes), [1000.0] + [0.0] * 600, np.full(nodes, 0.5))
    found = run_nodes(_graph([0] * nodes, [0] * nodes, later), work, 1, [0.0])
    assert found.arrived.tolist() == [1001.5] * nodes


SETTLED = [(0, 128), (128, 130), (600, 602)]


@pytest.mark.parametrize(
    ("work", "ends"),
    [
        # Rank 0 sends, rank 1 reads: the port of rank 1 never moves.
        (_work([3.0, 3.0] * 301, [1.0, 0.0] * 301, [0.0, 0.0] * 301), ([3, 7], [3, 3])),
        (_work([3.0, 3.0] * 301, [0.0, 0.0] * 301, [1.0, 0.0] * 301), ([3, 7], [3, 3])),
        # 2 s of work and 3 + 5 s of a blocking send: rank 1 reads the output of 10 s later each time.
        (_work([2.0, 1.0] * 301, [3.0, 0.0] * 301, [5.0, 0.0] * 301, blocking=True), ([2, 11], [10, 10])),
        # Launches of 4 s bind work of 3 s; rank 1 has its input at 4, 8, ...
        (_work([3.0, 1.0] * 301, [0.0] * 602, [0.0] * 602, [4.0, 4.0] * 301), ([4, 5], [4, 4])),
        # The host launches when the input is there: 1 s of launches and 2 s of work beside them.
        (_work([2.0, 2.0] * 301, [0.0] * 602, [0.0] * 602, [1.0, 1.0] * 301, waits=True), ([2, 4], [2, 2])),
    ],
)
def test_steady_states_are_found_at_the_first_look(work: Work, ends: tuple[list[float], list[float]]) -> None:
    """Rank 1 reads each output of rank 0 at once; 128 nodes and a period are run, all in step."""
    after = [node for k in range(301) for node in (0, 1 + 2 * k)]
    graph = _graph([0, 1] * 301, after, Zone(first=0, stop=600, period=2, lookback=1, reach=0))
    found = run_nodes(graph, work, 2, [0.0])
    assert _runs(graph) == SETTLED
    (first, second), (every, other) = ends
    assert found.end[::2].tolist() == [first + every * k for k in range(301)]
    assert found.end[1::2].tolist() == [second + other * k for k in range(301)]


def test_a_host_that_runs_ahead_is_no_steady_state() -> None:
    """It launches for 1 s while the rank works for 3."""
    nodes = 601
    zone = Zone(first=0, stop=600, period=1, lookback=0, reach=0)
    work = _work(np.full(nodes, 3.0), np.zeros(nodes), np.zeros(nodes), np.ones(nodes))
    found = run_nodes(_graph([0] * nodes, [0] * nodes, zone), work, 1, [0.0])
    assert found.launched.tolist() == [k + 1 for k in range(nodes)]
    assert found.start.tolist() == [3 * k for k in range(nodes)]


def test_rounding_hides_no_steady_state_and_a_small_drift_is_none() -> None:
    zone = Zone(first=0, stop=600, period=2, lookback=0, reach=0)
    graph = _graph([0, 1] * 301, [0] * 602, zone)
    tenths = run_nodes(graph, _work(np.full(602, 0.1)), 2, [0.0])
    assert _runs(graph) == SETTLED
    assert tenths.end.tolist() == pytest.approx(np.repeat(0.1 * np.arange(1, 302), 2).tolist(), rel=1e-13)
    # A third of a second apart, the two ranks' sums of tenths round differently.
    later = Zone(first=2, stop=602, period=2, lookback=0, reach=0)
    apart = _graph([0, 1] * 302, [0] * 604, later)
    found = run_nodes(apart, _work([0.0, 1 / 3, *[0.1] * 602]), 2, [0.0])
    assert _runs(apart) == [(0, 2), (2, 130), (130, 132), (602, 604)]
    assert found.end[1::2].tolist() == pytest.approx((1 / 3 + 0.1 * np.arange(302)).tolist(), rel=1e-13)
    drifting = run_nodes(_graph([0, 1] * 301, [0] * 602, zone), _work([1.0, 1.0 + 2.0**-30] * 301), 2, [0.0])
    assert drifting.end[1::2].tolist() == [(1 + 2.0**-30) * k for k in range(1, 302)]


def test_a_zone_that_takes_no_time_is_written_down() -> None:
    """Each node reads the one before it; all of them end when the first one's input is there."""
    graph = _graph([0, 1] * 301, list(range(602)), Zone(first=0, stop=600, period=2, lookback=1, reach=0))
    assert run_nodes(graph, _work(np.zeros(602)), 2, [0.0]).end.tolist() == [0.0] * 602
    assert _runs(graph) == SETTLED


@pytest.mark.parametrize("columns", [1, 3, 4])
def test_costs_of_fewer_nodes_than_there_are_are_an_error(columns: int) -> None:
    """Without sends, with them, and with launches."""
    with pytest.raises(ValueError, match="zip"):
        run_nodes(_graph(RANK, AFTER), _work(*[np.ones(7)] * columns), 2, BEGIN)
