"""One step as a Chrome trace (JSON), which Perfetto opens (version 52 loads every slice and arrow without an error).

Format: "Trace Event Format" (Google, 2016): complete events X, flows s and f, counters C, metadata M; times in
microseconds. Processes are pipeline ranks, threads their streams.
"""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError, Problem
from simulator.io.files import replaced
from simulator.report.memory_curve import memory_curve
from simulator.result import Estimate
from simulator.schedule.timeline import Columns

MAX_EVENTS = 1_000_000
"""The Perfetto page loads a million JSON events; a file of 900 MB crashed it (google/perfetto issue 99)."""
STREAMS = ("compute", "communication", "send", "receive", "host", "gradients")
MAX_LANES = 4
"""Threads that one stream may take: a rank has two neighbours, and sends activations and gradients to each."""
_WORDS = {"F": "forward", "B": "input gradient", "W": "weight gradient", "BW": "backward"}
_COLOURS = {"F": "good", "B": "rail_animation", "W": "rail_response", "BW": "rail_animation"}
"""Names of the viewer's reserved colours."""

Event = dict[str, Any]
Seconds = npt.NDArray[np.float64]
Nanoseconds = npt.NDArray[np.int64]


def write_trace(answer: Estimate, path: Path, *, ranks: Sequence[int] = (), force: bool = False) -> dict[str, int]:
    """Write the gzipped trace of a step and return what it holds: ranks, slices, flows, counters.

    `ranks` keeps only those pipeline ranks (all otherwise). Equal answers make equal bytes. Raises InputError where the
    file cannot be written, exists already (without `force`), a rank is not there, or events exceed a million.
    """
    count = {"ranks": 0, "slices": 0, "flows": 0, "counters": 0}
    kind = {"M": "", "X": "slices", "s": "flows", "f": "", "C": "counters"}
    encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
    table = _kept(answer, ranks)
    with (
        replaced(path, force=force) as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0, compresslevel=5) as packed,
        io.TextIOWrapper(packed, encoding="ascii") as text,
    ):
        text.write('{"displayTimeUnit":"ms","traceEvents":[')
        for index, event in enumerate(_events(answer, table)):
            text.write((",\n" if index else "\n") + encode(event))
            if kind[event["ph"]]:
                count[kind[event["ph"]]] += 1
            count["ranks"] += event["name"] == "process_name"
        text.write("\n]}\n")
    return count


def trace_events(answer: Estimate, ranks: Sequence[int] = ()) -> list[Event]:
    """The events of `write_trace`, as a list."""
    return list(_events(answer, _kept(answer, ranks)))


def _kept(answer: Estimate, ranks: Sequence[int]) -> Columns:
    """The timeline's table, of the wanted ranks only."""
    line = answer.timeline()
    strange = sorted(set(ranks) - set(range(line.order.pp)))
    if strange:
        raise InputError([Problem(f"{strange[0]} is no pipeline rank: there are 0 to {line.order.pp - 1}.", "--ranks")])
    table = answer.step().columns()
    table["number"] = np.arange(len(table["rank"]))
    if ranks:
        keep = np.isin(table["rank"], np.asarray(ranks))
        table = {name: column[keep] for name, column in table.items()}
    # Slices, both ends of every arrow, and what is held from the start and from the end of a task on.
    of_stream = {stream: int((table["stream"] == stream).sum()) for stream in ("compute", "receive")}
    events = len(table["rank"]) + 2 * (of_stream["receive"] + of_stream["compute"])
    if events > MAX_EVENTS:
        hint = "--ranks 0,1 keeps the streams of a few pipeline ranks."
        raise InputError([Problem(f"{events:,} events are more than viewers load ({MAX_EVENTS:,}).", "--ranks", hint)])
    table["lane"] = _lanes(table)
    return table


def _events(answer: Estimate, table: Columns) -> Iterator[Event]:
    kept = [int(rank) for rank in np.unique(table["rank"])]
    yield from _names(answer, kept, table)
    yield from _slices(table)
    yield from _flows(answer, table)
    yield from _counters(answer, kept)


def _names(answer: Estimate, kept: list[int], table: Columns) -> Iterator[Event]:
    lanes = sorted(set(zip(table["rank"].tolist(), table["stream"].tolist(), table["lane"].tolist(), strict=True)))
    for rank in kept:
        yield _meta("process_name", rank, name=f"pipeline rank {rank}")
        yield _meta("process_labels", rank, labels=f"{answer.model} on {answer.cluster}")
        yield _meta("process_sort_index", rank, sort_index=rank)
        for _, stream, lane in (each for each in lanes if each[0] == rank):
            tid = _tid(stream, lane)
            yield {**_meta("thread_name", rank, name=f"{stream} {lane + 1}" if lane else stream), "tid": tid}
            yield {**_meta("thread_sort_index", rank, sort_index=tid), "tid": tid}


