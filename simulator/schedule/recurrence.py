"""The engine's recurrence, node by node, and its repeating middle written down instead of run.

State: when each rank, its port and its host are free, and when outputs arrive. A node takes the latest of them and
adds its seconds. In a `Zone` the same nodes come again and again, so the recurrence is one map of the (max, +)
algebra; once all of its state has moved by one time `shift` over some periods, all later ones are these plus the
shift (`steady.py`). That is exact; in floating point the state agrees to the last bits, and as the map never widens a
difference, what is written down stays within as many bits of what would have been run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import compress

import numpy as np
import numpy.typing as npt

from simulator.schedule.steady import Zone
from simulator.schedule.wiring import Wiring

Floats = npt.NDArray[np.float64]
_SAME = 8.0 * float(np.finfo(np.float64).eps)
"""Relative to the time reached: two additions in another sequence."""
_LEAST_BLOCK = 128
"""Nodes run at least between two looks at the state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What each node costs, by node in running sequence [s]."""

    seconds: Floats
    sends: Floats
    """The sender's port is busy for so long; empty where nothing is sent."""
    lates: Floats
    launches: Floats
    """The host is busy for so long; empty where launching costs nothing."""
    waits: bool = False
    """The host waits for the device before each task."""
    blocking: bool = False
    """A sender computes nothing until its data has arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """By node in running sequence [s]; `start` and `launched` are empty where launching costs nothing."""

    end: Floats
    sent: Floats
    arrived: Floats
    start: Floats
    launched: Floats


@dataclass(slots=True)
class _State:
    free: list[float]
    port: list[float]
    host: list[float]
    arrival: list[float]
    """First `now` and the stages' parameters, then one entry per node."""
    end: list[float] = field(default_factory=list)
    start: list[float] = field(default_factory=list)
    launched: list[float] = field(default_factory=list)

    def clocks(self) -> tuple[list[float], ...]:
        """What a rank, its host and its port remember, each list once."""
        own = (self.free, self.host)
        return own if self.port is self.free else (*own, self.port)


@dataclass(frozen=True, slots=True)
class _Jump:
    """Nodes at : stop were not run: they are the `period` nodes before `at`, again and again, each time later."""

    at: int
    stop: int
    period: int
    shift_s: float


def run_nodes(graph: Wiring, work: Work, ranks: int, begin: Sequence[float]) -> Times:
    """Runs a wiring. `begin` holds "now" and when each slot's parameters are there [s]."""
    loop = _with_host if work.launches.size else _with_sends if work.sends.size else _plain
    idle = [0.0] * ranks
    free = list(idle)
    state = _State(free=free, port=free if work.blocking else list(idle), host=list(idle), arrival=list(begin))
    jumps: list[_Jump] = []

    def run(first: int, stop: int) -> None:
        loop(state, graph, work, first, stop)

    at = 0
    for zone in graph.zones:
        run(at, zone.first)
        at = _through(zone, state, graph, work, run, jumps)
    run(at, graph.nodes)
    arrived = _expanded(state.arrival[len(begin) :], jumps)
    if loop is _plain:
        return Times(end=arrived, sent=arrived, arrived=arrived, start=np.zeros(0), launched=np.zeros(0))
    end, start, launched = (_expanded(values, jumps) for values in (state.end, state.start, state.launched))
    # What the sum has rounded off must not let an output leave before it is there.
    sent = np.maximum(arrived - (work.sends + work.lates), end)
    return Times(end=end, sent=sent, arrived=arrived, start=start, launched=launched)


