"""Worker processes with a fixed environment: one thread each, an allocator that keeps its pages, joined by gloo.

The default allocator of glibc returns large blocks to the kernel every step, and page faults then cost 5 to 12 % of
it; OpenMP's waiting threads count as processor time. Calibration and measured steps run under the same settings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulator.errors import InputError

ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184:"
                      "glibc.malloc.top_pad=67108864",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}  # fmt: skip


def run_ranks(module: str, task: Mapping[str, Any], ranks: int, *, timeout_s: float) -> list[Any]:
    """Run `python -m module` on so many ranks and return what each wrote as JSON, by rank.

    A worker gets its folder, rank and ranks as arguments; it reads task.json there and writes RANK.json. Raises
    InputError with the end of a failing worker's errors, or when time runs out.
    """
    with tempfile.TemporaryDirectory(prefix="shardwise-") as name:
        folder = Path(name)
        (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}
        logs = [(folder / f"{rank}.log").open("w", encoding="utf-8") for rank in range(ranks)]
        workers = [
            subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", module, str(folder), str(rank), str(ranks)],
                env=environment, stdout=log, stderr=log,
            )
            for rank, log in enumerate(logs)
        ]  # fmt: skip
        try:
            for worker in workers:
                worker.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise InputError([f"{module} did not finish within {timeout_s:.0f} s on {ranks} ranks."]) from None
        finally:
            for worker, log in zip(workers, logs, strict=True):
                worker.kill()
                worker.wait()
                log.close()
        return [_answer(folder, rank, worker.returncode, module) for rank, worker in enumerate(workers)]


def _answer(folder: Path, rank: int, code: int, module: str) -> Any:
    path = folder / f"{rank}.json"
    if code or not path.is_file():
        said = (folder / f"{rank}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise InputError([f"{module} failed on rank {rank}: {' | '.join(said[-3:])[-600:]}"])
    return json.loads(path.read_text(encoding="utf-8"))
