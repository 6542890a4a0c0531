"""Reads a calibrated machine: device and cluster in one file, as `shardwise calibrate` writes it.

Times are numbers in seconds and sizes in bytes, each key or table saying so; quantities with units are text as in
every other file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import PurePath
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from simulator.errors import InputError, Problem
from simulator.spec.hardware import Cluster, Device, Tier
from simulator.spec.hardware_file import Bytes, BytesPerS, FlopsPerS, Text
from simulator.spec.kernels import Curve, MeasuredKernels, assumed_model
from simulator.spec.reading import Document, Fault, raise_faults, validated

Coefficient = Annotated[float, Field(ge=0)]
Point = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]
Points = Annotated[list[Point], Field(min_length=1)]
Ranks = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}$")]
Clock = Literal["wall", "cpu"]

SUM_TERMS: Mapping[str, tuple[str, ...]] = {
    "gemm": ("call_s", "mnk_s", "mk_s", "kn_s", "mn_s"),
    "attention": ("call_s", "pair_width_s", "pair_s", "grid_s", "row_s"),
    "sharding": ("call_s", "unit_s", "tensor_s"),
}
"""Coefficients of each kind of sum."""
MOVING = ("mk_s", "kn_s", "mn_s", "row_s")
"""Coefficients of what is read and written, not multiplied."""
NEEDED_CURVES = ("plain", "lookup")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class MachineTable(_Table):
    """Who was measured, when, and how quiet it was."""

    processor: Text
    cores: Annotated[int, Field(ge=1)]
    system: Text
    python: Text
    torch: Text
    date: Text
    ranks: Annotated[int, Field(ge=1)]
    """Largest number of ranks that collectives were measured on."""
    wall_s: float
    """How long the calibration took."""
    load_before: float
    load_after: float
    """Runnable processes (one-minute load average) when it began and ended."""
    spread_fraction: float
    """Median over benchmarks of the interquartile range of its rounds over their median."""
    reference_s: dict[Literal["product", "memory"], Annotated[float, Field(gt=0)]]
    """Processor seconds of the two reference kernels while the others were measured."""


class DeviceTable(_Table):
    memory: Bytes
    memory_bandwidth: BytesPerS
    cache: Bytes | None = None
    vector: FlopsPerS
    peak: Annotated[dict[Literal["fp32", "bf16", "fp16"], FlopsPerS], Field(min_length=1)]


class KernelsTable(_Table):
    sums: dict[str, dict[str, Coefficient]]
    curves: dict[str, Points]
    residuals: dict[str, dict[str, float]] = {}
    sharing: dict[Ranks, dict[str, float]] = {}
    """CPU time when so many ranks run at once, over that of one rank: of the reference kernels ("product", "memory"),
    and of products and of what moves bytes while other ranks run either ("matrix", "moving")."""


class MachineFile(_Table):
    title: Text
    generation: Literal["cpu", "hopper", "ampere", "blackwell", "volta", "ada"] = "cpu"
    vendor: Text
    machine: MachineTable
    device: DeviceTable
    kernels: KernelsTable
    collectives: dict[Clock, dict[str, dict[Ranks, Points]]] = {}
    """Seconds over bytes of the full buffer, by clock (elapsed or spent by the processor), kind and ranks."""


def is_machine(document: Document) -> bool:
    """Whether a document is a calibrated machine rather than a cluster or a device."""
    return isinstance(document.table.get("machine"), dict)


def _faults(file: MachineFile) -> Iterator[Fault]:
    for name, terms in file.kernels.sums.items():
        kind = name.partition(".")[0]
        wanted = SUM_TERMS[kind if kind in SUM_TERMS else "attention" if kind.startswith("attention") else "gemm"]
        if set(terms) != set(wanted):
            yield ("kernels", "sums", name), f"its coefficients must be {', '.join(wanted)}.", ""
    for curve in NEEDED_CURVES:
        if curve not in file.kernels.curves:
            yield ("kernels", "curves"), f"{curve} is missing.", ""
    tables: dict[tuple[str, ...], list[list[float]]]
    tables = {("kernels", "curves", name): points for name, points in file.kernels.curves.items()}
    for clock, kinds in file.collectives.items():
        for kind, by_ranks in kinds.items():
            tables |= {("collectives", clock, kind, ranks): points for ranks, points in by_ranks.items()}
    for key, points in tables.items():
        for before, after in pairwise(points):
            if after[0] <= before[0] or after[1] < before[1]:
                yield key, f"{after} follows {before}: sizes must grow and times must not fall.", ""
                break


def read_machine(document: Document, *, nodes: int | None = None, clock: Clock = "wall") -> Cluster:
    """The machine as a cluster whose nodes are its ranks, one thread each.

    `clock` chooses the collectives' times: "wall" elapsed, "cpu" spent by the processor on each rank. Raises
    InputError with every problem and its line, and for more nodes than ranks were calibrated.
    """
    file = validated(document, MachineFile)
    raise_faults(document, _faults(file))
    name = PurePath(document.path).stem
    ranks = file.machine.ranks if nodes is None else nodes
    if not 1 <= ranks <= file.machine.ranks:
        message = f"{name} was calibrated with 1 to {file.machine.ranks} ranks (its nodes), not {ranks}."
        raise InputError([Problem(message, "--nodes", "`shardwise calibrate --ranks` measures more.")])
    source = f"measured on {file.machine.date} by shardwise calibrate ({document.path})"
    # Elapsed, ranks beyond the cores wait for their turn; processor time does not count waiting.
    turns = max(ranks / file.machine.cores, 1.0) if clock == "wall" else 1.0
    device = _device(file, name, source, _shared(file.kernels, ranks, turns))
    tier = Tier(
        name="machine", kind="loopback", topology="switch", size=ranks,
        bandwidth_bytes_per_s=_largest_rate(file, clock), latency_s=0.0, sources={"tier": source},
    )  # fmt: skip
    curves = {kind: {int(count): _busy(points, _among(file, int(count), ranks, clock))
                     for count, points in by_ranks.items()}
              for kind, by_ranks in file.collectives.get(clock, {}).items()}  # fmt: skip
    return Cluster(
        name=name, title=file.title, device=device, devices_per_node=1, nodes=ranks, tiers=(tier,),
        curves=curves, sources={"status": "measured", "cluster": source},
    )  # fmt: skip


def _among(file: MachineFile, count: int, ranks: int, clock: Clock) -> float:
    """How much longer a collective of `count` ranks takes while `ranks` are busy: it was measured with its own alone.

    It is work that moves bytes, so it slows as that does; elapsed, it also waits for its turn.
    """
    if ranks <= count:
        return 1.0
    slower = [slowdown(file.kernels.sharing, busy)["moving"] for busy in (count, ranks)]
    cores = file.machine.cores
    turns = max(ranks / cores, 1.0) / max(count / cores, 1.0) if clock == "wall" else 1.0
    return turns * max(slower[1] / slower[0], 1.0)


def slowdown(sharing: Mapping[str, Mapping[str, float]], ranks: int) -> dict[str, float]:
    """Processor time on so many ranks at once over that on one: of the reference "product" and "memory" kernels, of
    "matrix" products and of what is "moving" bytes.

    Between measured numbers of ranks it is straight in the ranks; never below 1. Where only the reference kernels were
    measured, the others slow as they do.

    >>> slowdown({"1": {"product": 1.0, "memory": 1.0}, "3": {"product": 0.9, "memory": 1.5}}, 2)
    {'product': 1.0, 'memory': 1.25, 'matrix': 1.0, 'moving': 1.25}
    """
    counts = sorted(sharing, key=int)
    if not counts:
        return dict.fromkeys(("product", "memory", "matrix", "moving"), 1.0)
    places = [int(count) for count in counts]
    result = {}
    for name, stand_in in (("product", ""), ("memory", ""), ("matrix", "product"), ("moving", "memory")):
        key = name if name in sharing[counts[0]] else stand_in
        result[name] = max(float(np.interp(ranks, places, [sharing[count][key] for count in counts])), 1.0)
    return result


def _shared(kernels: KernelsTable, ranks: int, turns: float) -> MeasuredKernels:
    """The kernels as they run while so many ranks share the machine; `turns` stretches all of them.

    Where whole products were measured on several ranks they slow as those did; else what a product does in its cache
    slows as the reference product does, and its operands as the reference sum.
    """
    slower = {name: turns * factor for name, factor in slowdown(kernels.sharing, ranks).items()}
    whole = any("matrix" in factors for factors in kernels.sharing.values())

    def stretched(term: str, value: float) -> float:
        return value * slower["matrix" if whole or term not in MOVING else "moving"]

    return MeasuredKernels(
        sums={name: {term: stretched(term, value) for term, value in terms.items()}
              for name, terms in kernels.sums.items()},
        curves={kernel: _busy(points, slower["moving"]) for kernel, points in kernels.curves.items()},
    )  # fmt: skip


def _busy(points: list[list[float]], factor: float) -> Curve:
    return tuple((size, seconds * factor) for size, seconds in points)


def _device(file: MachineFile, name: str, source: str, measured: MeasuredKernels) -> Device:
    base = assumed_model("cpu")
    known = ("peak", "vector", "memory", "memory_bandwidth", "cache")
    return Device(
        name=name, title=file.title, vendor=file.vendor, generation=file.generation,
        peak_flops_per_s={str(dtype): peak for dtype, peak in file.device.peak.items()},
        vector_flops_per_s=file.device.vector, memory_bytes=file.device.memory,
        memory_bandwidth_bytes_per_s=file.device.memory_bandwidth, cache_bytes=file.device.cache or 0.0,
        units=1,
        kernels=type(base)(constants=base.constants, provenance="fitted", source=source,
                           residuals=file.kernels.residuals, measured=measured),
        sources={"status": "measured", **dict.fromkeys(known, source)},
    )  # fmt: skip


def _largest_rate(file: MachineFile, clock: Clock) -> float:
    sends = file.collectives.get(clock, {}).get("send", {})
    rates = [size / seconds for points in sends.values() for size, seconds in points]
    return max(rates, default=1e9)
