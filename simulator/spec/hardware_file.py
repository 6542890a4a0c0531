"""Reads device and cluster files (hardware/devices, hardware/clusters). `hardware/README.md` explains the format."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, islice, product
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from simulator.errors import did_you_mean
from simulator.spec.hardware import Device, Link
from simulator.spec.kernels import MEASURED_LIMITS, KernelModel, PowerLimit, kernel_model_for, scaled_products
from simulator.spec.reading import Document, Fault, quantity, raise_faults, validated

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
    cluster_of_node_size: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}$")], Name] = {}
    """Other nodes of this device, by devices per node."""
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
    clock_factor: Annotated[float, Field(gt=0.1, lt=10.0)] | None = None
    """Clock of the peaks below over that of the generation's measured device, where they differ."""
    products_factor: Annotated[float, Field(gt=0.1, lt=10.0)] | None = None
    """Speed of large matrix products over that of the generation's measured device, where both were measured."""
    price: UsdPerHour | None = None
    vector: FlopsPerS | None = None
    """fp32 peak outside the matrix units."""
    peak: Annotated[dict[PeakDtype, FlopsPerS], Field(min_length=1)]
    """Dense peak of the matrix units by dtype."""
    sources: dict[str, Text]


_CITED = (
    "memory", "memory_usable", "memory_bandwidth", "cache", "units", "tdp", "clock_factor", "products_factor", "price",
    "vector", "peak",
)  # fmt: skip
_FREE = {"note", "aliases"}


def _device_faults(file: DeviceFile) -> Iterator[Fault]:
    """What is wrong across the keys of a device file."""
    if file.memory_usable is not None and file.memory_usable > file.memory:
        yield (
            "memory_usable",
            f"{file.memory_usable:.6g} bytes > memory({file.memory:.6g} bytes).",
            "Is it GB, not GiB?",
        )
    if not {"fp32", "fp16", "bf16"} & set(file.peak):
        yield "peak", "none of bf16, fp16 and fp32 is given, so no training step can be timed.", ""
    if file.products_factor is not None and (file.generation not in MEASURED_LIMITS or file.units is None):
        have = ", ".join(MEASURED_LIMITS)
        yield "products_factor", f"needs `units` and a generation with measured kernels: {have}.", "Leave it out."
    said = {name for name in _CITED if getattr(file, name) is not None}
    for name in sorted(said - set(file.sources)):
        yield f"sources.{name}", "missing key: every number names where it is from.", ""
    for name in sorted(set(file.sources) - said - _FREE):
        yield f"sources.{name}", "cites a key that the file does not give.", did_you_mean(name, said)


def read_device(document: Document, kernels: Mapping[str, KernelModel]) -> Device:
    """The device that a document describes; `kernels` are the calibrations by device name or generation.

    Raises InputError with every problem and its line.
    """
    file = validated(document, DeviceFile)
    raise_faults(document, _device_faults(file))
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
        clock_factor=file.clock_factor or 1.0,
        products_factor=file.products_factor or 0.0,
        price_usd_per_hour=file.price or 0.0,
        kernels=_kernels(file, name, kernels),
        sources=sources,
    )


def _kernels(file: DeviceFile, name: str, kernels: Mapping[str, KernelModel]) -> KernelModel:
    """Its own constants, or its generation's, for the speed of products that was measured on it."""
    model = kernel_model_for(file.generation, name, kernels)
    if file.products_factor is None or file.units is None or model.provenance != "inherited":
        return model
    limit = PowerLimit(file.tdp or 0.0, file.units, file.clock_factor or 1.0)
    return scaled_products(model, file.generation, limit, file.products_factor)


class CalibrationFile(_Table):
    """Constants of the kernels of one device or generation (not of a network), as measured."""

    device: Name
    provenance: Literal["fitted"]
    source: Text
    fitted_on: Text
    constants: Annotated[dict[str, dict[str, float]], Field(min_length=1)]
    residuals: dict[str, dict[str, float]] = {}


