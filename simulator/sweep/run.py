"""Run a sweep: what is in the journal is not computed again, what is computed is in the journal at once."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator import catalog
from simulator.errors import InputError, Problem
from simulator.sweep.evaluate import FAILED, evaluate_points
from simulator.sweep.executors import InlineExecutor, process_pool
from simulator.sweep.journal import SCHEMA, Journal, digest
from simulator.sweep.points import SweepSpec, checked, planned, point_key, read_sweep
from simulator.sweep.table import frame, write_tables

if TYPE_CHECKING:
    import pandas as pd

BATCH = 16
"""Points per call: a tenth of a second of work, so that a kill costs little and messages cost less."""
Work = tuple[tuple[str, ...], int]
"""Keys of one call, and how often it was tried."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Points with a row, points in all, and seconds that the rest will take at the pace so far (None at first)."""

    done: int
    total: int
    remaining_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """A finished (or stopped) sweep: its points, the row of each or None, and the files that hold them."""

    points: tuple[Mapping[str, Any], ...]
    rows: tuple[Mapping[str, Any] | None, ...]
    files: tuple[Path, ...]
    resumed: int
    """Rows that an earlier run had left."""
    wall_s: float

    @property
    def complete(self) -> bool:
        return all(row is not None for row in self.rows)

    def counts(self) -> dict[str, int]:
        """Rows by status: answered, refused, failed, missing."""
        found: dict[str, int] = {}
        for row in self.rows:
            status = "missing" if row is None else str(row["status"])
            found[status] = found.get(status, 0) + 1
        return found

    def frame(self) -> pd.DataFrame:
        """The table as a pandas DataFrame, one row per point in the order of the file."""
        return frame(self.points, self.rows)


