"""The journal of a sweep: one SQLite file that survives a kill at any moment and can be read at any moment."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simulator.errors import InputError, Problem

SCHEMA = "1"
FILE, LOCK = "sweep.sqlite", "lock.sqlite"


class Journal:
    """Rows by point key. Write-ahead logging: a commit is whole or absent, and readers never wait."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = _locked(folder)
        try:
            self._data = sqlite3.connect(folder / FILE, isolation_level=None)
            self._data.execute("PRAGMA journal_mode=WAL")
            self._data.execute("PRAGMA synchronous=FULL")
            self._data.execute("CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
            self._data.execute(
                "CREATE TABLE IF NOT EXISTS points "
                "(key TEXT PRIMARY KEY, status TEXT NOT NULL, result TEXT NOT NULL) WITHOUT ROWID"
            )
        except sqlite3.Error as error:
            self._lock.close()
            raise unusable(folder / FILE, error) from None

    def meta(self) -> dict[str, str]:
        """What was written when the sweep began, and every drift since."""
        return dict(self._data.execute("SELECT name, value FROM meta"))

    def set_meta(self, values: Mapping[str, str]) -> None:
        """Write (or overwrite) entries."""
        with self._transaction():
            self._data.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(values.items()))

    def done(self) -> set[str]:
        """Keys of the points that have a row."""
        return {key for (key,) in self._data.execute("SELECT key FROM points")}

    def record(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Add rows in one transaction. A key that has a row already keeps it."""
        prepared = [(key, row["status"], json.dumps(row, allow_nan=False)) for key, row in rows]
        with self._transaction():
            self._data.executemany("INSERT OR IGNORE INTO points VALUES (?, ?, ?)", prepared)

    def forget(self, status: str) -> int:
        """Drop the rows of one status, so that their points are tried again; how many."""
        with self._transaction():
            return self._data.execute("DELETE FROM points WHERE status = ?", (status,)).rowcount

    def rows(self) -> dict[str, dict[str, Any]]:
        """Every row by key."""
        return dict(_rows(self._data))

    def close(self) -> None:
        """Fold the log into the file and let others in."""
        self._data.close()
        self._lock.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing. Raises InputError where the disk takes no more; what was committed before stays."""
        try:
            self._data.execute("BEGIN IMMEDIATE")
            yield
            self._data.execute("COMMIT")
        except BaseException as error:
            # A full disk has rolled back by itself.
            if self._data.in_transaction:
                self._data.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise unusable(self.folder / FILE, error) from None
            raise


def read_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows that a journal holds now, by key, while a sweep may be running.

    Raises InputError where there is no journal.
    """
    file = folder / FILE
    if not file.is_file():
        raise InputError([Problem("holds no sweep.", str(folder))])
    try:
        data = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)
        try:
            return dict(_rows(data))
        finally:
            data.close()
    except sqlite3.Error as error:
        raise unusable(file, error) from None


def _rows(data: sqlite3.Connection) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, result in data.execute("SELECT key, result FROM points"):
        yield key, json.loads(result)


def _locked(folder: Path) -> sqlite3.Connection:
    """Hold the folder for this process: a second sweep into it is refused. A killed process lets go by itself."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = sqlite3.connect(folder / LOCK, isolation_level=None, timeout=0.2)
    except (OSError, sqlite3.Error) as error:
        raise unusable(folder, error) from None
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        lock.close()
        if "locked" in str(error):
            raise InputError([Problem("another sweep is writing here.", str(folder), "Wait for it.")]) from None
        raise unusable(folder, error) from None
    return lock


def unusable(path: Path, error: Exception) -> InputError:
    """What a file of a sweep says when the disk is full, broken or read-only."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputError([Problem(f"cannot be written: {reason}.", str(path), "What was committed is kept.")])


def digest(texts: Iterable[str]) -> str:
    """One hash of several texts, in order."""
    total = hashlib.sha256()
    for text in texts:
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()
