"""Times every bench in interleaved rounds, in seconds of one thread or of one device: run as a module by `launch`."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simulator.calibrate.devices import Host, Measured, device_of
from simulator.calibrate.kernels import Bench, benches
from simulator.calibrate.reference import Reference

RESIDENT_ELEMENTS = 12_000_000
"""Elements of the copies that one pass runs over: beyond the last-level cache of usual processors."""
COPIES = 32
HOST = Host()
SLICE_S = 0.012
"""Time of one timing: a thousand times the clock's grain."""


def copies_of(bench: Bench, resident_elements: int = RESIDENT_ELEMENTS) -> list[list[Tensor]]:
    """Inputs of a bench often enough that one pass over them leaves the caches."""
    first = bench.make()
    size = sum(tensor.numel() for tensor in first)
    more = int(min(max(resident_elements / size, 2), COPIES)) - 1
    return [first, *([_twin(tensor) for tensor in first] for _ in range(more))]


def _twin(tensor: Tensor) -> Tensor:
    """The same values in memory of their own."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def time_bench(
    bench: Bench, copies: list[list[Tensor]] | None = None, device: Measured = HOST
) -> tuple[float, float | None]:  # fmt: skip
    """(forward, backward) seconds of one call.

    A training step writes every output to memory that no cache holds, because it keeps them for the backward: calls
    run over copies whose outputs live until the pass ends.
    """
    copies = copies_of(bench) if copies is None else copies
    forward, backward, count = 0.0, 0.0, 0
    warm = False
    while not warm or count == 0 or (forward + backward < SLICE_S and count < 2000):
        there, back = _pass(bench, copies, device)
        if warm:
            forward, backward, count = forward + there, backward + back, count + len(copies)
        warm = True
    return forward / count, backward / count if bench.backward is not None else None


def _pass(bench: Bench, copies: list[list[Tensor]], device: Measured) -> tuple[float, float]:
    """Seconds of one forward pass over the copies, and of one backward pass where there is one."""
    outputs: list[Tensor] = []
    forward = device.seconds(lambda: outputs.extend([bench.run(*inputs) for inputs in copies]))
    if bench.backward is None:
        return forward, 0.0
    gradients = [torch.ones_like(output) for output in outputs]
    backward = device.seconds(lambda: torch.autograd.backward(outputs, gradients))
    for inputs in copies:
        for tensor in inputs:
            tensor.grad = None
    return forward, backward


def main() -> None:
    """Read task.json, time in rounds until the time is up (two at least, if so many are asked), write all seconds."""
    folder, rank = Path(sys.argv[1]), sys.argv[2]
    task: dict[str, Any] = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    device = device_of(task["device"])
    device.use()
    torch.manual_seed(0)
    begun = time.monotonic()
    found = [bench for dtype in task["dtypes"] for bench in benches(dtype, quick=task["quick"])]
    order = list(range(len(found)))
    seconds: list[list[tuple[float, float | None]]] = [[] for _ in found]
    rounds = 0
    reference, references = Reference(device), []
    # Another round when it still fits: it takes as long as the mean of those before.
    while rounds < min(2, task["rounds"]) or (
        rounds < task["rounds"] and (time.monotonic() - begun) * (rounds + 1) / max(rounds, 1) < task["budget_s"]
    ):
        random.Random(rounds).shuffle(order)  # noqa: S311
        for index in order:
            seconds[index].append(time_bench(found[index], device=device))
            if index % 4 == 0:
                references.append(reference.seconds())
        rounds += 1
    rows = [
        {"charged": charged, "seconds": [pair[place] for pair in timed]}
        for bench, timed in zip(found, seconds, strict=True)
        for place, charged in enumerate((bench.forward, bench.backward))
        if charged is not None
    ]
    answer = {"rows": rows, "rounds": rounds, "references": references}
    (folder / f"{rank}.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
