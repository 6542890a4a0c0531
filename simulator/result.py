"""The answer: one frozen `Estimate`, with breakdowns that sum to their totals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from simulator.intervals import fits_confidence, published_residuals
from simulator.pictures import Drawable
from simulator.units import format_bytes, format_count, format_percent, format_time

if TYPE_CHECKING:
    from simulator.schedule.memory import Footprint
    from simulator.schedule.step import Step
    from simulator.schedule.timeline import Timeline

COMMUNICATION = ("tp", "cp", "ep", "etp", "dp", "pp")
COMPUTE = ("gemm", "grouped_gemm", "attention", "pointwise", "lookup", "recompute", "optimizer")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeParts:
    """Seconds of the rank that finishes last, by part; they sum to the step time.

    Compute: gemm, grouped_gemm, attention, pointwise, lookup, recompute, optimizer. Exposed communication by axis.
    `host` is waiting for kernel launches, `bubble` idling in the pipeline (waiting for sends included).
    """

    parts: Mapping[str, float]
    hidden: Mapping[str, float]
    """Communication that ran beside compute, by axis; not in the step time."""
    rank: int = 0
    """The pipeline rank that these are of: the first of those that finish last."""

    @property
    def total_s(self) -> float:
        return sum(self.parts.values())

    @property
    def exposed_comm_s(self) -> float:
        """Seconds the last rank waits for communication."""
        return sum(self.parts.get(axis, 0.0) for axis in COMMUNICATION)

    @property
    def compute_s(self) -> float:
        return sum(self.parts.get(name, 0.0) for name in COMPUTE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Peak bytes per device: by pipeline rank, and the parts of the fullest rank (they sum to its peak).

    Where ranks are on devices of unequal memory, the fullest is the one with the least room left.
    """

    per_stage: tuple[Mapping[str, float], ...]
    """For each pipeline rank its parts, with "total"."""
    parts: Mapping[str, float]
    limit_bytes: float
    """Memory of the fullest rank's device."""
    limits_bytes: tuple[float, ...] = ()
    """Of every pipeline rank's smallest device; empty where all devices are equal."""
    peak_time_s: float = 0.0
    """When in the step the fullest rank first holds its most."""
    step_bytes: float = 0.0
    """What its optimizer step allocates beside the states."""
    footprint: Footprint | None = field(default=None, repr=False, compare=False)
    """What each task of the timeline holds, for the curve over time."""

    step_reserved: bool = False
    """Whether that stays reserved on top of the peak: one flat buffer fits no block that activations leave behind."""

    @property
    def peak_bytes(self) -> float:
        return sum(self.parts.values())

    def peak_as(self, meaning: str) -> float:
        """The peak that a published figure states [B].

        "allocated": tensors only (torch.cuda.max_memory_allocated); "reserved": with what the caching allocator keeps
        (max_memory_reserved); "device": with all that sits outside it (nvidia-smi), at most the device's memory.
        """
        tensors = self.peak_bytes - self.parts.get("fragmentation", 0.0) - self.parts.get("context", 0.0)
        if meaning == "allocated":
            return tensors
        kept = self.step_bytes - self.parts.get("optimizer_step", 0.0) if self.step_reserved else 0.0
        reserved = tensors + self.parts.get("fragmentation", 0.0) + kept
        if meaning == "reserved":
            return reserved
        return min(self.limit_bytes, reserved + self.parts.get("context", 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where one input of the estimate came from. kind: datasheet, measured, fitted, assumed, framework, given."""

    what: str
    kind: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One number with the formula behind it: what `--why` prints."""

    name: str
    value: float
    unit: str
    formula: str
    values: Mapping[str, float | int | str]
    source: str


@dataclass(frozen=True, kw_only=True)
class Estimate(Drawable):
    """What one training step costs under one strategy."""

    model: str
    cluster: str
    framework: str
    run: Mapping[str, Any]
    strategy: Mapping[str, Any]
    devices: int
    step_time_s: float
    step_time_low_s: float
    step_time_high_s: float
    bracket_s: tuple[float, float]
    """Step time with all communication hidden, and with none hidden."""
    tokens_per_s: float
    model_flops_per_step: float
    flops_convention: str
    mfu: float
    hfu: float
    time: TimeParts
    memory: Memory
    traffic_bytes: Mapping[str, float]
    """Bytes one device of the busiest rank sends per step, by axis."""
    provenance: tuple[Provenance, ...]
    notes: tuple[str, ...] = ()
    regime: Mapping[str, str] = field(default_factory=dict)
    members: tuple[Mapping[str, Any], ...] = ()
    """Of unequal nodes, by pipeline rank: its devices, its slowest node and links, its least memory [B]."""
    terms: tuple[Term, ...] = field(default=(), repr=False)
    _step: Step | None = field(default=None, repr=False, compare=False)

    @property
    def tokens_per_s_per_device(self) -> float:
        return self.tokens_per_s / self.devices

    @property
    def model_flops_per_s_per_device(self) -> float:
        return self.model_flops_per_step / self.step_time_s / self.devices

    @property
    def peak_memory_bytes(self) -> float:
        return self.memory.peak_bytes

    def peak_as(self, meaning: str) -> float:
        """The peak that a published figure states [B]: "allocated", "reserved" or "device" (`Memory.peak_as`)."""
        return self.memory.peak_as(meaning)

    @property
    def device_memory_bytes(self) -> float:
        return self.memory.limit_bytes

    @property
    def fits(self) -> bool:
        """Fails closed: true only if the whole peak is known to be below the device's memory."""
        return self.memory.peak_bytes <= self.memory.limit_bytes

    @property
    def fits_confidence(self) -> float:
        """Probability that `fits` is right, from the measured peaks of published runs (`simulator.intervals`)."""
        return fits_confidence(self.memory.peak_bytes, self.memory.limit_bytes, published_residuals())

    def __str__(self) -> str:
        """The verdict and the largest parts, in a few lines (`shardwise estimate` prints the tables)."""
        parts = sorted(self.time.parts.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{name} {format_percent(s / self.step_time_s)}" for name, s in parts[:6])
        verdict = "fits" if self.fits else "does not fit"
        return (
            f"{self.model} on {self.devices} devices of {self.cluster}\n"
            f"step time {format_time(self.step_time_s)} (likely {format_time(self.step_time_low_s)} to "
            f"{format_time(self.step_time_high_s)}), {format_count(self.tokens_per_s)} tokens/s, "
            f"MFU {format_percent(self.mfu)} ({self.flops_convention})\n"
            f"memory {format_bytes(self.peak_memory_bytes)} of {format_bytes(self.device_memory_bytes)}: {verdict} "
            f"({format_percent(self.fits_confidence, 2)} sure)\n"
            f"time: {shares}"
        )

    def timeline(self) -> Timeline:
        """The pipeline's tasks with start and end times, rank by rank: of unequal nodes, the replica that ends last."""
        return self.step().timeline

    def step(self) -> Step:
        """The whole step: the pipeline's timeline, and what ends the step on every rank."""
        if self._step is None:
            raise ValueError("this estimate was read back from JSON and carries no timeline")
        return self._step

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `shardwise estimate --json`."""
        return {
            "model": self.model,
            "cluster": self.cluster,
            "framework": self.framework,
            "run": dict(self.run),
            "strategy": dict(self.strategy),
            "devices": self.devices,
            "step_time_s": self.step_time_s,
            "step_time_low_s": self.step_time_low_s,
            "step_time_high_s": self.step_time_high_s,
            "bracket_s": list(self.bracket_s),
            "tokens_per_s": self.tokens_per_s,
            "tokens_per_s_per_device": self.tokens_per_s_per_device,
            "model_flops_per_step": self.model_flops_per_step,
            "model_flops_per_s_per_device": self.model_flops_per_s_per_device,
            "flops_convention": self.flops_convention,
            "mfu": self.mfu,
            "hfu": self.hfu,
            "peak_memory_bytes": self.peak_memory_bytes,
            "device_memory_bytes": self.device_memory_bytes,
            "fits": self.fits,
            "fits_confidence": self.fits_confidence,
            "time": dict(self.time.parts),
            "hidden_communication_s": dict(self.time.hidden),
            "memory": {"per_stage": [dict(rank) for rank in self.memory.per_stage], "parts": dict(self.memory.parts)},
            "traffic_bytes": dict(self.traffic_bytes),
            "regime": dict(self.regime),
            "members": [dict(rank) for rank in self.members],
            "provenance": [asdict(entry) for entry in self.provenance],
            "notes": list(self.notes),
        }
