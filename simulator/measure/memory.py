"""Peak memory of a training step by torch's own tracker of tensors: run as a module by `launch`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.distributed._tools.mem_tracker import MemTracker

from simulator.measure.suite import Case, suite_of
from simulator.measure.train import Trainer


def peak_bytes(case: Case) -> float:
    """Peak bytes of the second step of a single-process case: parameters, gradients, optimizer and activations [B]."""
    trainer = Trainer(case, 0)
    tracker = MemTracker()
    tracker.track_external(*trainer.parts.values(), trainer.optimizer)
    with tracker:
        trainer.step()
        tracker.reset_mod_stats()
        trainer.step()
    snapshot = tracker.get_tracker_snapshot("peak")
    return float(snapshot[torch.device("cpu")]["Total"])


def main() -> None:
    """Read task.json, track the cases of one micro-batch (the tracker follows no more), write their peaks by name."""
    folder, rank = Path(sys.argv[1]), sys.argv[2]
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    cases = [case for case in suite_of(task["suite"]) if case.name in task["names"]]
    peaks = {case.name: peak_bytes(case) for case in cases if case.run.global_batch == case.strategy.micro_batch}
    (folder / f"{rank}.json").write_text(json.dumps(peaks), encoding="utf-8")


if __name__ == "__main__":
    main()
