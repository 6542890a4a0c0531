"""Where an estimate's inputs came from, which regime it stands in, and the formulas behind its numbers."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.cluster.members import distinct_devices
from simulator.result import COMMUNICATION, Memory, Provenance, TimeParts
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy


def provenance_of(model: ModelSpec, cluster: Cluster, framework: Framework) -> tuple[Provenance, ...]:
    """One entry per input that did not come from the caller."""
    entries = [Provenance(what=f"model {model.name}", kind="published", source=_joined(model.sources))]
    for device in distinct_devices(cluster):
        entries += [
            Provenance(what=f"device {device.name}", kind="datasheet", source=_joined(device.sources)),
            Provenance(what=f"kernels of {device.name}", kind=device.kernels.provenance, source=device.kernels.source),
        ]
    entries.append(Provenance(what=f"framework {framework.name}", kind="framework", source=_joined(framework.sources)))
    entries += [
        Provenance(what=f"tier {tier.name}", kind="datasheet", source=_joined(tier.sources or cluster.sources))
        for tier in cluster.tiers
    ]
    return tuple(entries)


def _joined(sources: Mapping[str, str]) -> str:
    return "; ".join(dict.fromkeys(sources.values()))


def notes_of(cluster: Cluster, run: Run, strategy: Strategy, framework: Framework) -> tuple[str, ...]:
    """What the reader must know: inherited or assumed constants, defaults taken."""
    notes = [
        f"Kernel constants of {device.name} are {device.kernels.provenance}: {device.kernels.source}"
        for device in distinct_devices(cluster)
        if device.kernels.provenance != "fitted"
    ]
    if not run.attention:
        notes.append(f"Attention is {framework.attention}, the default of {framework.name}.")
    if strategy.tp > 1 and strategy.sequence_parallel:
        notes.append("Sequence parallelism is on.")
    if strategy.offload != "none":
        notes.append(
            "States in host memory are moved and updated at the full rate of link and memory; the few published runs "
            "that offload took 2 to 3 times as long as predicted (validation/REPORT.md, bigscience): a lower bound."
        )
    return tuple(notes)


def regime_of(
    model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy, time: TimeParts
) -> dict[str, str]:
    """The regime that errors are reported by: kind of model, device, what binds, pipeline, precision."""
    kind = "moe" if model.mixture else {"encoder": "encoder", "decoder": "dense"}.get(
        model.architecture, "encoder-decoder"
    )  # fmt: skip
    parts = time.parts
    groups = {
        "compute": sum(parts.get(name, 0.0) for name in ("gemm", "grouped_gemm", "attention")),
        "memory": sum(parts.get(name, 0.0) for name in ("pointwise", "lookup", "optimizer")),
        "network": sum(parts.get(axis, 0.0) for axis in COMMUNICATION),
        "host": parts.get("host", 0.0),
    }
    return {
        "kind": kind,
        "device": cluster.device.name,
        "bound": max(groups, key=lambda name: groups[name]),
        "pipeline": "yes" if strategy.pp > 1 else "no",
        "precision": run.precision,
    }


def peak_rank(memory: Memory) -> int:
    """The pipeline rank whose peak is the highest, or closest to its own devices' memory where these are unequal."""
    limits = memory.limits_bytes or (memory.limit_bytes,) * len(memory.per_stage)
    over = [rank["total"] - limit for rank, limit in zip(memory.per_stage, limits, strict=True)]
    return over.index(max(over))
