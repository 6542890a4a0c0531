"""Sweeps run, stop, die and go on; whoever computes them, the table has the same bytes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from simulator.errors import InputError
from simulator.sweep import evaluate
from simulator.sweep import run as run_module
from simulator.sweep.executors import InlineExecutor, ray_executor
from simulator.sweep.journal import read_rows
from simulator.sweep.points import SweepSpec
from simulator.sweep.run import Progress, Swept, sweep

SPEC = SweepSpec(
    case={"model": "gpt2-124m", "cluster": "dgx-a100", "nodes": 1, "seq_len": 256},
    grid={"tp": [1, 2, 3, 4], "global_batch": [8, 16], "cluster.tiers.nvswitch.bandwidth": ["x1", "x2", "x4"]},
)
FILE = """
[case]
model = "gpt2-124m"
cluster = "dgx-a100"
nodes = 1
seq_len = 256
[grid]
tp = [1, 2, 3, 4]
global_batch = [8, 16]
"cluster.tiers.nvswitch.bandwidth" = ["x1", "x2", "x4"]
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Swept, bytes]:
    """The sweep in one go, and the bytes of its table."""
    folder = tmp_path_factory.mktemp("whole")
    swept = sweep(SPEC, folder, workers=0)
    return swept, (folder / "results.csv").read_bytes()


def test_every_point_has_its_row(whole: tuple[Swept, bytes]) -> None:
    swept, table = whole
    assert swept.complete
    assert swept.counts() == {"answered": 18, "refused": 6}
    assert all(row["status"] == ("refused" if point["tp"] == 3 else "answered")
               for point, row in zip(swept.points, swept.rows, strict=True) if row)  # fmt: skip
    assert table.count(b"\n") == 25


def test_the_tables_say_the_same(whole: tuple[Swept, bytes]) -> None:
    swept, _ = whole
    text, binary = pd.read_csv(swept.files[0]), pd.read_parquet(swept.files[1])
    assert list(text.columns) == list(binary.columns) == list(swept.frame().columns)
    assert text["step_time_s"].equals(binary["step_time_s"])
    assert binary["fits"].dtype == "boolean"
    assert binary["step_time_s"].isna().sum() == 6


@pytest.mark.parametrize("executor", [lambda: ThreadPoolExecutor(3), InlineExecutor])
def test_any_executor_gives_the_same_bytes(whole: tuple[Swept, bytes], tmp_path: Path, executor: Any) -> None:
    sweep(SPEC, tmp_path, executor=executor)
    assert (tmp_path / "results.csv").read_bytes() == whole[1]


def test_processes_give_the_same_bytes(whole: tuple[Swept, bytes], tmp_path: Path) -> None:
    sweep(SPEC, tmp_path, workers=2)
    assert (tmp_path / "results.csv").read_bytes() == whole[1]


