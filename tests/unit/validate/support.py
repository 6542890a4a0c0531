"""A small world for tests of validation: rows of a few cells, a catalogue of two models, estimates by 6 N D / peak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from simulator.errors import InputError
from simulator.spec.hardware import Cluster, Device, Tier
from simulator.spec.kernels import KernelModel
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy
from simulator.validate.models import plain_model
from simulator.validate.runs import PublishedRun

PEAK = 100e12
BLANK: dict[str, Any] = dict.fromkeys(PublishedRun.__dataclass_fields__)
TEXTS: dict[str, Any] = {name: f.type for name, f in PublishedRun.__dataclass_fields__.items() if f.type == "str"}


def row(**cells: Any) -> PublishedRun:
    """A GPT of 4 layers on 8 devices in one replica group, but for `cells`."""
    usual = {
        "run_id": "r", "family": "f", "system": "Soft", "train_kind": "pretrain", "model": "GPT tiny",
        "arch": "decoder", "layers": 4, "hidden": 64, "heads": 8, "ffn_hidden": 256, "gated": False, "vocab": 1000,
        "seq_len": 128,
        "device": "dev", "devices": 8, "devices_per_node": 8, "tp": 2, "pp": 1, "dp": 4, "micro_batch": 1,
        "global_batch": 16, "recompute": "none", "precision": "bf16", "attention": "fused", "step_time_s": 1.0,
        "outcome": "ok", "consistent": True,
    }  # fmt: skip
    return PublishedRun(**{**BLANK, **dict.fromkeys(TEXTS, ""), **usual, **cells})


DEVICE = Device(
    name="dev", title="", vendor="", generation="ampere", peak_flops_per_s={"bf16": PEAK}, vector_flops_per_s=1e12,
    memory_bytes=80e9, memory_bandwidth_bytes_per_s=2e12, kernels=KernelModel(constants={}, provenance="assumed"),
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """Facts with one framework called "soft" and a fallback."""

    models: Mapping[str, ModelSpec] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def frameworks(self) -> Mapping[str, Framework]:
        return {
            "soft": Framework(name="soft", systems=("Soft.*",), defaults=self.defaults),
            **{name: Framework(name=name) for name in ("pytorch", "torch-fsdp", "megatron-core", "maxtext")},
        }

    def cluster(
        self, device: str, devices: int, devices_per_node: int | None, nic_bytes_per_s: float | None,
        machine: str = "",
    ) -> Cluster:  # fmt: skip
        if device != "dev":
            raise InputError([f"no device is called {device}."])
        per_node = min(devices, devices_per_node or 8)
        tier = Tier(
            name="all", kind="nvlink", topology="switch", size=devices, bandwidth_bytes_per_s=nic_bytes_per_s or 1e11,
            latency_s=1e-6,
        )  # fmt: skip
        return Cluster(
            name="c", title="", device=DEVICE, devices_per_node=per_node, nodes=devices // per_node, tiers=(tier,)
        )


@dataclass(frozen=True)
class Answer:
    """What a score reads of an estimate."""

    step_time_s: float
    peak_memory_bytes: float = 1e9
    device_memory_bytes: float = 80e9
    fits: bool = True
    mfu: float = 0.5
    regime: Mapping[str, str] = field(default_factory=lambda: {"kind": "dense", "bound": "compute", "pipeline": "no"})

    def peak_as(self, meaning: str) -> float:
        """Tensors are 90 % of what the device needs."""
        return self.peak_memory_bytes * (0.9 if meaning == "allocated" else 1.0)


def flops_over_peak(model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy) -> Answer:
    """6 N D over the peak of all devices: larger micro-batches do not help, more tensor parallelism costs."""
    hidden, layers = model.hidden, model.layers
    work = 6 * 12 * layers * hidden**2 * run.global_batch * run.seq_len
    seconds = work / (PEAK * cluster.devices) * strategy.tp
    return Answer(seconds, peak_memory_bytes=1e9 / strategy.tp, mfu=1 / strategy.tp)


def named(name: str, **cells: Any) -> ModelSpec:
    """A catalogue model with the dimensions of a row."""
    return replace(plain_model(row(**cells)), name=name)
