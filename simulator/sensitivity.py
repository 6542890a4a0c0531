"""What one change would buy: of the hardware by a tenth, or of the strategy by one step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from simulator.cluster.members import with_device, with_tier
from simulator.errors import InputError
from simulator.estimate import estimate
from simulator.result import Estimate
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import CONTEXT_KINDS, SCHEDULES, Strategy

SHARE = 0.1
_PAIRS = ("tp", "pp", "cp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """One change and the step under it. `gain_fraction` is the share of the step time saved (negative: lost)."""

    kind: str
    """hardware or strategy."""
    change: str
    step_time_s: float
    gain_fraction: float
    peak_memory_bytes: float
    fits: bool


def sensitivities(
    model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy, *, framework: Framework | None = None
) -> tuple[Sensitivity, ...]:
    """Every single change, the most useful first.

    Hardware: a tenth more of each peak, memory bandwidth or tier, a tenth less latency. Strategy: each degree doubled
    or halved against dp, the micro-batch, recomputation and ZeRO stage by one step, and each other schedule, placement
    of the pipeline, and way to split sequences; illegal steps are left out. Whether a framework offers a step is not
    asked.
    Raises InputError when the strategy itself cannot run.
    """
    base = estimate(model, cluster, run, strategy, framework=framework)
    found = []
    for change, other in _hardware(cluster):
        found.append(_entry("hardware", change, base, estimate(model, other, run, strategy, framework=framework)))
    for change, step in _steps(strategy):
        try:
            answer = estimate(model, cluster, run, step, framework=framework)
        except InputError:
            continue
        found.append(_entry("strategy", change, base, answer))
    return tuple(sorted(found, key=lambda each: (-each.gain_fraction, each.change)))


def _entry(kind: str, change: str, base: Estimate, answer: Estimate) -> Sensitivity:
    gain = 1.0 - answer.step_time_s / base.step_time_s
    return Sensitivity(kind=kind, change=change, step_time_s=answer.step_time_s, gain_fraction=gain,
                       peak_memory_bytes=answer.peak_memory_bytes, fits=answer.fits)  # fmt: skip


def _hardware(cluster: Cluster) -> Iterator[tuple[str, Cluster]]:
    more = 1.0 + SHARE
    yield "matrix peak +10 %", with_device(cluster, lambda device: replace(
        device, peak_flops_per_s={dtype: peak * more for dtype, peak in device.peak_flops_per_s.items()}
    ))  # fmt: skip
    yield "memory bandwidth +10 %", with_device(cluster, lambda device: replace(
        device, memory_bandwidth_bytes_per_s=device.memory_bandwidth_bytes_per_s * more
    ))  # fmt: skip
    for index, tier in enumerate(cluster.tiers):
        yield f"{tier.name} bandwidth +10 %", with_tier(cluster, index, lambda own: replace(
            own, bandwidth_bytes_per_s=own.bandwidth_bytes_per_s * more
        ))  # fmt: skip
        yield f"{tier.name} latency -10 %", with_tier(cluster, index, lambda own: replace(
            own, latency_s=own.latency_s * (1.0 - SHARE)
        ))  # fmt: skip


def _steps(strategy: Strategy) -> Iterator[tuple[str, Strategy]]:
    for name in _PAIRS:
        value = getattr(strategy, name)
        if strategy.dp % 2 == 0:
            yield f"{name} {value} -> {2 * value}", replace(strategy, **{name: 2 * value, "dp": strategy.dp // 2})
        if value % 2 == 0:
            yield f"{name} {value} -> {value // 2}", replace(strategy, **{name: value // 2, "dp": strategy.dp * 2})
    for name in ("micro_batch", "vp", "ep", "etp"):
        value = getattr(strategy, name)
        for other in {2 * value, max(value // 2, 1)} - {value}:
            schedule = strategy.schedule
            if name == "vp" and schedule in ("1f1b", "interleaved"):
                schedule = "interleaved" if other > 1 else "1f1b"
            yield f"{name} {value} -> {other}", replace(strategy, **{name: other, "schedule": schedule})
    yield from _options(strategy)
    for kind in ("none", "selective", "full"):
        if kind != strategy.recompute:
            yield f"recompute {strategy.recompute} -> {kind}", replace(
                strategy, recompute=kind, recompute_layers=0, recompute_modules=()
            )
    for zero in (strategy.zero - 1, strategy.zero + 1):
        if 0 <= zero <= 3:
            yield f"zero {strategy.zero} -> {zero}", replace(strategy, zero=zero)


def _options(strategy: Strategy) -> Iterator[tuple[str, Strategy]]:
    """Other schedules, placements and ways to split sequences, where they make a difference."""
    if strategy.pp > 1:
        for schedule in SCHEDULES:
            if schedule != strategy.schedule:
                yield f"schedule {strategy.schedule} -> {schedule}", replace(strategy, schedule=schedule)
    if strategy.pp > 1 and strategy.dp > 1:
        order = list(strategy.order)
        dp, pp = order.index("dp"), order.index("pp")
        order[dp], order[pp] = "pp", "dp"
        yield f"order {'-'.join(strategy.order)} -> {'-'.join(order)}", replace(strategy, order=tuple(order))
    if strategy.tp > 1:
        off = not strategy.sequence_parallel
        words = "off -> on" if off else "on -> off"
        yield f"sequence parallelism {words}", replace(strategy, sequence_parallel=off)
    if strategy.cp > 1:
        for kind in CONTEXT_KINDS:
            if kind != strategy.context_kind:
                yield f"context {strategy.context_kind} -> {kind}", replace(strategy, context_kind=kind)