def test_a_file_and_a_spec_are_the_same_sweep(whole: tuple[Swept, bytes], tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(FILE, encoding="utf-8")
    sweep(file, tmp_path / "out", workers=0)
    assert (tmp_path / "out" / "results.csv").read_bytes() == whole[1]


class _StandIn:
    """What a sweep uses of Ray: remote functions whose results are futures."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.pool = ThreadPoolExecutor(2)

    def init(self, **settings: Any) -> None:
        self.settings = settings

    def remote(self, function: Any) -> Any:
        def call(*given: Any) -> Any:
            return SimpleNamespace(future=lambda: self.pool.submit(function, *given))

        return SimpleNamespace(remote=call)

    def shutdown(self) -> None:
        self.pool.shutdown()


@pytest.mark.parametrize(("address", "told"), [("local", None), ("auto", "auto")])
def test_remote_functions_give_the_same_bytes(
    whole: tuple[Swept, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, told: str | None
) -> None:
    ray = _StandIn()
    monkeypatch.setitem(sys.modules, "ray", ray)
    sweep(SPEC, tmp_path, executor=lambda: ray_executor(address))
    assert (tmp_path / "results.csv").read_bytes() == whole[1]
    assert ray.settings["address"] == told
    with pytest.raises(RuntimeError, match="after shutdown"):
        ray.pool.submit(len, ())


def test_ray_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"Ray is not installed.*shardwise\[ray\]"):
        ray_executor("local")


def _kill_moments(total: int) -> list[int]:
    return sorted({0, 1, total // 3, total // 2, total - 1})


def test_killed_at_any_row_and_resumed_nothing_is_lost(whole: tuple[Swept, bytes], tmp_path: Path) -> None:
    """The process dies by SIGKILL right after the n-th row was written; the next run goes on from there."""
    file, out = tmp_path / "sweep.toml", tmp_path / "out"
    file.write_text(FILE, encoding="utf-8")
    code = (
        "import os, signal, sys; from simulator.sweep import run; run.BATCH = 1\n"
        "def stop(now):\n"
        "    if now.done >= int(sys.argv[3]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "run.sweep(sys.argv[1], sys.argv[2], resume=os.path.exists(sys.argv[2]), workers=0, progress=stop)\n"
    )
    for moment in _kill_moments(24):
        done = subprocess.run(
            [sys.executable, "-c", code, str(file), str(out), str(moment)], check=False, capture_output=True,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert len(read_rows(out)) == moment
    swept = sweep(file, out, resume=True, workers=0)
    assert swept.resumed == 23
    assert (out / "results.csv").read_bytes() == whole[1]


def test_a_killed_sweep_leaves_no_workers_behind(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(FILE.replace("tp = [1, 2, 3, 4]", f"tp = {[1] + [2, 4] * 1}").replace(
        "[8, 16]", str([8 * n for n in range(1, 200)])), encoding="utf-8")  # fmt: skip
    parent = subprocess.Popen(
        [sys.executable, "-m", "simulator", "sweep", str(file), "--out", str(tmp_path / "out"), "--workers", "2"],
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    children = _wait_for(lambda: _descendants(parent.pid), 60)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert children
    assert _wait_for(lambda: not any(_alive(pid) for pid in children), 30)


def _descendants(pid: int) -> list[int]:
    """Worker processes of a process, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_text()
            except OSError:
                continue
            if int(fields[1]) == pid and "spawn_main" in command:
                found.append(int(entry.name))
    return found


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def _wait_for(condition: Any, most_s: float) -> Any:
    until = time.monotonic() + most_s
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def test_partial_results_can_be_read_while_it_runs(tmp_path: Path) -> None:
    seen = []

    def look(now: Progress) -> None:
        seen.append((now.done, len(read_rows(tmp_path))))

    sweep(SPEC, tmp_path, workers=0, progress=look)
    assert seen == [(0, 0), (16, 16), (24, 24)]


def test_progress_has_a_total_and_a_remaining_time(tmp_path: Path) -> None:
    told: list[Progress] = []
    sweep(SPEC, tmp_path, workers=0, progress=told.append)
    assert told[0] == Progress(0, 24, None)
    assert all(now.total == 24 and now.remaining_s is not None for now in told[1:])
    assert told[-1].remaining_s == 0.0


def test_a_second_sweep_into_a_folder_is_refused(tmp_path: Path) -> None:
    def intrude(now: Progress) -> None:
        if now.done == 16:
            with pytest.raises(InputError, match="another sweep is writing here"):
                sweep(SPEC, tmp_path, resume=True, workers=0)

    sweep(SPEC, tmp_path, workers=0, progress=intrude)
    with pytest.raises(InputError, match="holds a sweep already"):
        sweep(SPEC, tmp_path, workers=0)


def test_another_sweep_is_not_continued_unless_drift_is_allowed(tmp_path: Path) -> None:
    sweep(SPEC, tmp_path, workers=0)
    more = SweepSpec(case=SPEC.case, grid={**SPEC.grid, "tp": [1, 2, 3, 4, 8]})
    with pytest.raises(InputError, match=r"another sweep.*--allow-drift"):
        sweep(more, tmp_path, resume=True, workers=0)
    swept = sweep(more, tmp_path, resume=True, allow_drift=True, workers=0)
    assert (swept.resumed, len(swept.rows)) == (24, 30)
    with sqlite3.connect(tmp_path / "sweep.sqlite") as data:
        assert dict(data.execute("SELECT name, value FROM meta"))["drift 1"] == "sweep"


def test_a_timeout_keeps_what_there_is(tmp_path: Path) -> None:
    swept = sweep(SPEC, tmp_path, workers=0, timeout_s=0.0)
    assert not swept.complete
    assert sweep(SPEC, tmp_path, workers=0, resume=True).complete


class Dying(Executor):
    """An executor whose worker dies on every call with a certain point, and takes its neighbours along."""

    def __init__(self, victim: int) -> None:
        self.victim, self.dead = victim, False

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.dead:
            raise BrokenProcessPool
        future: Future[Any] = Future()
        if any(point["tp"] == self.victim and point["global_batch"] == 8 for point in args[0]):
            self.dead = True
            future.set_exception(BrokenProcessPool())
        else:
            future.set_result(fn(*args, **kwargs))
        return future


def test_a_dead_worker_costs_its_own_points_only(whole: tuple[Swept, bytes], tmp_path: Path) -> None:
    swept = sweep(SPEC, tmp_path, executor=lambda: Dying(2))
    failed = [point for point, row in zip(swept.points, swept.rows, strict=True) if row and row["status"] == "failed"]
    assert {(point["tp"], point["global_batch"]) for point in failed} == {(2, 8)}
    assert len(failed) == 3
    sweep(SPEC, tmp_path, resume=True, workers=0)
    assert (tmp_path / "results.csv").read_bytes() == whole[1]


def test_a_broken_executor_of_the_callers_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="executor is broken"):
        sweep(SPEC, tmp_path, executor=Dying(2))


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        sweep(SPEC, tmp_path / "file", workers=0)
    with pytest.raises(InputError, match="holds no sweep"):
        read_rows(tmp_path)


def test_a_defect_in_one_point_does_not_lose_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(evaluate, "estimate", broken)
    swept = sweep(SPEC, tmp_path, workers=0)
    assert swept.counts() == {"failed": 24}
    assert swept.rows[0] == {"status": "failed", "message": "ZeroDivisionError: oops"}


def test_rows_hold_numbers_that_are_finite(whole: tuple[Swept, bytes]) -> None:
    json.dumps(list(whole[0].rows), allow_nan=False)
    assert run_module.BATCH == 16