def read_kernels(document: Document) -> KernelModel:
    """The kernel constants of a calibration file. Raises InputError with every problem and its line."""
    file = validated(document, CalibrationFile)
    return KernelModel(
        constants=file.constants, provenance=file.provenance, source=file.source, residuals=file.residuals
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
    usable_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """As measured on this machine, where it differs from what is usual of the kind."""
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
    bandwidth: BytesPerS | None = None
    """Of their innermost tier, where it is not the tier's own."""
    network_bandwidth: BytesPerS | None = None
    """Of their network cards into the tier above, where it is not the tier's own."""


class LinkFile(_Table):
    """A cable of an explicit graph, or several: a number is a device, any other name a switch.

    "0-7" are eight devices, "spine[0-3]" four switches and "rack*.leaf" that switch of every copy of the part rack; a
    link with several ends on a side stands for a cable between each two ("0-7" to "0-7": a full mesh).
    """

    one: Text
    other: Text
    bandwidth: BytesPerS
    """One direction."""
    latency: Seconds = 0.0


class PartFile(_Table):
    """A piece of a fabric, laid `copies` times: its switches are called "rack0.leaf", its devices number on."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z_-]{0,31}$")]
    copies: Annotated[int, Field(ge=1, le=100_000)] = 1
    devices: Annotated[int, Field(ge=0, le=100_000)] = 0
    """In one copy; its links number them from 0."""
    links: Annotated[list[LinkFile], Field(min_length=1)]


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
    host_slowdown_factor: Annotated[float, Field(gt=0.1, lt=10.0)] = 1.0
    host_link: BytesPerS | None = None
    """Between a device and its host, one direction."""
    host_memory_bandwidth: BytesPerS | None = None
    """Of one node's processors together."""
    host_source: Text | None = None
    """Of the two keys above."""
    price_per_device: UsdPerHour | None = None
    tiers: Annotated[list[TierFile], Field(min_length=1)]
    links: list[LinkFile] = []
    """An explicit graph of devices and switches, instead of the tiers' regular fabrics."""
    parts: list[PartFile] = []
    """Pieces that the explicit graph is composed from; `links` then join them."""
    source: Text


def _cluster_faults(file: ClusterFile) -> Iterator[Fault]:
    """What is wrong across the keys of a cluster file."""
    if (file.host_link or file.host_memory_bandwidth) and not file.host_source:
        yield "host_source", "missing key.", "Say where host_link and host_memory_bandwidth come from."
    if file.node_groups and (file.device or file.nodes):
        yield "node_groups", "given together with device or nodes.", "Give one of the two."
    if not file.node_groups:
        for key in ("device", "nodes"):
            if getattr(file, key) is None:
                yield key, "missing key.", ""
    below = 1
    names: set[str] = set()
    for index, tier in enumerate(file.tiers):
        at = f"tiers.{index}"
        if tier.name in names:
            yield f"{at}.name", f'two tiers are called "{tier.name}".', ""
        names.add(tier.name)
        if tier.size is None and index < len(file.tiers) - 1:
            yield f"{at}.size", "missing key: only the outermost tier may leave its size out.", ""
        if tier.size is not None and (tier.size % below or (index and tier.size == below)):
            yield f"{at}.size", f"{tier.size} is no larger multiple of {below}, the size of the tier inside.", ""
        below = tier.size or below
        yield from _shape_faults(tier, at)
    yield from _link_faults(file)


MAX_LINKS = 500_000
_DEVICES = re.compile(r"^(\d{1,6})-(\d{1,6})$")
_NUMBERED = re.compile(r"^([^\[\]]*)\[(\d{1,6})-(\d{1,6})\]([^\[\]]*)$")
_COPIES = re.compile(r"^([a-z][a-z_-]*)\*\.(.+)$")


def _ends(text: str, parts: Sequence[PartFile]) -> tuple[str, ...]:
    """The vertices that an end of a link names; none where a range runs backwards or no part is so called."""
    if match := _COPIES.match(text):
        found = (part for part in parts if part.name == match[1])
        copies = (f"{part.name}{copy}.{match[2]}" for part in found for copy in range(part.copies))
        return tuple(islice((end for copy in copies for end in _ends(copy, ())), MAX_LINKS + 1))
    if match := _DEVICES.match(text):
        return tuple(map(str, range(int(match[1]), int(match[2]) + 1)))
    if match := _NUMBERED.match(text):
        return tuple(f"{match[1]}{number}{match[4]}" for number in range(int(match[2]), int(match[3]) + 1))
    return (text,)


def _written_links(file: ClusterFile) -> Iterator[tuple[str, LinkFile, tuple[str, ...], tuple[str, ...]]]:
    """Where a link stands, the link, and the vertices on its two sides; a part's links once per copy."""
    first = 0
    for number, part in enumerate(file.parts):
        for index, link in enumerate(part.links):
            local = _ends(link.one, ()), _ends(link.other, ())
            for copy in range(part.copies):
                base, name = first + copy * part.devices, f"{part.name}{copy}."
                one, other = (
                    tuple(str(base + int(end)) if end.isdecimal() else name + end for end in side) for side in local
                )
                yield f"parts.{number}.links.{index}", link, one, other
        first += part.copies * part.devices
    for index, link in enumerate(file.links):
        yield f"links.{index}", link, _ends(link.one, file.parts), _ends(link.other, file.parts)


def links_of_file(file: ClusterFile) -> tuple[Link, ...]:
    """Every cable of the explicit graph, parts laid out and ranges written out; none where the file lists no links."""
    return tuple(
        Link(one=one, other=other, bandwidth_bytes_per_s=link.bandwidth, latency_s=link.latency)
        for _, link, ones, others in _written_links(file)
        for one, other in (combinations(ones, 2) if ones == others else product(ones, others))
        if one != other
    )


def _link_faults(file: ClusterFile) -> Iterator[Fault]:
    devices = (file.nodes or sum(group.nodes for group in file.node_groups)) * file.devices_per_node
    yield from _part_faults(file, devices)
    joined: set[str] = set()
    count = 0
    told: set[str] = set()
    for at, link, ones, others in _written_links(file):
        count += len(ones) * len(others)
        if count > MAX_LINKS:
            yield at, f"the graph has more than {MAX_LINKS:,} links.", "Describe a regular fabric by its tiers."
            return
        joined.update(ones, others)
        if at in told:
            continue
        for name, ends in ((link.one, ones), (link.other, others)):
            if not ends:
                hint = did_you_mean(name.partition("*")[0], [part.name for part in file.parts])
                yield at, f"{name} names no vertex.", hint
            beyond = next((end for end in ends if end.isdecimal() and int(end) >= devices), None)
            if beyond is not None:
                told.add(at)
                yield at, f"device {beyond} is outside 0..{devices - 1}.", "Switches have names, not numbers."
        if ones == others and len(ones) == 1:
            told.add(at)
            yield at, f"{link.one} is joined to itself.", ""
    if joined:
        alone = [device for device in range(devices) if str(device) not in joined]
        if alone:
            yield "links", f"{len(alone)} of {devices} devices have no link; the first is {alone[0]}.", ""


def _part_faults(file: ClusterFile, devices: int) -> Iterator[Fault]:
    held = sum(part.copies * part.devices for part in file.parts)
    if held > devices:
        sizes = " + ".join(f"{part.copies} * {part.devices}" for part in file.parts)
        yield "parts", f"{sizes} = {held} devices, but the cluster has {devices}.", ""
    for index, part in enumerate(file.parts):
        if part.name in [other.name for other in file.parts[:index]]:
            yield f"parts.{index}.name", f'two parts are called "{part.name}".', ""
        for number, link in enumerate(part.links):
            inside = (end for side in (link.one, link.other) for end in _ends(side, ()) if end.isdecimal())
            beyond = next((end for end in inside if int(end) >= part.devices), None)
            if beyond is not None:
                message = f"device {beyond} is outside the {part.devices} of a {part.name}."
                yield f"parts.{index}.links.{number}", message, "Links between parts stand in [[links]]."


def _shape_faults(tier: TierFile, at: str) -> Iterator[Fault]:
    if tier.topology == "torus" and not tier.shape:
        yield f"{at}.shape", "missing key: a torus needs its shape.", "Write it like shape = [16, 16]."
    if tier.shape and tier.topology not in ("torus", "mesh"):
        yield f"{at}.shape", f"a {tier.topology} has no shape.", 'Is topology = "torus" meant?'
    elif tier.shape and math.prod(tier.shape) != tier.size:
        product = " * ".join(map(str, tier.shape))
        yield f"{at}.shape", f"{product} = {math.prod(tier.shape)} != size({tier.size}).", ""


def read_cluster_file(document: Document) -> ClusterFile:
    """The checked contents of a cluster file. Raises InputError with every problem and its line."""
    file = validated(document, ClusterFile)
    raise_faults(document, _cluster_faults(file))
    return file
