"""Peak memory of a training step by torch's own tracker of tensors: run as a module by `launch`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker

from simulator.measure.suite import Case, suite_of
from simulator.measure.train import Trainer
from simulator.validate.torch_counts.collectives import fake_world


def peak_bytes(case: Case) -> float:
    """Peak bytes of the second step of a case that `is_tracked`: parameters, gradients, optimizer and activations [B].

    A rank of FSDP runs in a fake group: what is made and freed is the same, and nothing is sent. Its update is not
    tracked: fused, it allocates nothing, and DTensor's sharding propagation would be booked at global shapes.
    """
    if case.strategy.zero == 3:
        with fake_world(case.strategy.devices):
            return _sharded_peak_bytes(Trainer(case, 0))
    trainer = Trainer(case, 0)
    tracker = MemTracker()
    tracker.track_external(*trainer.parts.values(), trainer.optimizer)
    with tracker:
        trainer.step()
        tracker.reset_mod_stats()
        trainer.step()
    return _total(tracker)


def _sharded_peak_bytes(trainer: Trainer) -> float:
    trainer.step()
    model, ids = trainer.parts[0], trainer.ids[0]
    tracker = FSDPMemTracker(model, trainer.optimizer)
    tracker.track_inputs((ids,))
    with tracker:
        model(ids, ids).backward()
    return _total(tracker)


def _total(tracker: MemTracker) -> float:
    return float(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


def is_tracked(case: Case) -> bool:
    """Whether torch has a tracker for a case: one process or FSDP, and one micro-batch (it follows no more)."""
    strategy = case.strategy
    one = case.run.global_batch == strategy.micro_batch * strategy.dp
    return one and (strategy.devices == 1 or (strategy.zero == 3 and strategy.dp == strategy.devices))


def main() -> None:
    """Read task.json, track the cases that can be, write their peaks by name."""
    folder, rank = Path(sys.argv[1]), sys.argv[2]
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    cases = [case for case in suite_of(task["suite"]) if case.name in task["names"]]
    peaks = {case.name: peak_bytes(case) for case in cases if is_tracked(case)}
    (folder / f"{rank}.json").write_text(json.dumps(peaks), encoding="utf-8")


if __name__ == "__main__":
    main()
