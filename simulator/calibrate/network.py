"""Times gloo's collectives on this machine, and how compute slows when ranks run at once: run as a module."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from simulator.calibrate.sharing import UNIT_BYTES, Shared, time_sharding

KINDS = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "send")
CALLS_S = 0.08
MOST_CALLS = 16
"""Elapsed time of one timing, so that a few collectives are averaged, and the most calls of it."""
LEAST_S = 1e-6
"""A clock's grain: no call is charged less."""
LARGE_KINDS = ("all_gather", "reduce_scatter")
"""Collectives that take whole models at once. Above 64 MiB glibc gives a thread of gloo's pages of their own in every
call (HEAP_MAX_SIZE of malloc/arena.c), which costs more per byte."""


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


class Between:
    """What a rank computes between two collectives: a product, and a sum that streams through the caches.

    In a training step ranks do not wait for each other all the time: a message finds its receiver at work, which its
    arrival interrupts, and buffers that have left the nearest cache. On more ranks than cores that costs more than the
    collective alone.
    """

    def __init__(self) -> None:
        self.a, self.b, self.c = torch.ones(112, 560), torch.ones(560, 560), torch.empty(112, 560)
        self.x, self.y = torch.ones(1_000_000), torch.ones(1_000_000)

    def run(self) -> None:
        """About two milliseconds of one core."""
        torch.mm(self.a, self.b, out=self.c)
        torch.add(self.x, 1.0, out=self.y)


def time_collective(
    kind: str, size_bytes: int, ranks: int, group: Any, between: Callable[[], None] | None = None
) -> tuple[float, float]:  # fmt: skip
    """(elapsed, processor) seconds of one call on this rank, with what runs `between` two calls taken off."""
    call = operation(kind, size_bytes, ranks, group)
    call()
    start = time.perf_counter()
    call()
    once = torch.tensor([time.perf_counter() - start])
    dist.all_reduce(once, op=dist.ReduceOp.MAX, group=group)
    count = min(max(int(CALLS_S / float(once)), 1), MOST_CALLS)
    return _timed(call, between or (lambda: None), count, group)


def _timed(call: Callable[[], Any], between: Callable[[], None], count: int, group: Any) -> tuple[float, float]:
    """The whole process less its computing thread: what is left is the collective's, in all of gloo's threads."""
    dist.barrier(group)
    wall, cpu = -time.perf_counter(), -time.process_time()
    for _ in range(count):
        begun, spent = time.perf_counter(), time.thread_time()
        between()
        wall, cpu = wall - (time.perf_counter() - begun), cpu - (time.thread_time() - spent)
        call()
    return (wall + time.perf_counter()) / count, (cpu + time.process_time()) / count


def time_kind(kind: str, sizes: Sequence[int], ranks: int, group: Any, into: dict[str, Any]) -> None:
    """Time a collective at every size between computations. Collective."""
    between = Between()
    for size in sizes:
        pair = time_collective(kind, size, ranks, group, between.run)
        into.setdefault(f"{kind} {ranks} {size}", []).append([max(seconds, LEAST_S) for seconds in pair])


def exchange_seconds(group: Any) -> float:
    """Processor seconds of what a tiny sharded unit exchanges: two gathers and a scatter [s]. Collective."""
    ranks = dist.get_world_size(group)
    gather, scatter = (time_collective(kind, UNIT_BYTES, ranks, group)[1] for kind in ("all_gather", "reduce_scatter"))
    return 2 * gather + scatter


def main() -> None:
    """Collectives on 2, 4, ... ranks, kernels on 1, 2, ... ranks at once, and the host's part of sharding."""
    folder, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    task: dict[str, Any] = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    times: dict[str, Any] = {}
    shared = Shared(task["shared_every"])
    counts = [count for count in (2, 4, 8, 16) if count <= ranks]
    groups = {count: dist.new_group(list(range(count))) for count in counts}
    for turn in range(task["rounds"]):
        for count in counts:
            if rank < count:
                for kind in KINDS:
                    large = task["large_sizes"] if kind in LARGE_KINDS else []
                    time_kind(kind, [*task["sizes"], *large], count, groups[count], times)
            dist.barrier()
        shared.time(counts, rank, turn)
    sharding = time_sharding(groups[2], exchange_seconds(groups[2])) if rank < 2 else None
    dist.barrier()
    dist.destroy_process_group()
    answer = {"times": times, "shared": shared.timed, "sharding": sharding}
    (folder / f"{rank}.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
