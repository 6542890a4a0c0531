"""What a checkpoint weighs, how long writing it takes, and how long training stands still for it."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.arch.operations import Number, largest
from simulator.parallel.states import optimizer_bytes, stored_bytes
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy

DEVICE_WRITE_BYTES_PER_S = 150e6
"""Rate at which one device's share reaches shared storage: BLOOM wrote 2.3 TB from 384 A100 in 40 s
(bigscience chronicles)."""
HOST_COPY_BYTES_PER_S = 20e9
"""Device to pinned host memory over PCIe 4 x16: 25 to 26 GB/s at best (stas00/ml-engineering), four fifths of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One checkpoint: its size [B], the devices that write it, and its times [s]."""

    size_bytes: float
    writers: int
    write_s: float
    """Until it is safe on storage."""
    blocking_s: float
    """Training stands still: all of the writing, or only the copy to host memory when it is asynchronous."""

    @property
    def lag_s(self) -> float:
        """From the moment training goes on until the checkpoint is safe."""
        return self.write_s - self.blocking_s


def bytes_per_parameter(run: Run, framework: Framework) -> float:
    """Weights, fp32 master copy and moments of one parameter [B]; gradients are not kept.

    14 for Adam in mixed precision: 2 + 4 + 8 (BLOOM: 2.3 TB for 176 B parameters).
    """
    return stored_bytes(run, framework) + optimizer_bytes(run, framework)


def checkpoint_writers(strategy: Strategy) -> int:
    """Devices that write: all of them when optimizer states are sharded, else one replica (its tp and pp ranks)."""
    if strategy.zero:
        return strategy.devices
    return int(replica_writers(strategy.tp, strategy.pp, strategy.ep, strategy.etp))


def replica_writers(tp: Number, pp: Number, ep: Number, etp: Number) -> Number:
    """Devices that hold one replica's weights between them: its tp and pp ranks, and those its experts spread over."""
    return tp * pp * largest([1, ep * etp // tp])


def checkpoint(
    size_bytes: float, writers: int, *, storage_bytes_per_s: float | None = None, asynchronous: bool = False
) -> Checkpoint:
    """Times of one checkpoint.

    Each writer sends its share at 150 MB/s (BLOOM's measured rate) unless `storage_bytes_per_s`, the write bandwidth
    of the storage for the whole job, is given. An asynchronous one blocks for the copy to host memory only.

    >>> round(checkpoint(2.3e12, 384).write_s)
    40
    """
    rate = writers * DEVICE_WRITE_BYTES_PER_S if storage_bytes_per_s is None else storage_bytes_per_s
    write_s = size_bytes / rate
    copy_s = size_bytes / writers / HOST_COPY_BYTES_PER_S
    blocking_s = min(copy_s, write_s) if asynchronous else write_s
    return Checkpoint(size_bytes=size_bytes, writers=writers, write_s=write_s, blocking_s=blocking_s)
