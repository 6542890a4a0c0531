"""Runs the cases of one number of ranks in interleaved rounds, one thread or one device per rank: run as a module by
`launch`.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from simulator.calibrate.devices import Measured, device_of
from simulator.calibrate.reference import Reference
from simulator.measure.suite import Case, device_for, suite_of
from simulator.measure.train import Trainer


def main() -> None:
    """Build every case, warm up, then a step of each per round; write processor and elapsed seconds of each step."""
    folder, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    task: dict[str, Any] = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    device = device_of(device_for(task["suite"]))
    device.use()
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    cases = [case for case in suite_of(task["suite"]) if case.strategy.devices == ranks and case.name in task["names"]]
    trainers = {case.name: Trainer(case, rank) for case in cases}
    reference = Reference(device)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in trainers}
    order = list(trainers)
    for turn in range(task["rounds"] + 1):
        random.Random(turn).shuffle(order)  # noqa: S311
        for name in order:
            timed = _timed(trainers[name], ranks, device)
            if turn:
                times[name].append({**timed, **reference.seconds()})
    peaks = {} if device.name == "cpu" else {name: peak_bytes(entry, rank, device) for name, entry in _alone(trainers)}
    (folder / f"{rank}.json").write_text(json.dumps({"times": times, "peaks": peaks}), encoding="utf-8")
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


def _timed(trainer: Trainer, ranks: int, device: Measured) -> dict[str, float]:
    """Seconds that one step takes of the device (all of this process, on a processor), and elapsed ones."""
    if ranks > 1:
        dist.barrier()
    wall = time.perf_counter()
    spent = device.seconds(trainer.step)
    return {"cpu": spent, "wall": time.perf_counter() - wall}


def _alone(trainers: dict[str, Trainer]) -> Iterator[tuple[str, Case]]:
    """Cases one after the other, once nothing else is held: an allocator's peak is that of the whole process."""
    cases = {name: trainer.case for name, trainer in trainers.items()}
    trainers.clear()
    yield from cases.items()


def peak_bytes(case: Case, rank: int, device: Measured) -> float:
    """The device's own peak in the second step of a case [B]."""
    trainer = Trainer(case, rank)
    trainer.step()
    return device.peak_bytes(trainer.step)


if __name__ == "__main__":
    main()
