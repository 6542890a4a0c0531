"""Reads device and cluster files (hardware/devices, hardware/clusters). `hardware/README.md` explains the format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from simulator.errors import InputError, Problem
from simulator.spec.hardware import Device
from simulator.spec.kernels import KernelModel
from simulator.spec.reading import Document, quantity, validated

Bytes = Annotated[float, quantity("bytes"), Field(gt=0)]
BytesPerS = Annotated[float, quantity("bandwidth"), Field(gt=0)]
FlopsPerS = Annotated[float, quantity("flop_rate"), Field(gt=0)]
Seconds = Annotated[float, quantity("time"), Field(ge=0)]
Watts = Annotated[float, quantity("power"), Field(gt=0)]
UsdPerHour = Annotated[float, quantity("price"), Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Text = Annotated[str, Field(min_length=1)]
Status = Literal["sourced", "secondary", "press", "unverified"]
PeakDtype = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "mxfp8", "nvfp4", "int8", "fp64"]

VECTOR_SHARE = 1.0 / 64.0
"""Vector over bf16 matrix peak where a vendor prints none. A TPU v5p's vector unit does about 7 of 459 TFLOP/s
(jax-ml/scaling-book, tpus.md); A100 19.5 of 312, MI300X 163 of 1307 are higher: the assumption is a low one."""


class _Table(BaseModel):
    """A table of a file: unknown keys are errors, no value is converted, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DeviceFile(_Table):
    """One accelerator, as its file says. Every quantity needs an entry in [sources]."""

    title: Text
    vendor: Text
    generation: Text
    """Devices of a generation share kernel efficiencies and NCCL constants."""
    status: Status
    aliases: list[Name] = []
    cluster: Name | None = None
    """Its usual node and fabric: a name in hardware/clusters."""
    memory: Bytes
    """Installed (what the vendor prints as GB is GiB)."""
    memory_usable: Bytes | None = None
    """What the driver lets programs have, where known: less than installed."""
    memory_bandwidth: BytesPerS
    cache: Bytes | None = None
    """Last-level cache on the device."""
    units: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Streaming multiprocessors, compute units or matrix units."""
    tdp: Watts | None = None
    price: UsdPerHour | None = None
    vector: FlopsPerS | None = None
    """fp32 peak outside the matrix units."""
    peak: Annotated[dict[PeakDtype, FlopsPerS], Field(min_length=1)]
    """Dense peak of the matrix units by dtype."""
    sources: dict[str, Text]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        problems = []
        if self.memory_usable is not None and self.memory_usable > self.memory:
            problems.append(
                f"memory_usable({self.memory_usable:.6g} bytes) > memory({self.memory:.6g} bytes): less is usable "
                "than is installed"
            )
        if not {"fp32", "fp16", "bf16"} & set(self.peak):
            problems.append("peak has none of bf16, fp16 and fp32, so no training step can be timed")
        cited = set(self.sources)
        said = {name for name in _CITED if getattr(self, name) is not None}
        problems += [
            f"sources.{name} is missing: every number names where it is from" for name in _ordered(said - cited)
        ]
        problems += [
            f"sources.{name} cites a key that the file does not have" for name in _ordered(cited - said - _FREE)
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self


_CITED = ("memory", "memory_usable", "memory_bandwidth", "cache", "units", "tdp", "price", "vector", "peak")
_FREE = {"note", "aliases"}


def _ordered(names: set[str]) -> list[str]:
    return sorted(names)


def read_device(document: Document, kernels: Mapping[str, KernelModel]) -> Device:
    """The device that a document describes; `kernels` are the calibrations by device name or generation.

    Raises InputError with every problem and its line.
    """
    from simulator.spec.kernels import kernel_model_for

    file = validated(document, DeviceFile)
    name = PurePath(document.path).stem
    sources = {"status": file.status, **file.sources}
    vector_flops_per_s = file.vector
    if vector_flops_per_s is None:
        vector_flops_per_s = VECTOR_SHARE * max(file.peak.get(dtype, 0.0) for dtype in ("bf16", "fp16", "fp32"))
        sources["vector"] = "assumed: 1/64 of the bf16 matrix peak, for want of a published figure"
    return Device(
        name=name,
        title=file.title,
        vendor=file.vendor,
        generation=file.generation,
        peak_flops_per_s={str(dtype): peak for dtype, peak in file.peak.items()},
        vector_flops_per_s=vector_flops_per_s,
        memory_bytes=file.memory_usable or file.memory,
        memory_bandwidth_bytes_per_s=file.memory_bandwidth,
        cache_bytes=file.cache or 0.0,
        units=file.units or 0,
        tdp_watts=file.tdp or 0.0,
        price_usd_per_hour=file.price or 0.0,
        kernels=kernel_model_for(file.generation, name, kernels),
        sources=sources,
    )


class TierFile(_Table):
    """One level of a network, innermost first. `size` of the outermost may be left out: the whole cluster."""

    name: Name
    kind: Literal[
        "nvlink", "nvswitch", "pcie", "xgmi", "infiniband", "roce", "ethernet", "efa", "slingshot", "omni-path",
        "ici", "dcn", "neuronlink", "loopback",
    ]  # fmt: skip
    topology: Literal[
        "switch", "full-mesh", "hybrid-cube-mesh", "pcie-tree", "torus", "mesh", "fat-tree", "leaf-spine", "dragonfly"
    ]
    size: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    bandwidth: BytesPerS
    """Per device and direction."""
    latency: Seconds
    oversubscription: Annotated[float, Field(ge=1)] = 1.0
    channels: Annotated[int, Field(ge=0)] = 0
    shape: list[Annotated[int, Field(ge=1)]] = []
    """Torus or mesh: devices per dim when full."""
    wrap_multiple: Annotated[int, Field(ge=0)] = 0
    """Torus: dims whose length is a multiple of this wrap around; 3-D tori wrap only when every dim is one
    (whole cubes behind optical switches). 0 wraps always."""
    reduce_in_switch: bool = False
    rail_optimised: bool = False
    source: Text


class NodeGroup(_Table):
    """Nodes of one device in a cluster of several."""

    device: Name
    nodes: Annotated[int, Field(ge=1)]


class ClusterFile(_Table):
    """Nodes of devices and the tiers that join them, as its file says."""

    title: Text
    status: Status = "sourced"
    aliases: list[Name] = []
    device: Name | None = None
    devices_per_node: Annotated[int, Field(ge=1, le=4096)]
    nodes: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Unless told otherwise when loaded."""
    node_groups: list[NodeGroup] = []
    """Instead of device and nodes: a cluster of several devices."""
    host: Literal["x86-intel", "x86-amd", "arm"] = "x86-intel"
    price_per_device: UsdPerHour | None = None
    tiers: Annotated[list[TierFile], Field(min_length=1)]
    source: Text

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        problems = [*self._tier_problems()]
        if bool(self.device and self.nodes) == bool(self.node_groups):
            problems.append("give device and nodes, or node_groups, one of the two")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _tier_problems(self) -> list[str]:
        problems = []
        below = 1
        for index, tier in enumerate(self.tiers):
            if tier.size is None:
                if index < len(self.tiers) - 1:
                    problems.append(f"tier {tier.name} has no size, and only the outermost may leave it out")
                continue
            if tier.size % below or (index and tier.size == below):
                problems.append(
                    f"tier {tier.name}: size({tier.size}) is no larger multiple of the one inside ({below})"
                )
            below = tier.size
            product = 1
            for length in tier.shape:
                product *= length
            if tier.shape and product != tier.size:
                problems.append(
                    f"tier {tier.name}: shape {' * '.join(map(str, tier.shape))} = {product} != size({tier.size})"
                )
        names = [tier.name for tier in self.tiers]
        problems += [f"two tiers are called {name}" for name in sorted({n for n in names if names.count(n) > 1})]
        return problems


def read_cluster_file(document: Document) -> ClusterFile:
    """The checked contents of a cluster file. Raises InputError with every problem and its line."""
    file = validated(document, ClusterFile)
    problems: list[Problem] = []
    for index, tier in enumerate(file.tiers):
        if tier.topology == "torus" and not tier.shape:
            problems.append(document.problem(("tiers", index, "shape"), "a torus needs its shape, such as [16, 16]."))
        if tier.shape and tier.topology not in ("torus", "mesh"):
            problems.append(document.problem(("tiers", index, "shape"), f"a {tier.topology} has no shape."))
    if problems:
        raise InputError(problems)
    return file
