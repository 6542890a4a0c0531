"""Kill a sweep by SIGKILL at random moments, resume it each time, and compare the table with an undisturbed one.

A fifth of the moments lie anywhere in the first four seconds (imports, the journal's opening); the others follow a
random number of new rows, so that they lie all over the work however slow the machine is.

    python tools/chaos.py [--kills 100] [--seed 0] [--file examples/sweep_ten_thousand.toml]

Prints one JSON document: kills, rows that were committed and later missing (must be 0), and whether the final table has
the same bytes. Exit 1 when something was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from simulator.errors import InputError
from simulator.sweep.journal import FILE, read_rows
from simulator.sweep.points import read_sweep


def start(file: Path, out: Path, *, resume: bool, workers: int) -> subprocess.Popen[bytes]:
    """The command as a user runs it, in a process group of its own."""
    command = [sys.executable, "-m", "simulator", "sweep", str(file), "--out", str(out), "--workers", str(workers)]
    return subprocess.Popen(
        [*command, *(["--resume"] if resume else [])], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def keys_in(out: Path) -> set[str]:
    """Keys that the journal holds; none before it exists."""
    try:
        return set(read_rows(out))
    except InputError:
        return set()


def outlived(process: subprocess.Popen[bytes], out: Path, draw: random.Random, *, before: int, most: int) -> bool:
    """Wait for the moment to kill, after at most `most` new rows; whether the process is still there then."""
    early = draw.random() < 0.2
    wanted, until = before + draw.randint(1, most), time.monotonic() + draw.uniform(0.05, 1.5)
    while process.poll() is None:
        if (time.monotonic() > until) if early else (rows_in(out) >= wanted):
            time.sleep(0.0 if early else draw.uniform(0.0, 0.1))
            return process.poll() is None
        time.sleep(0.02)
    return False


def rows_in(out: Path) -> int:
    """How many rows the journal holds; 0 before it exists."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{out / FILE}?mode=ro", uri=True)) as data:
            return int(data.execute("SELECT count(*) FROM points").fetchone()[0])
    except sqlite3.Error:
        return 0


def chaos(file: Path, kills: int, seed: int, workers: int) -> dict[str, Any]:
    """Kill and resume so many times, then let it finish beside an undisturbed run."""
    draw = random.Random(seed)
    # A quick sweep adds about as many rows again between the wish and the kill.
    most = max(read_sweep(file).size // (2 * kills), 1)
    with tempfile.TemporaryDirectory() as name:
        whole, torn = Path(name) / "whole", Path(name) / "torn"
        started = time.monotonic()
        undisturbed = start(file, whole, resume=False, workers=workers)
        undisturbed.communicate()
        whole_s = time.monotonic() - started
        committed: set[str] = set()
        lost = done = finished = 0
        while done < kills:
            process = start(file, torn, resume=torn.exists(), workers=workers)
            if outlived(process, torn, draw, before=len(committed), most=most):
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
            else:
                finished += 1
            now = keys_in(torn)
            lost += len(committed - now)
            committed |= now
            if finished > 3:
                break
        last = start(file, torn, resume=True, workers=workers)
        last.communicate()
        tables = [(folder / "results.csv").read_bytes() for folder in (whole, torn)]
        return {
            "kills": done, "committed_rows_lost": lost, "rows_before_the_last_run": len(committed),
            "rows": tables[0].count(b"\n") - 1, "same_bytes": tables[0] == tables[1], "seed": seed,
            "undisturbed_s": round(whole_s, 1), "workers": workers,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--file", type=Path, default=ROOT / "examples" / "sweep_ten_thousand.toml")
    options = parser.parse_args()
    result = chaos(options.file, options.kills, options.seed, options.workers)
    print(json.dumps(result, indent=2))
    sys.exit(0 if result["same_bytes"] and not result["committed_rows_lost"] else 1)


if __name__ == "__main__":
    main()
