"""What synchronising data-parallel replicas sends each step, as collectives on the dp_cp and edp axes."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.arch.operations import Collective, Number
from simulator.parallel.states import HeldParameters, parameter_bytes, wire_bytes
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Synchronisation:
    """Collectives of one rank per step. `reduce` follows the last backward (or runs beside it), `gather` brings updated
    parameters back, `forward` and `backward` are those of every micro-batch under ZeRO-3 and, of gradients, ZeRO-2;
    `tensor` sums replicated parameters' gradients over tp.
    """

    reduce: tuple[Collective, ...]
    gather: tuple[Collective, ...]
    forward: tuple[Collective, ...] = ()
    backward: tuple[Collective, ...] = ()
    tensor: tuple[Collective, ...] = ()


def synchronisation(held: HeldParameters, run: Run, strategy: Strategy, framework: Framework) -> Synchronisation:
    """Gradient reduction and parameter gathering by ZeRO stage (facts c2, c3, c9).

    Stage 0: all-reduce of the gradients. 1: reduce-scatter over the shard group, then all-gather of the updated
    parameters; software that gives whole tensors to owners reduces to each and broadcasts from each. 2: the same, but
    a rank that holds only its share of the gradients cannot add up whole ones, so they are scattered in the backward
    of every micro-batch (DeepSpeed stage_1_and_2.py reduce_ipg_grads with partition_gradients). 3: also all-gather in
    forward and again in backward unless kept. With a shard group smaller than dp (HSDP) the shards are all-reduced
    between groups.
    """
    wire = wire_bytes(run, framework)
    tensor: tuple[Collective, ...] = ()
    if strategy.sequence_parallel and not _zero(held.replicated):
        tensor = (Collective(kind="all_reduce", axis="tp", bytes=held.replicated * wire),)
    if strategy.zero == 0:
        return Synchronisation(reduce=_both("all_reduce", "dp_cp", held, wire), gather=(), tensor=tensor)
    replicas = _replica_reduce(held, strategy, wire)
    owned = framework.zero_whole_tensors and strategy.zero < 3
    gather = _both("broadcast" if owned else "all_gather", "shard", held, parameter_bytes(run))
    scatter = _both("reduce" if owned else "reduce_scatter", "shard", held, wire)
    if strategy.zero == 1 or (strategy.zero == 2 and framework.defers_gradient_scatter):
        return Synchronisation(reduce=(*scatter, *replicas), gather=gather, tensor=tensor)
    if strategy.zero == 2:
        return Synchronisation(reduce=replicas, gather=gather, backward=scatter, tensor=tensor)
    again = gather if strategy.reshard_after_forward else ()
    return Synchronisation(reduce=replicas, gather=(), forward=gather, backward=(*again, *scatter), tensor=tensor)


def _both(kind: str, dense_axis: str, held: HeldParameters, each_bytes: float) -> tuple[Collective, ...]:
    """The same collective for dense parameters and for experts, over the ranks that share each."""
    return tuple(
        Collective(kind=kind, axis=axis, bytes=count * each_bytes)  # type: ignore[arg-type]
        for axis, count in ((dense_axis, held.dense), ("edp", held.expert))
        if not _zero(count)
    )


def _replica_reduce(held: HeldParameters, strategy: Strategy, wire: float) -> tuple[Collective, ...]:
    if not strategy.shard_group:
        return ()
    shard = held.dense / (strategy.shard_group * strategy.cp)
    return (Collective(kind="all_reduce", axis="replicas", bytes=shard * wire),)


def _zero(count: Number) -> bool:
    return isinstance(count, (int, float)) and count == 0
