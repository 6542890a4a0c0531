"""What a calibration alone predicts for a case: processor seconds summed over ranks, elapsed seconds, peak memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from simulator import catalog
from simulator.breakdown import executed_flops_per_step, memory_of, time_of
from simulator.cluster.network import collective_time_s
from simulator.lowered import Lowered, rank_slots, run_step
from simulator.measure.suite import Case, model_of
from simulator.measure.wrappers import engine_replicas_s, replicas_s
from simulator.parallel.legal import check
from simulator.parallel.stage_cost import StageCost
from simulator.parallel.step_peak import eager_peak, refused
from simulator.spec.hardware import Cluster
from simulator.spec.machine_file import Clock, read_machine
from simulator.spec.reading import read_document


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One case. `cpu_s` is summed over ranks; `one_rate_cpu_s` is FLOPs over the best product's rate."""

    cpu_s: float
    matrix_cpu_s: float
    """The part of `cpu_s` that matrix products and attention take; the rest moves bytes."""
    wall_s: float
    one_rate_cpu_s: float
    peak_memory_bytes: float


def predict(case: Case, machine: Path) -> Prediction:
    """Predict a case on a machine file. Raises InputError for a bad file and an impossible case."""
    spent = _lowered(case, machine, "cpu")
    elapsed = _lowered(case, machine, "wall")
    device = spent.setting.cluster.device
    flops = executed_flops_per_step(spent, case.strategy)
    return Prediction(
        cpu_s=cpu_seconds(spent, case),
        matrix_cpu_s=matrix_cpu_seconds(spent, case),
        wall_s=elapsed_seconds(elapsed, case),
        one_rate_cpu_s=flops / device.peak_flops_per_s[case.run.precision],
        peak_memory_bytes=peak_memory(spent, case),
    )


def _lowered(case: Case, machine: Path, clock: Clock) -> Lowered:
    cluster: Cluster = read_machine(read_document(machine), nodes=case.strategy.devices, clock=clock)
    model, software = model_of(case.model), catalog.load_framework(case.run.framework)
    # Copies around gathers, scatters and reductions are counted one by one (wrappers.py).
    software = replace(software, sharded_copies="none")
    if case.strategy.tp == 1:
        # The measured loss frees its logits; only the gathered ones of several tensor ranks are whole copies.
        software = replace(software, parallel_cross_entropy=True)
    check(model, cluster, case.run, case.strategy)
    return run_step(model, cluster, case.run, case.strategy, software)


def peak_memory(lowered: Lowered, case: Case) -> float:
    """Peak bytes of an eager torch step that frees its gradients after each update (`zero_grad(set_to_none=True)`) [B].

    Tensor by tensor for one process and for FSDP's ranks. Of other strategies the larger of two moments: with one
    micro-batch no gradient exists when the loss is made, and all do when the activations are gone; later micro-batches
    find the gradients of the first.
    """
    run, software = case.run, lowered.setting.framework
    if run.precision != "fp32":
        # The measured module is narrow throughout: its parameters, gradients and moments too.
        run = replace(run, optimizer="adam-bf16")
        software = replace(software, stored_parameter_dtype=run.precision)
    if not refused(case.strategy, run, software):
        return eager_peak(model_of(case.model), run, case.strategy, software).total_bytes
    parts, micro_batches = memory_of(lowered).parts, lowered.program.micro_batches
    held = sum(value for name, value in parts.items() if name not in ("gradients", "activations", "working_set"))
    at_loss, gradients = parts["activations"] + parts["working_set"], parts["gradients"]
    return held + (at_loss + gradients if micro_batches > 1 else max(at_loss, gradients))


def cpu_seconds(lowered: Lowered, case: Case) -> float:
    """Processor seconds of one step over all ranks [s]: work and communication add up, waiting costs nothing.

    Nothing is hidden: gloo's threads take the time that they need from the same processors.
    """
    strategy = case.strategy
    total = 0.0
    for rank in range(strategy.pp):
        for slot in rank_slots(lowered.order, rank):
            total += lowered.program.micro_batches * _stage_s(lowered.costs[slot])
        total += float(lowered.ends[rank].total_s + lowered.ends[rank].hidden_s)
        total += replicas_s(lowered, case, rank) - engine_replicas_s(lowered, rank)
    setting = lowered.setting
    for before in lowered.program.stages[:-1]:
        once = collective_time_s(setting.cluster, "send", float(before.boundary_bytes), setting.groups["pp"])
        # Forward and backward, and both ends of each message.
        total += lowered.program.micro_batches * 4.0 * float(once)
    return total * strategy.tp * strategy.cp * strategy.dp


def elapsed_seconds(lowered: Lowered, case: Case) -> float:
    """Elapsed seconds of one step [s]: the engine's, with what keeps replicas equal counted one by one."""
    ranks = range(case.strategy.pp)
    more = max(replicas_s(lowered, case, rank) - engine_replicas_s(lowered, rank) for rank in ranks)
    return time_of(lowered, case.strategy).total_s + more


def _stage_s(cost: StageCost) -> float:
    phases = (cost.forward, cost.input_grad, cost.weight_grad, cost.recompute)
    return float(sum(sum(phase.parts.values()) + sum(phase.hidden.values()) for phase in phases))


def matrix_cpu_seconds(lowered: Lowered, case: Case) -> float:
    """The part of `cpu_seconds` that matrix products and attention take [s]."""
    strategy = case.strategy
    held = [slot for rank in range(strategy.pp) for slot in rank_slots(lowered.order, rank)]
    total = sum(
        float(phase.parts.get(kind, 0.0))
        for slot in held
        for phase in (lowered.costs[slot].forward, lowered.costs[slot].input_grad, lowered.costs[slot].weight_grad)
        for kind in ("gemm", "grouped_gemm", "attention")
    )
    again = sum(float(sum(lowered.costs[slot].recompute.parts.values())) for slot in held)
    return (total + again) * lowered.program.micro_batches * strategy.tp * strategy.cp * strategy.dp
