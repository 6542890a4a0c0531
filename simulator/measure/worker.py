"""Runs the cases of one number of ranks in interleaved rounds, one thread per rank: run as a module by `launch`."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from simulator.calibrate.reference import Reference
from simulator.measure.suite import suite_of
from simulator.measure.train import Trainer


def main() -> None:
    """Build every case, warm up, then a step of each per round; write processor and elapsed seconds of each step."""
    folder, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    task: dict[str, Any] = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    cases = [case for case in suite_of(task["suite"]) if case.strategy.devices == ranks and case.name in task["names"]]
    trainers = {case.name: Trainer(case, rank) for case in cases}
    reference = Reference()
    times: dict[str, list[dict[str, float]]] = {name: [] for name in trainers}
    order = list(trainers)
    for turn in range(task["rounds"] + 1):
        random.Random(turn).shuffle(order)  # noqa: S311
        for name in order:
            timed = _timed(trainers[name], ranks)
            if turn:
                times[name].append({**timed, **reference.seconds()})
    (folder / f"{rank}.json").write_text(json.dumps({"times": times}), encoding="utf-8")
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


def _timed(trainer: Trainer, ranks: int) -> dict[str, float]:
    """Processor and elapsed seconds of one step on this rank."""
    if ranks > 1:
        dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.step()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


if __name__ == "__main__":
    main()