def _through(
    zone: Zone, state: _State, graph: Wiring, work: Work, run: Callable[[int, int], None], jumps: list[_Jump]
) -> int:
    """Runs a zone until its state has moved by one time over a span, and skips the rest; gives the next node.

    A span is one period, or as many as there are ranks: the length of the loop of waits from the first rank to the
    last and back, which is the cyclicity of 1F1B whose transfers take time.
    """
    at, period = zone.first, zone.period
    least = max(zone.lookback, _LEAST_BLOCK)
    # What does not make up whole periods is run first, when the state still settles.
    block = least + (zone.stop - zone.first - least) % period
    while at + block + 2 * period <= zone.stop:
        run(at, at + block)
        before = [list(clock) for clock in state.clocks()]
        since = at = at + block
        for span in (period, len(state.free) * period):
            if since + 2 * span > zone.stop:
                break
            run(at, since + span)
            at = since + span
            shift = _shift_s(zone, state, before, _touched(graph, work, since, at), span)
            if shift is not None:
                jump = _Jump(at, at + (zone.stop - at) // span * span, span, shift)
                jumps.append(jump)
                _skip(state, zone, jump, before)
                return jump.stop
        block = period * -(-2 * block // period)
    return at


def _touched(graph: Wiring, work: Work, first: int, stop: int) -> tuple[set[int], ...]:
    """Ranks whose clocks (in the sequence of `_State.clocks`) some nodes move."""
    ranks = graph.rank[first:stop]
    every = set(ranks)
    # Empty where nothing is sent.
    sends = (work.sends[first:stop] > 0) | (work.lates[first:stop] > 0)
    return every, every if work.launches.size else set(), set(compress(ranks, sends.tolist()))


def _shift_s(
    zone: Zone, state: _State, before: Sequence[list[float]], touched: Sequence[set[int]], span: int
) -> float | None:
    """The time by which everything moved that later nodes of the zone read; None where it did not move as one."""
    some = next(iter(touched[0]))
    shift = state.free[some] - before[0][some]
    near = _SAME * max(state.free)
    for now, old, ranks in zip(state.clocks(), before, touched, strict=False):
        if any(abs(now[rank] - old[rank] - shift) > near for rank in ranks):
            return None
    if zone.lookback:
        last, earlier = state.arrival[-zone.lookback :], state.arrival[-zone.lookback - span : -span]
        if (np.abs(np.subtract(last, earlier) - shift) > near).any():
            return None
    return shift


def _skip(state: _State, zone: Zone, jump: _Jump, before: Sequence[list[float]]) -> None:
    """The state as it is at the end of a jump."""
    nodes = jump.stop - jump.at
    times = nodes // jump.period
    for clock, old in zip(state.clocks(), before, strict=True):
        now = np.array(clock)
        clock[:] = np.where(now != old, now + times * jump.shift_s, now).tolist()
    read = min(max(zone.reach, zone.lookback), nodes)
    periods = -(-read // jump.period)
    steps = np.arange(times - periods + 1, times + 1) * jump.shift_s
    last = (np.array(state.arrival[-jump.period :]) + steps[:, None]).ravel()[periods * jump.period - read :]
    state.arrival += [0.0] * (nodes - read)
    state.arrival += last.tolist()
    for outputs in (state.end, state.start, state.launched):
        if outputs:
            outputs.extend([0.0] * nodes)


def _expanded(values: list[float], jumps: Sequence[_Jump]) -> Floats:
    """One entry per node: those that ran, and those of the jumps."""
    pieces = []
    at = 0
    for jump in jumps:
        pieces.append(np.array(values[at : jump.at]))
        steps = np.arange(1, (jump.stop - jump.at) // jump.period + 1) * jump.shift_s
        base = np.array(values[jump.at - jump.period : jump.at])
        pieces.append((base + steps[:, None]).ravel())
        at = jump.stop
    pieces.append(np.array(values[at:]))
    return np.concatenate(pieces)


# A call of max() in these loops would cost a third of their speed.


def _plain(state: _State, graph: Wiring, work: Work, first: int, stop: int) -> None:
    free, arrival = state.free, state.arrival
    append = arrival.append
    seconds_of = work.seconds[first:stop].tolist()
    for rank, after, seconds in zip(graph.rank[first:stop], graph.after[first:stop], seconds_of, strict=True):
        time = arrival[after]
        ready = free[rank]
        if time < ready:  # noqa: PLR1730
            time = ready
        time += seconds
        free[rank] = time
        append(time)


def _with_sends(state: _State, graph: Wiring, work: Work, first: int, stop: int) -> None:
    free, port, arrival, blocking = state.free, state.port, state.arrival, work.blocking
    append, ended = arrival.append, state.end.append
    seconds_of, sends, lates = (part[first:stop].tolist() for part in (work.seconds, work.sends, work.lates))
    rows = zip(graph.rank[first:stop], graph.after[first:stop], seconds_of, sends, lates, strict=True)
    for rank, after, seconds, send, late in rows:
        time = arrival[after]
        ready = free[rank]
        if time < ready:  # noqa: PLR1730
            time = ready
        time += seconds
        free[rank] = time
        ended(time)
        if send or late:
            ready = port[rank]
            if time < ready:  # noqa: PLR1730
                time = ready
            time += send
            port[rank] = time + late if blocking else time
            append(time + late)
        else:
            append(time)


def _with_host(state: _State, graph: Wiring, work: Work, first: int, stop: int) -> None:
    free, port, host, arrival = state.free, state.port, state.host, state.arrival
    waits, blocking = work.waits, work.blocking
    columns = (part[first:stop].tolist() for part in (work.seconds, work.sends, work.lates, work.launches))
    rows = zip(graph.rank[first:stop], graph.after[first:stop], *columns, strict=True)
    for rank, after, seconds, send, late, launch in rows:
        # The host is no obstacle here: what runs ends no sooner than its last launch, so the rank is free no sooner.
        time = max(arrival[after], free[rank])
        state.start.append(time)
        host[rank] = (time if waits else host[rank]) + launch
        state.launched.append(host[rank])
        time = max(time + seconds, host[rank])
        free[rank] = time
        state.end.append(time)
        if send or late:
            time = max(time, port[rank]) + send
            port[rank] = time + late if blocking else time
        arrival.append(time + late)