def sweep(
    source: str | Path | SweepSpec,
    out: str | Path,
    *,
    resume: bool = False,
    allow_drift: bool = False,
    executor: Executor | Callable[[], Executor] | None = None,
    workers: int | None = None,
    timeout_s: float | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Swept:
    """Evaluate every point of a sweep file (or SweepSpec) and write journal and tables into the folder `out`.

    `executor` is any `concurrent.futures.Executor`, or a function that makes one (made anew when it breaks); by
    default local processes, one per core or `workers` of them (0: this process). `resume` continues a journal and
    refuses one made from another sweep file, catalogue or version, unless `allow_drift` (which is recorded).
    After `timeout_s` no new points are started. Raises InputError for a bad file or folder.
    """
    spec = read_sweep(Path(source)) if isinstance(source, str | Path) else checked(source)
    by_key = {point_key(point): point for point in spec.points()}
    journal = Journal(Path(out))
    started = time.monotonic()
    try:
        _open(journal, spec, by_key, resume=resume, allow_drift=allow_drift)
        there = journal.done() & set(by_key)
        resumed = len(there)
        todo = [key for key in by_key if key not in there]
        runner = _Runner(journal, by_key, _maker(executor, workers, len(todo)), progress, resumed)
        try:
            runner.run(todo, None if timeout_s is None else started + timeout_s)
        except BaseException:
            # Interrupted, or no room is left for the journal: what was computed can be read, if there is room for that.
            with suppress(InputError):
                _write(journal, by_key)
            raise
        rows, files = _write(journal, by_key)
    finally:
        journal.close()
    return Swept(points=tuple(by_key.values()), rows=rows, files=files, resumed=resumed,
                 wall_s=time.monotonic() - started)  # fmt: skip


def _write(
    journal: Journal, points: Mapping[str, Mapping[str, Any]]
) -> tuple[tuple[Mapping[str, Any] | None, ...], tuple[Path, ...]]:
    """The row of every point or None, and the tables that hold them, written into the journal's folder."""
    known = journal.rows()
    rows = tuple(known.get(key) for key in points)
    return rows, tuple(write_tables(journal.folder, tuple(points.values()), rows))


def _maker(executor: Executor | Callable[[], Executor] | None, workers: int | None, points: int) -> _Pool:
    if isinstance(executor, Executor):
        return _Pool(lambda: executor, owned=False, width=workers or 32)
    if executor is not None:
        return _Pool(executor, owned=True, width=workers or 32)
    count = workers if workers is not None else (os.cpu_count() or 1)
    if count == 0 or points <= BATCH:
        return _Pool(InlineExecutor, owned=True, width=1)
    extra = tuple(str(folder) for folder in catalog.extra_folders())
    return _Pool(lambda: process_pool(count, extra), owned=True, width=4 * count)


@dataclass
class _Pool:
    """How to make an executor, whether it is ours to close, and how many calls to keep waiting in it."""

    make: Callable[[], Executor]
    owned: bool
    width: int


class _Runner:
    """Keeps an executor busy and writes down what comes back."""

    def __init__(
        self, journal: Journal, points: Mapping[str, Mapping[str, Any]], pool: _Pool,
        progress: Callable[[Progress], None] | None, done: int,
    ) -> None:  # fmt: skip
        self._journal, self._points, self._pool = journal, points, pool
        self._progress = progress
        self._first = self._done = done
        self._started = time.monotonic()

    def run(self, todo: list[str], deadline: float | None) -> None:
        # A plan takes seconds, and a kill must not cost several.
        size = 1 if any(planned(self._points[key]) for key in todo) else BATCH
        queue: deque[Work] = deque((tuple(todo[at : at + size]), 0) for at in range(0, len(todo), size))
        self._tell()
        if not queue:
            return
        executor = self._pool.make()
        flying: dict[Future[Any], Work] = {}
        try:
            while queue or flying:
                late = deadline is not None and time.monotonic() > deadline
                if late:
                    queue.clear()
                broken = self._submit(executor, queue, flying)
                if flying:
                    finished, _ = wait(flying, return_when=FIRST_COMPLETED)
                    broken |= self._collect(finished, flying, queue)
                if broken:
                    executor = self._renewed(executor, flying, queue)
        finally:
            if self._pool.owned:
                executor.shutdown(wait=False, cancel_futures=True)

    def _submit(self, executor: Executor, queue: deque[Work], flying: dict[Future[Any], Work]) -> bool:
        while queue and len(flying) < self._pool.width:
            work = queue.popleft()
            try:
                flying[executor.submit(evaluate_points, [self._points[key] for key in work[0]])] = work
            except BrokenExecutor:
                queue.appendleft(work)
                return True
        return False

    def _collect(self, finished: set[Future[Any]], flying: dict[Future[Any], Work], queue: deque[Work]) -> bool:
        broken = False
        rows: list[tuple[str, Mapping[str, Any]]] = []
        for future in finished:
            keys, tries = flying.pop(future)
            try:
                rows += zip(keys, future.result(), strict=True)
            except (Exception, CancelledError) as error:  # noqa: BLE001
                # A worker died, or the wire did: try again point by point, then write down that it failed.
                broken |= isinstance(error, BrokenExecutor)
                rows += self._again(keys, tries, error, queue)
        if rows:
            self._journal.record(rows)
            self._done += len(rows)
            self._tell()
        return broken

    @staticmethod
    def _again(
        keys: tuple[str, ...], tries: int, error: BaseException, queue: deque[Work]
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if tries == 0:
            queue.extendleft(((key,), 1) for key in reversed(keys))
            return
        message = f"its worker died twice: {type(error).__name__}"
        yield from ((key, {"status": FAILED, "message": message}) for key in keys)

    def _renewed(self, executor: Executor, flying: dict[Future[Any], Work], queue: deque[Work]) -> Executor:
        """A new executor for a broken one; what flew in it flies again (a neighbour's crash is not its own)."""
        if not self._pool.owned:
            raise InputError([Problem("the executor is broken: its workers died.", "executor", "What was computed is "
                              "kept; resume with a new one.")])  # fmt: skip
        for keys, tries in flying.values():
            queue.appendleft((keys, tries))
        flying.clear()
        executor.shutdown(wait=False, cancel_futures=True)
        return self._pool.make()

    def _tell(self) -> None:
        if self._progress is None:
            return
        fresh, passed = self._done - self._first, time.monotonic() - self._started
        left = len(self._points) - self._done
        self._progress(Progress(self._done, len(self._points), left * passed / fresh if fresh else None))


def _open(
    journal: Journal, spec: SweepSpec, points: Mapping[str, Mapping[str, Any]], *, resume: bool, allow_drift: bool
) -> None:
    """Begin a journal, or check that it is the one to continue."""
    wanted = {
        "schema": SCHEMA,
        # The package is the roof; what it says of itself is read without importing it.
        "version": str(vars(sys.modules["simulator"])["__version__"]),
        "sweep": digest(sorted(points)),
        "catalogue": digest(_catalogue_texts(points.values())),
    }
    found = journal.meta()
    if not found:
        journal.set_meta({**wanted, "title": spec.title})
        return
    if not resume:
        raise InputError([Problem("holds a sweep already.", str(journal.folder), "Continue it with --resume, or name "
                          "another folder.")])  # fmt: skip
    changed = [name for name, value in wanted.items() if found.get(name) != value]
    if "schema" in changed:
        raise InputError([Problem("was written by another version of the journal.", str(journal.folder))])
    if changed and not allow_drift:
        raise InputError([Problem(f"was begun with another {' and another '.join(changed)}.", str(journal.folder),
                          "Its rows may differ: begin anew, or accept that with --allow-drift.")])  # fmt: skip
    if changed:
        journal.set_meta({**wanted, f"drift {sum(name.startswith('drift') for name in found) + 1}": ", ".join(changed)})
    journal.forget(FAILED)


def _catalogue_texts(points: Any) -> list[str]:
    """The files that the points name, by kind and name, with the devices and calibrations behind them."""
    texts: list[str] = []
    named: dict[str, set[str]] = {"models": set(), "clusters": set(), "frameworks": set()}
    for point in points:
        named["models"].add(point["model"])
        named["clusters"].add(point["cluster"])
        named["frameworks"].add(point.get("framework", "megatron-core"))
    for kind, found in named.items():
        texts += [f"{kind} {name} {_text(kind, name)}" for name in sorted(found)]
    for kind in ("devices", "calibration"):
        texts += [f"{kind} {name} {_text(kind, name)}" for name in catalog.names(kind)]
    return texts


def _text(kind: str, name: str) -> str:
    """What an entry says, or that it is unknown (its points will be refused, each with the reason)."""
    try:
        return repr(sorted(catalog.catalog_table(kind, name).items()))
    except InputError as error:
        return str(error)
