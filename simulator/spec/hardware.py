"""What computes and connects, as frozen values: devices, links, tiers, clusters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from simulator.pictures import Drawable
from simulator.spec.kernels import Curve, KernelModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator. Peaks are dense (no sparsity), per device, by dtype."""

    name: str
    title: str
    vendor: str
    generation: str
    """volta, ampere, hopper, blackwell, cdna3, tpu, gaudi, trainium, cpu: shares NCCL constants and efficiencies."""
    peak_flops_per_s: Mapping[str, float]
    """Matrix-unit peaks by dtype: fp32, tf32, fp16, bf16, fp8, nvfp4, ..."""
    vector_flops_per_s: float
    """fp32 peak of the vector units."""
    memory_bytes: float
    memory_bandwidth_bytes_per_s: float
    cache_bytes: float = 0.0
    units: int = 0
    """Streaming multiprocessors, compute units or cores (0 unknown)."""
    tdp_watts: float = 0.0
    clock_factor: float = 1.0
    """Clock of its datasheet's peaks over that of its generation's measured device (`spec/kernels.py`)."""
    products_factor: float = 0.0
    """Measured speed of its large products over that of its generation's measured device; 0: not measured."""
    price_usd_per_hour: float = 0.0
    kernels: KernelModel
    """Fitted or inherited kernel constants; `kernels.provenance` says which."""
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One level of the network: groups of `size` devices joined by `topology`.

    Tiers nest: the innermost (a node's scale-up domain) first, each `size` a multiple of the one before.
    """

    name: str
    kind: str
    """nvlink, nvswitch, pcie, xgmi, infiniband, roce, efa, ethernet, ici, dcn, neuronlink, loopback."""
    topology: str
    """switch, full-mesh, hybrid-cube-mesh, pcie-tree, torus, mesh, fat-tree, leaf-spine, dragonfly."""
    size: int
    """Devices joined at this level (all levels below included); the outermost holds the whole cluster."""
    bandwidth_bytes_per_s: float
    """Per device and direction into this tier."""
    latency_s: float
    usable_fraction: float = 0.0
    """Share of the bandwidth that collectives were measured to reach on this machine; 0: what is usual of the kind."""
    oversubscription: float = 1.0
    """Down-link over up-link capacity of the units this tier joins: a unit of u devices (the tier below) enters this
    tier with u * bandwidth / oversubscription. Llama 3's pods of 3072 under a 1:7 aggregation: 7 on the outer tier."""
    channels: int = 0
    """Links per device (NVLink count, ICI links); 0 unknown."""
    shape: tuple[int, ...] = ()
    """Torus or mesh: devices per dimension."""
    wrap: tuple[bool, ...] = ()
    reduce_in_switch: bool = False
    rail_optimised: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One cable of an explicit graph, full duplex. A vertex that is a number is that device; any other a switch."""

    one: str
    other: str
    bandwidth_bytes_per_s: float
    """One direction."""
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster(Drawable):
    """Equal nodes of equal devices joined by nested tiers.

    Heterogeneous clusters list `node_devices`, `node_tiers` and `node_uplinks`; a fabric of no regular kind lists its
    `links`.
    """

    name: str
    title: str
    device: Device
    devices_per_node: int
    nodes: int
    tiers: tuple[Tier, ...]
    host: str = "x86-intel"
    host_slowdown_factor: float = 1.0
    """Time of one core of its hosts over that of the EPYC 7003 (Zen 3) core on which launches were timed."""
    host_link_bytes_per_s: float = 0.0
    """Between a device and its host, one direction; 0 where the file does not say it."""
    host_memory_bytes_per_s: float = 0.0
    """Of one node's processors together; 0 where the file does not say it."""
    price_usd_per_device_hour: float = 0.0
    node_devices: tuple[Device, ...] = ()
    """Heterogeneous: the device of each node; empty when all equal `device`."""
    node_tiers: tuple[Tier, ...] = ()
    """Heterogeneous: the innermost tier of each node; empty when all equal `tiers[0]`."""
    node_uplinks: tuple[Tier, ...] = ()
    """Heterogeneous: the tier above as each node's network cards reach it; empty when all equal `tiers[1]`."""
    links: tuple[Link, ...] = ()
    """An explicit graph; empty when the tiers describe the fabric."""
    rank_devices: tuple[int, ...] = ()
    """The device of each rank, as a rank file says; empty when rank r is device r."""
    curves: Mapping[str, Mapping[int, Curve]] = field(default_factory=dict)
    """Measured collectives of a calibrated machine, by kind and ranks; they replace the network's formulas."""
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def devices(self) -> int:
        return self.devices_per_node * self.nodes
