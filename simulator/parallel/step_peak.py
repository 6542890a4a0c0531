"""Peak memory of an eager PyTorch step, tensor by tensor: one process, or one rank of fully sharded parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulator.arch.operations import DTYPE_BYTES
from simulator.errors import InputError
from simulator.parallel.eager_model import Traced, trace
from simulator.parallel.liveness import Peak, Piece, States, Walk, nodes_of
from simulator.parallel.lower import kernels_of, sequence_lengths
from simulator.parallel.recompute import policy_of
from simulator.parallel.states import MASTER_BYTES, MOMENT_BYTES, parameter_bytes, stored_bytes
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy

ROOT = "root"
COUNTER_BYTES = 4.0
"""torch's AdamW counts the steps of each parameter tensor in a tensor of its own (torch/optim/adamw.py)."""


def refused(strategy: Strategy, run: Run, framework: Framework) -> list[str]:
    """Why a step has no walk: nothing for one process, and for FSDP's ranks, of eager PyTorch with fused AdamW."""
    split = {axis: getattr(strategy, axis) for axis in ("tp", "cp", "ep", "etp", "pp") if getattr(strategy, axis) > 1}
    reasons = [f"{axis} {degree}" for axis, degree in split.items()]
    if strategy.dp > 1 and strategy.zero != 3:
        reasons.append(f"data parallelism with ZeRO stage {strategy.zero}")
    if strategy.recompute_layers or strategy.offload_inputs:
        reasons.append("recomputation of some layers, or into host memory")
    if run.optimizer not in ("adam", "adamw", "adam-bf16") or not framework.fused_optimizer:
        reasons.append("optimizers other than fused Adam")
    if framework.compiled or framework.fused_rope or framework.fused_bias_activation or framework.fused_cross_entropy:
        reasons.append("kernels that eager PyTorch does not have")
    if stored_bytes(run, framework) < MASTER_BYTES and run.optimizer != "adam-bf16":
        reasons.append("16-bit parameters beside fp32 masters")
    if strategy.dp == 1 and stored_bytes(run, framework) > parameter_bytes(run):
        reasons.append("parameters that operators cast (autocast)")
    return reasons


def eager_peak(model: ModelSpec, run: Run, strategy: Strategy, framework: Framework) -> Peak:
    """Peak of an eager PyTorch step whose gradients are freed after each update (`zero_grad(set_to_none=True)`). Fused
    updates allocate nothing, so it lies in forward or backward.

    Raises InputError for what `refused` names and for blocks without nodes.
    """
    reasons = refused(strategy, run, framework)
    if reasons:
        raise InputError([f"peak memory operator by operator is not modelled for {', '.join(reasons)}."])
    first, second = sequence_lengths(model, run)
    traced = trace(model, kernels_of(model, run, framework, strategy), policy_of(strategy),
                   batch=int(strategy.micro_batch), seq_len=first, target_seq_len=second)  # fmt: skip
    sizes = parameter_sizes(traced.pieces)
    elements = sum(sizes.values()) / traced.element_bytes / strategy.dp
    stored, moments = stored_bytes(run, framework), MOMENT_BYTES[run.optimizer]
    later = run.global_batch > strategy.micro_batch * strategy.dp
    states = States(
        parameter_bytes=elements * stored, gradient_bytes=elements * stored if later else 0.0,
        optimizer_bytes=elements * moments + COUNTER_BYTES * len(sizes),
    )  # fmt: skip
    if strategy.dp == 1:
        return plain_peak(traced, states)
    sharding = Sharding(ranks=int(strategy.dp), reduce_dtype=framework.gradient_reduce_dtype, stored_bytes=stored,
                        reshard_after_forward=strategy.reshard_after_forward)  # fmt: skip
    return ShardedWalk(traced, states, sharding).run()


def parameter_sizes(pieces: Sequence[Piece]) -> dict[str, float]:
    """Bytes of every parameter's gradient, by name: a shared table stands once."""
    return {name: size for node in nodes_of(pieces) for name, size in node.weights}


