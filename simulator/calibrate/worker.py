"""Times every bench in interleaved rounds on one thread, in processor seconds: run as a module by `launch`."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simulator.calibrate.kernels import Bench, benches

RESIDENT_ELEMENTS = 12e6
"""Elements of the copies that a cold pass runs over: beyond the last-level cache of usual processors."""
COPIES = 8
SLICE_S = 0.012
"""Processor time of one timing: a thousand times the clock's grain."""


def time_bench(bench: Bench) -> tuple[float, float | None]:
    """(forward, backward) seconds of one call.

    A step's forward finds its input in the cache, where the kernel before left it, and its backward does not: forward
    repeats on one copy, backward runs over many.
    """
    first = bench.make()
    forward = _forward_s(bench, first)
    if bench.backward is None:
        return forward, None
    size = sum(tensor.numel() for tensor in first)
    copies = [first, *(bench.make() for _ in range(int(min(max(RESIDENT_ELEMENTS / size, 1), COPIES)) - 1))]
    return forward, _backward_s(bench, copies)


def _forward_s(bench: Bench, inputs: list[Tensor]) -> float:
    bench.run(*inputs)
    start = time.process_time()
    bench.run(*inputs)
    once = max(time.process_time() - start, 1e-6)
    count = min(max(int(SLICE_S / once), 2), 2000)
    start = time.process_time()
    for _ in range(count):
        bench.run(*inputs)
    return (time.process_time() - start) / count


def _backward_s(bench: Bench, copies: list[list[Tensor]]) -> float:
    spent, count = 0.0, 0
    while count == 0 or (spent < SLICE_S and count < 2000):
        outputs = [bench.run(*inputs) for inputs in copies]
        gradients = [torch.ones_like(output) for output in outputs]
        start = time.process_time()
        torch.autograd.backward(outputs, gradients)
        spent += time.process_time() - start
        count += len(copies)
        for inputs in copies:
            for tensor in inputs:
                tensor.grad = None
    return spent / count


def main() -> None:
    """Read task.json, time until the time is up (at least two rounds), write the seconds of every round."""
    folder, rank = Path(sys.argv[1]), sys.argv[2]
    task: dict[str, Any] = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    begun = time.monotonic()
    found = [bench for dtype in task["dtypes"] for bench in benches(dtype, quick=task["quick"])]
    order = list(range(len(found)))
    seconds: list[list[tuple[float, float | None]]] = [[] for _ in found]
    rounds = 0
    while rounds < 2 or (rounds < task["rounds"] and time.monotonic() - begun < task["budget_s"] * rounds / (rounds + 1)):
        random.Random(rounds).shuffle(order)
        for index in order:
            seconds[index].append(time_bench(found[index]))
        rounds += 1
    rows = [
        {"charged": charged, "seconds": [pair[place] for pair in timed]}
        for bench, timed in zip(found, seconds, strict=True)
        for place, charged in enumerate((bench.forward, bench.backward))
        if charged is not None
    ]
    (folder / f"{rank}.json").write_text(json.dumps({"rows": rows, "rounds": rounds}), encoding="utf-8")


if __name__ == "__main__":
    main()
