"""What is measured on: a core of the processor, or one CUDA device; how each takes time and says what it is.

A processor's time is that which the process spent; a device's is what passes between two events of its stream (CUDA
Runtime API, cudaEventElapsedTime), launches included.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from simulator.errors import InputError, Problem

GENERATIONS: Mapping[tuple[int, int], str] = {
    (7, 0): "volta", (8, 0): "ampere", (8, 6): "ampere", (8, 9): "ada", (9, 0): "hopper", (10, 0): "blackwell",
}  # fmt: skip
"""By compute capability (CUDA C++ Programming Guide, table of compute capabilities)."""
NAMES = ("cpu", "cuda")


class Measured(Protocol):
    """A device that kernels are timed on."""

    name: str

    def use(self) -> None:
        """Make new tensors here."""

    def seconds(self, run: Callable[[], Any]) -> float:
        """How long `run` keeps the device busy [s]."""

    def peak_bytes(self, run: Callable[[], Any]) -> float:
        """The largest allocation while `run` runs [B]; 0 where the device does not say."""

    def hardware(self) -> dict[str, Any]:
        """Name, generation, vendor, memory [GiB, as text] and how many ranks compute at once ("cores")."""


class Host:
    """One thread of the processor."""

    name = "cpu"

    def use(self) -> None:
        """Tensors are made here unless told otherwise."""
        import torch

        torch.set_num_threads(1)

    def seconds(self, run: Callable[[], Any]) -> float:
        """Processor seconds of the whole process [s]."""
        start = time.process_time()
        run()
        return time.process_time() - start

    def peak_bytes(self, run: Callable[[], Any]) -> float:
        """The processor's allocator does not say; torch's tracker does (measure/memory.py)."""
        run()
        return 0.0

    def hardware(self) -> dict[str, Any]:
        """From the system."""
        name, cores = _processor(), os.cpu_count() or 1
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        return {"processor": name, "cores": cores, "generation": "cpu", "vendor": name.split()[0],
                "memory": f"{memory:.4g} GiB", "title": f"{name}, {cores} cores, one thread per rank"}  # fmt: skip


class Cuda:
    """The first CUDA device. `cuda` is torch.cuda or what stands for it in a test."""

    name = "cuda"

    def __init__(self, cuda: Any) -> None:
        self.cuda = cuda

    def use(self) -> None:
        """Every tensor that names no device is made on it."""
        import torch

        torch.set_default_device("cuda")

    def seconds(self, run: Callable[[], Any]) -> float:
        """Between two events around what `run` queues [s]."""
        start, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return 1e-3 * float(start.elapsed_time(end))

    def peak_bytes(self, run: Callable[[], Any]) -> float:
        """By torch's caching allocator [B]."""
        self.cuda.reset_peak_memory_stats()
        run()
        self.cuda.synchronize()
        return float(self.cuda.max_memory_allocated())

    def hardware(self) -> dict[str, Any]:
        """From the driver. Raises InputError for a generation that the simulator does not know."""
        found = self.cuda.get_device_properties(0)
        capability = (found.major, found.minor)
        if capability not in GENERATIONS:
            known = ", ".join(f"{major}.{minor}" for major, minor in GENERATIONS)
            message = f"{found.name} has compute capability {found.major}.{found.minor}, which is none of {known}."
            raise InputError([Problem(message, "--device")])
        return {"processor": found.name, "cores": 1, "generation": GENERATIONS[capability], "vendor": "NVIDIA",
                "memory": f"{found.total_memory / 2**30:.4g} GiB", "title": f"{found.name}, one device"}  # fmt: skip


def device_of(name: str, cuda: Any = None) -> Measured:
    """The device of a name ("cpu" or "cuda"). Raises InputError where torch finds no CUDA device."""
    if name == "cpu":
        return Host()
    import torch

    module = torch.cuda if cuda is None else cuda
    if not module.is_available():
        message = "torch finds no CUDA device on this machine."
        raise InputError([Problem(message, "--device", "Leave --device away to measure the processor.")])
    return Cuda(module)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
