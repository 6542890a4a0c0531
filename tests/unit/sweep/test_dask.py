"""A sweep on a real local Dask cluster: the same bytes, also when its workers are killed on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulator.errors import InputError
from simulator.sweep.executors import dask_executor
from simulator.sweep.points import SweepSpec
from simulator.sweep.run import Progress, sweep

pytestmark = [pytest.mark.loopback, pytest.mark.filterwarnings("ignore")]

SPEC = SweepSpec(
    case={"model": "gpt2-124m", "cluster": "dgx-a100", "nodes": 1, "seq_len": 256},
    grid={"tp": [1, 2, 4], "global_batch": [8 * n for n in range(1, 33)], "micro_batch": [1, 2]},
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers in processes of their own, watched by a nanny that starts a dead one again."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as started:
        yield started


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("alone")
    sweep(SPEC, folder, workers=0)
    return (folder / "results.csv").read_bytes()


def test_dask_gives_the_same_bytes(cluster: Any, expected: bytes, tmp_path: Path) -> None:
    address = cluster.scheduler_address
    swept = sweep(SPEC, tmp_path, executor=lambda: dask_executor(address))
    assert swept.complete
    assert (tmp_path / "results.csv").read_bytes() == expected


def test_workers_killed_mid_sweep_lose_nothing(cluster: Any, expected: bytes, tmp_path: Path) -> None:
    address = cluster.scheduler_address
    killed: list[int] = []

    def kill(now: Progress) -> None:
        """After the first rows one worker dies by SIGKILL, later the other."""
        pids = [worker.pid for worker in cluster.workers.values() if worker.pid]
        if len(killed) < 2 and now.done > 60 * len(killed):
            victim = next((pid for pid in pids if pid not in killed), None)
            if victim:
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)

    sweep(SPEC, tmp_path, executor=lambda: dask_executor(address), progress=kill)
    assert len(killed) == 2
    assert (tmp_path / "results.csv").read_bytes() == expected


def test_an_address_where_no_scheduler_answers_is_said() -> None:
    with pytest.raises(InputError, match="no Dask scheduler answers"):
        dask_executor("tcp://127.0.0.1:9", timeout_s=1.0)