def plain_peak(traced: Traced, states: States) -> Peak:
    """Peak of one micro-batch where nothing is sharded."""
    walk = Walk(traced.pieces, states)
    walk.ledger.held["activations"] += traced.constant_bytes
    for piece in traced.pieces:
        walk.forward(piece)
    for piece in reversed(traced.pieces):
        walk.backward(piece)
    return walk.ledger.peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """Parameters sharded over `ranks`: each layer gathered on its own, the rest (the root) once per step."""

    ranks: int
    reduce_dtype: str = "fp32"
    stored_bytes: float = 4.0
    """Bytes of a parameter as it rests: the gradient of its shard is cast to that (`_fsdp_collectives.py`: orig_dtype).
    """
    reshard_after_forward: bool = True


class ShardedWalk:
    """A step of torch's FSDP2 (torch/distributed/fsdp/_fully_shard, torch 2.13).

    A unit is gathered into one flat buffer, then copied out to its parameters (`foreach_all_gather_copy_out`). In
    forward the flat buffer lives until the next unit's was copied out (`FSDPParamGroup.wait_for_unshard`), in backward
    it is freed at once and that of the unit before is gathered ahead (`_backward_prefetch`). The root is not resharded
    after its forward. When a unit's backward has run, its parameters go, its gradients are copied into a flat buffer in
    the reduction's dtype, which lives until the next unit's backward has run (`reduce_scatter_states`, one at a time).
    """

    def __init__(self, traced: Traced, states: States, sharding: Sharding) -> None:
        self.traced, self.sharding, self.layers = traced, sharding, traced.layers
        self.walk = Walk(traced.pieces, states, gradient_part="temporaries")
        self.ledger = self.walk.ledger
        self.ledger.held["activations"] += traced.constant_bytes
        self.sizes = self._unit_bytes()
        self.ahead = 0.0
        self.reducing = 0.0

    def _unit_bytes(self) -> Mapping[str, float]:
        sizes = {name: sum(parameter_sizes(pieces).values()) for name, pieces in self.traced.units
                 if name in self.layers}  # fmt: skip
        return sizes | {ROOT: sum(parameter_sizes(self.traced.pieces).values()) - sum(sizes.values())}

    def run(self) -> Peak:
        """Forward and backward of one micro-batch."""
        self._forward()
        self._backward()
        return self.ledger.peak

    def _hold(self, moment: str, size: float) -> None:
        self.ledger.held["gathered"] += size
        self.ledger.look(moment)

    def _gather(self, unit: str) -> None:
        """Flat buffer, the one before it freed, parameters copied out."""
        self._hold(f"{unit}, gather", self.sizes[unit])
        self._hold(f"{unit}, copy out", self.sizes[unit])
        self.ledger.held["gathered"] -= self.ahead
        self.ahead = self.sizes[unit]

    def _forward(self) -> None:
        self._gather(ROOT)
        for name, pieces in self.traced.units:
            if name in self.layers:
                self._gather(name)
            for piece in pieces:
                self.walk.forward(piece)
            if name in self.layers and self.sharding.reshard_after_forward:
                self.ledger.held["gathered"] -= self.sizes[name]
        self.ledger.held["gathered"] -= self.ahead

    def _backward(self) -> None:
        order = list(reversed(self.layers))
        self._prefetch(order[0])
        for name, pieces in reversed(self.traced.units):
            if name in self.layers and self.sharding.reshard_after_forward:
                self._hold(f"{name}, copy out", self.sizes[name])
                self.ledger.held["gathered"] -= self.sizes[name]
                behind = order.index(name) + 1
                if behind < len(order):
                    self._prefetch(order[behind])
            for piece in reversed(pieces):
                self.walk.backward(piece)
            if name in self.layers:
                self._reduce(name)
        self._reduce(ROOT)
        self.ledger.held["gathered"] -= self.reducing

    def _prefetch(self, unit: str) -> None:
        if self.sharding.reshard_after_forward:
            self._hold(f"{unit}, gather", self.sizes[unit])

    def _reduce(self, unit: str) -> None:
        """Parameters freed, gradients copied into the flat buffer and freed, the shard's gradient kept."""
        held, size = self.ledger.held, self.sizes[unit]
        held["gathered"] -= size + self.reducing
        elements = size / self.traced.element_bytes
        self.reducing = elements * DTYPE_BYTES[self.sharding.reduce_dtype]
        self._hold(f"{unit}, reduce", self.reducing)
        held["temporaries"] -= size
        if not self.walk.accumulates:
            held["gradients"] += elements / self.sharding.ranks * self.sharding.stored_bytes
        self.ledger.look(f"{unit}, reduced")
