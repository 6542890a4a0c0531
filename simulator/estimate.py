"""model + cluster + run + strategy -> Estimate: one step, once, in one direction."""

from __future__ import annotations

from dataclasses import fields, replace

from simulator import catalog
from simulator.arch.flops import model_flops_per_sequence
from simulator.breakdown import executed_flops_per_step, memory_of, time_of
from simulator.cluster.device import peak_flops_per_s
from simulator.cluster.members import is_unequal, plain_if_equal
from simulator.intervals import regime_interval
from simulator.lowered import Lowered, rank_stages, run_step
from simulator.parallel.legal import check
from simulator.parallel.lower import sequence_lengths
from simulator.parallel.traffic import traffic_bytes
from simulator.provenance import notes_of, provenance_of, regime_of
from simulator.result import Estimate
from simulator.schedule.step import Step
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy
from simulator.unequal import cost_unequal, member_notes, members_of, run_unequal

LARGEST_FACTOR = 1e6
"""Upper end of an interval without any residuals to read it off: JSON has no infinity."""


def estimate(
    model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy, *, framework: Framework | None = None
) -> Estimate:
    """Cost of one training step.

    Raises InputError when the strategy cannot run (every reason at once). A strategy that does not fit in memory
    is an answer: `fits` is False. In a cluster of unequal nodes every stage runs on the devices that placement gives
    it and every group at its slowest member; `members` and the notes name them.
    """
    software = framework if framework is not None else catalog.load_framework(run.framework)
    check(model, cluster, run, strategy)
    run = replace(run, seq_len=run.seq_len or model.seq_len)
    cluster = plain_if_equal(cluster)
    if not is_unequal(cluster):
        lowered = run_step(model, cluster, run, strategy, software)
        return summarise(model, cluster, run, strategy, software, lowered)
    step = cost_unequal(model, cluster, run, strategy, software)
    answer = summarise(model, cluster, run, strategy, software, run_unequal(step))
    members = members_of(step)
    return replace(answer, members=members, notes=(*answer.notes, *member_notes(members)))


def _plain(value: Run | Strategy) -> dict[str, object]:
    """The fields of a flat value; `asdict` would copy each of them deeply."""
    return {entry.name: getattr(value, entry.name) for entry in fields(value)}


def _peak_flops_per_s(cluster: Cluster, dtype: str) -> float:
    """Of all devices together [FLOP/s]."""
    if not cluster.node_devices:
        return cluster.devices * peak_flops_per_s(cluster.device, dtype)
    return cluster.devices_per_node * sum(peak_flops_per_s(device, dtype) for device in cluster.node_devices)


def summarise(
    model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy, software: Framework, lowered: Lowered
) -> Estimate:
    """Read the answer off a lowered step."""
    time = time_of(lowered, strategy)
    memory = memory_of(lowered)
    step_s = time.total_s
    lengths = sequence_lengths(model, run)
    flops = run.global_batch * model_flops_per_sequence(model, *lengths, run.flops_convention)
    peak = _peak_flops_per_s(cluster, run.precision)
    stages = [lowered.program.stages[stage] for stage in rank_stages(lowered.order, 0)]
    traffic = traffic_bytes(lowered.program, stages, lowered.setting)
    bracket = (step_s - time.exposed_comm_s, step_s + sum(time.hidden.values()))
    regime = regime_of(model, lowered.setting.cluster, run, strategy, time)
    low, high = regime_interval(regime["kind"], regime["bound"], regime["pipeline"])
    return Estimate(
        model=model.name,
        cluster=cluster.name,
        framework=software.name,
        run=_plain(run),
        strategy=_plain(strategy),
        devices=strategy.devices,
        step_time_s=step_s,
        step_time_low_s=low * step_s,
        step_time_high_s=min(high, LARGEST_FACTOR) * step_s,
        bracket_s=bracket,
        tokens_per_s=run.global_batch * sum(lengths) / step_s,
        model_flops_per_step=flops,
        flops_convention=run.flops_convention,
        mfu=flops / (step_s * peak),
        hfu=executed_flops_per_step(lowered, strategy) / (step_s * peak),
        time=time,
        memory=memory,
        traffic_bytes={axis: float(value) for axis, value in traffic.items() if float(value)},
        provenance=provenance_of(model, cluster, software),
        notes=notes_of(cluster, run, strategy, software),
        regime=regime,
        _step=Step(timeline=lowered.timeline, ends=lowered.ends),
    )
