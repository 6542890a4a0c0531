"""What synchronising data-parallel replicas sends each step, as collectives on the dp_cp and edp axes."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.arch.operations import DTYPE_BYTES, Collective, Number
from simulator.parallel.states import HeldParameters, parameter_bytes
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Synchronisation:
    """Collectives of one rank per step. `reduce` follows the last backward (or runs beside it), `gather` brings updated
    parameters back, `per_micro_batch` are ZeRO-3's (forward, backward), `tensor` sums replicated parameters'
    gradients over tp.
    """

    reduce: tuple[Collective, ...]
    gather: tuple[Collective, ...]
    forward: tuple[Collective, ...] = ()
    backward: tuple[Collective, ...] = ()
    tensor: tuple[Collective, ...] = ()


def synchronisation(held: HeldParameters, run: Run, strategy: Strategy, framework: Framework) -> Synchronisation:
    """Gradient reduction and parameter gathering by ZeRO stage (facts c2, c3).

    Stage 0: all-reduce of the gradients. 1 and 2: reduce-scatter, then all-gather of the updated parameters.
    3: all-gather in forward (and again in backward unless kept), reduce-scatter in backward, every micro-batch.
    """
    wire = 4.0 if run.precision in ("fp32", "tf32") else DTYPE_BYTES[framework.gradient_reduce_dtype]
    weight = parameter_bytes(run)
    tensor: tuple[Collective, ...] = ()
    if strategy.sequence_parallel and held.replicated:
        tensor = (Collective(kind="all_reduce", axis="tp", bytes=held.replicated * wire),)
    if strategy.zero == 0:
        return Synchronisation(reduce=_both("all_reduce", held, wire), gather=(), tensor=tensor)
    if strategy.zero < 3:
        return Synchronisation(
            reduce=_both("reduce_scatter", held, wire), gather=_both("all_gather", held, weight), tensor=tensor
        )
    gather = _both("all_gather", held, weight)
    again = gather if strategy.reshard_after_forward else ()
    return Synchronisation(
        reduce=_replica_reduce(held, strategy, wire), gather=(), forward=gather,
        backward=(*again, *_both("reduce_scatter", held, wire)), tensor=tensor,
    )  # fmt: skip


def _both(kind: str, held: HeldParameters, each_bytes: float) -> tuple[Collective, ...]:
    """The same collective for dense parameters on dp_cp and for experts on edp."""
    parts: tuple[tuple[str, Number], ...] = (("dp_cp", held.dense), ("edp", held.expert))
    return tuple(
        Collective(kind=kind, axis=axis, bytes=count * each_bytes)  # type: ignore[arg-type]
        for axis, count in parts
        if not (isinstance(count, (int, float)) and count == 0)
    )


def _replica_reduce(held: HeldParameters, strategy: Strategy, wire: float) -> tuple[Collective, ...]:
    """HSDP: after the reduce-scatter inside a shard group, its shard is all-reduced between the groups (facts c9)."""
    if not strategy.shard_group or strategy.shard_group >= strategy.dp:
        return ()
    shard = held.dense / (strategy.shard_group * strategy.cp)
    return (Collective(kind="all_reduce", axis="dp_replicas", bytes=shard * wire),)
