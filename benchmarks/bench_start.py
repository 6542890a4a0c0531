"""How quickly the command answers when little is asked."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable

from benchmarks.benchmark import Benchmark


def _child(*arguments: str) -> Callable[[], Callable[[], float]]:
    """CPU seconds of one python process, start and end included."""

    def call() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    return lambda: call


BENCHMARKS = [
    Benchmark(name="bare python", prepare=_child("-c", "pass"), calls=3),
    Benchmark(name="shardwise --help", prepare=_child("-m", "simulator", "--help"), target_s=0.25, calls=3),
    Benchmark(name="import simulator", prepare=_child("-c", "import simulator"), calls=3),
]
