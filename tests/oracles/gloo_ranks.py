"""Starts real gloo ranks on loopback, in a network namespace of their own where the machine allows one, and counts the
bytes that loopback carried. Run as a program it is the parent of the ranks, or (with a rank) one of them.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "send")
SIZES = (1 << 20, 1 << 22)
REPEATS = 12
STEPS = ("tp", "tp+sp", "fsdp")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ran:
    """What some ranks did: every rank's collectives in each small step, and the bytes that loopback carried for each
    collective ("all_gather 1048576") and large step ("fsdp").
    """

    events: list[dict[str, list[list[Any]]]]
    loopback: dict[str, float]


def run_ranks(ranks: int, folder: Path) -> Ran:
    """Start ranks and wait for them. The bytes are the least of some repeats: a segment that TCP sent again because its
    receiver had no core in time, or the traffic of others where they share loopback, only adds.
    """
    own = ["unshare", "--map-root-user", "--net"]
    alone = shutil.which("unshare") is not None and subprocess.run([*own, "true"], check=False).returncode == 0
    command = [sys.executable, "-m", "tests.oracles.gloo_ranks", str(ranks), str(folder), str(int(alone))]
    environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PATH": os.environ.get("PATH", ""),
                   "PYTHONPATH": str(ROOT)}  # fmt: skip
    made = subprocess.run(
        [*(own if alone else []), *command], check=False, capture_output=True, text=True, timeout=900, cwd=ROOT,
        env=environment,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    read = [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]
    return Ran(events=[each["events"] for each in read], loopback=read[0]["loopback"])


def start_loopback() -> None:
    """A new namespace's loopback is down: SIOCSIFFLAGS sets IFF_UP and IFF_RUNNING."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sh22x", b"lo", 0x41))


def loopback_bytes() -> int:
    """What loopback has sent so far, headers included."""
    (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def run_collective(kind: str, size: int, ranks: int, rank: int) -> None:
    """One collective whose full buffer has `size` bytes."""
    import torch
    import torch.distributed as dist

    full, part = torch.ones(size // 4), torch.ones(size // 4 // ranks)
    if kind == "all_reduce":
        dist.all_reduce(full)
    elif kind == "all_gather":
        dist.all_gather_into_tensor(full, part)
    elif kind == "reduce_scatter":
        dist.reduce_scatter_tensor(part, full)
    elif kind == "all_to_all":
        dist.all_to_all_single(torch.empty_like(full), full)
    elif kind == "broadcast":
        dist.broadcast(full, 0)
    elif kind == "reduce":
        dist.reduce(full, 0)
    elif rank == 0:
        dist.send(full, 1)
    elif rank == 1:
        dist.recv(full, 0)


def least_bytes(run: Callable[[], object]) -> int:
    """The least bytes of repeats between barriers; no more repeats once the two least agree within 0.2 % on rank 0."""
    import torch
    import torch.distributed as dist

    seen: list[int] = []
    for _ in range(REPEATS):
        dist.barrier()
        time.sleep(0.02)
        before = loopback_bytes()
        dist.barrier()
        run()
        dist.barrier()
        time.sleep(0.02)
        seen = sorted([*seen, loopback_bytes() - before])
        agree = torch.tensor(len(seen) > 1 and seen[1] < 1.002 * seen[0])
        dist.broadcast(agree, 0)
        if agree:
            break
    return seen[0]


def one_rank(rank: int, ranks: int, folder: Path) -> None:
    """Join the group, run everything between barriers, write what was issued and carried."""
    import torch.distributed as dist

    from tests.oracles.test_torch_gloo import step

    dist.init_process_group("gloo", rank=rank, world_size=ranks, store=dist.FileStore(str(folder / "store"), ranks))
    events = {kind: step(kind, ranks) for kind in STEPS}
    todo: dict[str, Any] = {f"{kind} {size}": partial(run_collective, kind, size, ranks, rank)
                            for kind in KINDS for size in SIZES}  # fmt: skip
    todo |= {kind: partial(step, kind, ranks, large=True) for kind in STEPS}
    found = {name: least_bytes(run) for name, run in todo.items()}
    (folder / f"{rank}.json").write_text(json.dumps({"events": events, "loopback": found}), encoding="utf-8")
    dist.barrier()
    os._exit(0)  # gloo's threads may outlive the interpreter and abort it; what is tested has been written.


def main() -> int:
    """The parent starts the ranks in its own namespace."""
    ranks, folder, alone = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "1"
    if len(sys.argv) > 4:
        one_rank(int(sys.argv[4]), ranks, folder)
    if alone:
        start_loopback()
    command = [sys.executable, "-m", "tests.oracles.gloo_ranks", *sys.argv[1:]]
    started = [subprocess.Popen([*command, str(rank)]) for rank in range(ranks)]
    return max(process.wait() for process in started)


if __name__ == "__main__":
    sys.exit(main())
