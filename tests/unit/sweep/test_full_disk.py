"""A disk that takes no more: one clear error, everything that was committed, and a resume once there is room."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.sweep import table
from simulator.sweep.journal import Journal, read_rows
from simulator.sweep.points import SweepSpec
from simulator.sweep.run import sweep

SPEC = SweepSpec(
    case={"model": "gpt2-124m", "cluster": "dgx-a100", "nodes": 1, "seq_len": 256},
    grid={"tp": [1, 2, 4], "global_batch": [8, 16, 24, 32, 40, 48, 56, 64]},
)
SMALL = """
import resource, signal, sys
# A file that may not grow fails as one on a full disk does.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
from simulator.errors import InputError
from simulator.sweep.points import SweepSpec
from simulator.sweep.run import sweep
try:
    sweep(SweepSpec(case=%r, grid=%r), sys.argv[1], workers=0)
except InputError as error:
    print(len(error.problems), error)
"""


def test_a_journal_without_room_keeps_its_rows_and_goes_on_later(tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    sweep(SPEC, whole, workers=0)
    done = subprocess.run(
        [sys.executable, "-c", SMALL % (SPEC.case, SPEC.grid), str(torn), "70000"], check=True, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert done.stdout.startswith(f"1 {torn}/sweep.sqlite: cannot be written")
    assert done.stdout.endswith("What was committed is kept.\n")
    assert done.stderr == ""
    assert len(read_rows(torn)) == 16
    swept = sweep(SPEC, torn, resume=True, workers=0)
    assert swept.resumed == 16
    assert (torn / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_a_table_without_room_leaves_the_old_one_and_no_scrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "results.csv").write_text("old")
    monkeypatch.setattr(table.os, "fsync", full)
    with pytest.raises(InputError, match=r"results\.csv: cannot be written: No space left on device"):
        sweep(SPEC, tmp_path, workers=0)
    assert (tmp_path / "results.csv").read_text() == "old"
    assert not list(tmp_path.glob(".*.tmp"))
    assert len(read_rows(tmp_path)) == 24
    monkeypatch.undo()
    assert sweep(SPEC, tmp_path, resume=True, workers=0).resumed == 24


def test_a_failed_transaction_changes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        journal.set_meta({"title": "kept?", "bad": object()})
    assert journal.meta() == {}
    journal.set_meta({"title": "kept"})
    assert journal.meta() == {"title": "kept"}
    journal.close()