def _meta(what: str, pid: int, **args: Any) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "args": args}


def _tid(stream: str, lane: int) -> int:
    """The thread of a stream's lane, from 1: Perfetto takes thread 0 of process p for thread p, and mixes the two."""
    return MAX_LANES * STREAMS.index(stream) + lane + 1


def _lanes(table: Columns) -> Nanoseconds:
    """The lane of each task of the table: 0, or more where a stream does two things at a time, as receiving from both
    sides. In one lane slices follow each other or lie within each other; viewers drop others.
    """
    start_ns, end_ns = _ns(table["start_s"]), _ns(table["end_s"])
    lane = np.zeros(len(start_ns), np.int64)
    ends: dict[tuple[int, str, int], list[int]] = {}
    for row in np.lexsort((-end_ns, start_ns)).tolist():
        begins, finishes = int(start_ns[row]), int(end_ns[row])
        for number in range(MAX_LANES):
            around = ends.setdefault((int(table["rank"][row]), str(table["stream"][row]), number), [])
            while around and around[-1] <= begins:
                around.pop()
            if not around or finishes <= around[-1]:
                around.append(finishes)
                lane[row] = number
                break
    return lane


def _slices(table: Columns) -> Iterator[Event]:
    """The tasks in the order of time; of those that start together the longest first, so that the others lie in it."""
    start_ns, end_ns = _ns(table["start_s"]), _ns(table["end_s"])
    order = np.lexsort((-end_ns, start_ns))
    names = ("rank", "stream", "lane", "stage", "micro_batch", "kind")
    columns = [table[name][order].tolist() for name in names]
    columns += [start_ns[order].tolist(), (end_ns - start_ns)[order].tolist()]
    for rank, stream, lane, stage, micro_batch, kind, begins_ns, takes_ns in zip(*columns, strict=True):
        word = _WORDS.get(kind, kind)
        event = {
            "ph": "X", "name": f"{word} {micro_batch}" if micro_batch >= 0 else word, "cat": stream,
            "pid": rank, "tid": _tid(stream, lane), "ts": _us(begins_ns), "dur": _us(takes_ns),
            "args": {"stage": stage, "micro_batch": micro_batch, "kind": kind},
        }  # fmt: skip
        if stream == "compute" and kind in _COLOURS:
            event["cname"] = _COLOURS[kind]
        yield event


def _flows(answer: Estimate, table: Columns) -> Iterator[Event]:
    """An arrow from each send to its receive: the timeline lists both in the same order."""
    whole = answer.step().columns()["stream"]
    start_ns = _ns(table["start_s"]).tolist()
    pair_of = {stream: np.cumsum(whole == stream) - 1 for stream in ("send", "receive")}
    ends = {}
    for stream in ("send", "receive"):
        mine = np.flatnonzero(table["stream"] == stream)
        ends[stream] = dict(zip(pair_of[stream][table["number"][mine]].tolist(), mine.tolist(), strict=True))
    for pair in sorted(ends["send"].keys() & ends["receive"].keys()):
        for phase, stream, extra in (("s", "send", {}), ("f", "receive", {"bp": "e"})):
            row = ends[stream][pair]
            yield {"ph": phase, "name": "activation" if table["kind"][row] == "F" else "gradient", "cat": "transfer",
                   "id": pair, "pid": int(table["rank"][row]), "tid": _tid(stream, int(table["lane"][row])),
                   "ts": _us(start_ns[row]), **extra}  # fmt: skip


def _counters(answer: Estimate, kept: list[int]) -> Iterator[Event]:
    curve = memory_curve(answer)
    for rank in kept:
        time_s, held_bytes = curve.of_rank(rank)
        # Of several changes at one moment a viewer keeps one: the last.
        moments_ns = _ns(time_s)
        last = np.append(moments_ns[1:] > moments_ns[:-1], True)
        for moment_ns, held in zip(moments_ns[last].tolist(), held_bytes[last].tolist(), strict=True):
            yield {"ph": "C", "name": "memory", "pid": rank, "ts": _us(moment_ns), "args": {"bytes": round(held)}}


def _ns(seconds: Seconds) -> Nanoseconds:
    """Whole nanoseconds, which is what viewers keep."""
    return np.rint(seconds * 1e9).astype(np.int64)


def _us(moment_ns: int) -> float:
    """The microseconds that a viewer reads as this nanosecond, whether it rounds or cuts: a slice that ran over into
    the next one by a rounding would be dropped.
    """
    us = moment_ns / 1000
    return us if int(us * 1000) >= moment_ns else math.nextafter(us, math.inf)
