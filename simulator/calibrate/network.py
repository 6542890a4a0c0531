"""Times gloo's collectives on this machine, and how compute slows when ranks run at once: run as a module."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from simulator.calibrate.reference import Reference

KINDS = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "send")
CALLS_S = 0.08
"""Elapsed time of one timing, so that a few collectives are averaged."""


SHARED_REPEATS = 8
"""Timings of the reference kernels in a row, while other ranks run them too."""


def operation(kind: str, size_bytes: int, ranks: int, group: Any) -> Callable[[], None]:
    """A collective on the full buffer of `size_bytes`, as `simulator.cluster` counts it.

    Gathers and scatters write to memory that is new in every call, as sharded training gives it to them.
    """
    count = max(size_bytes // 4 // ranks, 1)
    full, part = torch.ones(count * ranks), torch.ones(count)
    parts = [torch.ones(count) for _ in range(ranks)]
    members = dist.get_process_group_ranks(group)
    me = members.index(dist.get_rank())
    calls: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: dist.all_reduce(full, group=group),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(torch.empty_like(part), full, group=group),
        "all_gather": lambda: dist.all_gather_into_tensor(torch.empty_like(full), part, group=group),
        "all_to_all": lambda: dist.all_to_all(list(full.chunk(ranks)), parts, group=group),
        "broadcast": lambda: dist.broadcast(full, members[0], group=group),
        "send": lambda: _ping(full, me, members, group),
    }  # fmt: skip
    return calls[kind]


def _ping(buffer: Tensor, me: int, members: list[int], group: Any) -> None:
    """Half of the ranks send to the other half: each is busy with one message."""
    if me % 2 == 0:
        dist.send(buffer, members[me + 1], group=group)
    else:
        dist.recv(buffer, members[me - 1], group=group)


def time_collective(kind: str, size_bytes: int, ranks: int, group: Any) -> tuple[float, float]:
    """(elapsed, processor) seconds of one call on this rank."""
    call = operation(kind, size_bytes, ranks, group)
    call()
    start = time.perf_counter()
    call()
    once = torch.tensor([time.perf_counter() - start])
    dist.all_reduce(once, op=dist.ReduceOp.MAX, group=group)
    count = min(max(int(CALLS_S / float(once)), 2), 200)
    dist.barrier(group)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        call()
    return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count


def main() -> None:
    """Collectives on 2, 4, ... ranks, then the reference kernels on 1, 2, ... ranks at once."""
    folder, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    task: dict[str, Any] = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    times: dict[str, Any] = {}
    sharing: dict[str, Any] = {}
    reference = Reference()
    counts = [count for count in (2, 4, 8, 16) if count <= ranks]
    groups = {count: dist.new_group(list(range(count))) for count in counts}
    for turn in range(task["rounds"]):
        for count in counts:
            if rank < count:
                for kind in KINDS:
                    for size in task["sizes"]:
                        pair = time_collective(kind, size, count, groups[count])
                        times.setdefault(f"{kind} {count} {size}", []).append(pair)
            dist.barrier()
        for count in (1, *counts):
            # Long enough at once that the system deals out the cores as it does in a training step.
            for _ in range(SHARED_REPEATS if rank < count else 0):
                sharing.setdefault(str(count), []).append(reference.seconds())
            dist.barrier()
        del turn
    dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps({"times": times, "sharing": sharing}), encoding="utf-8")


if __name__ == "__main__":
    main()
