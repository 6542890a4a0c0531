"""Model states of one rank: weights, gradients and optimizer states under ZeRO, and what reducing them sends.

Symbols: Psi parameters of the rank, d ranks that share them. Mixed-precision Adam holds 2 + 4 (or 2) + 12 bytes per
parameter (Rajbhandari 2020 sec. 3.1; Megatron-LM keeps fp32 main gradients, facts c4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from simulator.arch.layer import Segment
from simulator.arch.operations import DTYPE_BYTES, Number, largest
from simulator.cluster.elementwise import where
from simulator.parallel.lower import Stage
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy

MASTER_BYTES = 4.0
MOMENT_BYTES: Mapping[str, float] = {
    "adam": 8.0, "adamw": 8.0, "lamb": 8.0, "adam-bf16": 4.0, "sgd": 4.0, "adafactor": 0.0,
}  # fmt: skip
"""Optimizer moments per parameter [B]: Adam two fp32 moments; "adam-bf16" two bf16 (DeepSeek-V3 sec. 3.3); SGD one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldParameters:
    """Parameters one rank holds: dense ones shared by dp * cp ranks, experts by their replicas. `replicated` are the
    dense ones that every tp rank holds whole.
    """

    dense: Number
    expert: Number
    replicated: Number
    largest_segment: Number
    """Parameters of the largest segment, which ZeRO-3 gathers at once."""
    layers: Number = 0.0
    """Those in layers, whose matrices a low precision multiplies (embedding and head stay in 16 bits)."""
    largest_layer: Number = 0.0

    @property
    def total(self) -> Number:
        return self.dense + self.expert


def held_parameters(stages: tuple[Stage, ...]) -> HeldParameters:
    """Parameters of all virtual stages of one rank."""
    dense: Number = 0.0
    expert: Number = 0.0
    replicated: Number = 0.0
    layers: Number = 0.0
    sizes: list[Number] = []
    layer_sizes: list[Number] = []
    known: dict[int, tuple[Number, Number, Number]] = {}
    for stage in stages:
        for segment, count in stage.parts:
            if id(segment) not in known:
                known[id(segment)] = _segment_parameters(segment)
            own_dense, own_expert, own_replicated = known[id(segment)]
            dense += count * own_dense
            expert += count * own_expert
            replicated += count * own_replicated
            sizes.append(where(count > 0, own_dense + own_expert, 0.0))
            if segment.recomputable:
                layers += count * (own_dense + own_expert)
                layer_sizes.append(sizes[-1])
    return HeldParameters(dense=dense, expert=expert, replicated=replicated, largest_segment=largest(sizes),
                          layers=layers, largest_layer=largest(layer_sizes))  # fmt: skip


def _segment_parameters(segment: Segment) -> tuple[Number, Number, Number]:
    """Dense and expert parameters of a segment, and the dense ones that every tp rank holds whole."""
    sums: dict[str, Number] = {"dense": 0, "expert": 0}
    replicated: Number = 0
    for operation in segment.operations:
        for weight in operation.weights:
            sums[weight.sharing] = sums[weight.sharing] + weight.elements
            if weight.sequence_replicated:
                replicated = replicated + weight.elements
    return sums["dense"], sums["expert"], replicated


def parameter_bytes(run: Run) -> float:
    """Bytes of one parameter as the forward pass reads it [B]."""
    return 4.0 if run.precision in ("fp32", "tf32") else 2.0


def low_precision_copy_bytes(run: Run, framework: Framework) -> float:
    """Bytes per parameter of a layer's quantised weight and its transpose, kept beside the 16-bit one [B].

    TransformerEngine keeps both over all micro-batches of a step (module/linear.py get_weight_workspace); compilers
    quantise where the weight is read (torchao float8, XLA).
    """
    if framework.compiled:
        return 0.0
    return {"fp8": 2.0, "mxfp8": 2.0 + 2.0 / 32.0, "nvfp4": 1.0 + 2.0 / 16.0}.get(run.precision, 0.0)


def stored_bytes(run: Run, framework: Framework) -> float:
    """Bytes of one parameter as it rests between steps [B]: fp32 where the parameters are their own master."""
    return DTYPE_BYTES[framework.stored_parameter_dtype] if framework.stored_parameter_dtype else parameter_bytes(run)


def optimizer_bytes(run: Run, framework: Framework) -> float:
    """Optimizer states per parameter, with an fp32 master copy unless the parameters are stored in fp32 [B]."""
    master = 0.0 if stored_bytes(run, framework) >= MASTER_BYTES else MASTER_BYTES
    return MOMENT_BYTES[run.optimizer] + master


def gradient_bytes(run: Run, framework: Framework) -> float:
    """Bytes of one accumulated gradient [B]."""
    return 4.0 if run.precision in ("fp32", "tf32") else DTYPE_BYTES[framework.gradient_dtype]


def shard_ranks(strategy: Strategy) -> tuple[Number, Number]:
    """Ranks over which dense and expert states are sharded: dp * cp, and the replicas of an expert; an HSDP shard
    group bounds both.
    """
    dense: Number = strategy.dp * strategy.cp
    expert: Number = strategy.tp * strategy.cp * strategy.dp / (strategy.ep * strategy.etp)
    if strategy.shard_group:
        dense = np.minimum(dense, strategy.shard_group * strategy.cp)
        expert = np.minimum(expert, strategy.shard_group)
    return dense, expert


def state_bytes(held: HeldParameters, run: Run, strategy: Strategy, framework: Framework) -> dict[str, Number]:
    """Weights, gradients and optimizer of one rank [B].

    ZeRO-1 divides the optimizer by d, ZeRO-2 also the gradients (unless they are scattered once per step), ZeRO-3 also
    the weights; ZeRO-3 adds the gathered parameters of the segment at work and of the one prefetched (all, where they
    are kept after forward), and quantised copies only of those.
    """
    sharded = owned_parameters(held, strategy)

    def part(each_bytes: float, stage: int) -> Number:
        return each_bytes * (sharded if strategy.zero >= stage else held.total)

    copy_bytes = low_precision_copy_bytes(run, framework)
    result = {
        "weights": part(stored_bytes(run, framework), 3),
        "gradients": part(gradient_bytes(run, framework), 3 if framework.defers_gradient_scatter else 2),
        "optimizer": part(optimizer_bytes(run, framework), 1),
    }
    if strategy.offload != "none":
        # The sum of gradients over micro-batches waits on the host, but where ZeRO-1 keeps whole ones to reduce.
        result["optimizer"] = 0.0 * held.total
        result["gradients"] = result["gradients"] if strategy.zero == 1 else 0.0 * held.total
        result["weights"] = 0.0 * held.total if strategy.offload == "parameters" else result["weights"]
    if framework.keeps_fresh_gradients:
        result["gradients"] = result["gradients"] + held.total * parameter_bytes(run)
    if strategy.zero == 3:
        own = parameter_bytes(run)
        if strategy.reshard_after_forward:
            result["gathered_parameters"] = 2 * (held.largest_segment * own + held.largest_layer * copy_bytes)
        else:
            result["gathered_parameters"] = held.total * own + held.layers * copy_bytes
    else:
        result["weights"] = result["weights"] + copy_bytes * held.layers
    return result


def whole_gradient_bytes(held: HeldParameters, run: Run, framework: Framework) -> Number:
    """Gradients that torch's FSDP holds whole for a moment [B]: the backward makes those of the largest segment, in the
    dtype it computes in, while the segment before is still being scattered, in the dtype it is reduced in.

    FSDP2: torch/distributed/fsdp/_fully_shard: _fsdp_param_group.py post_backward keeps the last scatter's input until
    the next one, _fsdp_collectives.py foreach_reduce allocates it. FSDP1: _runtime_utils.py _reduce_grad. When other
    software (XLA, buckets of Megatron-LM and DeepSpeed) lets go of whole gradients is not known here, and not counted.
    """
    if framework.sharded_copies not in ("gradients", "both"):
        return 0.0
    return held.largest_segment * (parameter_bytes(run) + wire_bytes(run, framework))


def owned_parameters(held: HeldParameters, strategy: Strategy) -> Number:
    """Parameters of a rank's shard when its states are divided over the ranks that share them."""
    dense, expert = shard_ranks(strategy)
    return held.dense / dense + held.expert / expert


def optimizer_step_bytes(held: HeldParameters, run: Run, strategy: Strategy, framework: Framework) -> Number:
    """What the optimizer step allocates beside the states [B]: fp32 copies of 16-bit gradients for its fp32 masters.

    Megatron-LM optimizer.py _copy_model_grads_to_main_grads and DeepSpeed stage_1_and_2.py step hold all of a rank's
    share at once, the latter besides its 16-bit flat copy and the bucket it reduced them in; fp32 gradients are read as
    they are.
    """
    own = gradient_bytes(run, framework)
    if strategy.offload != "none":
        return 0.0
    if own >= MASTER_BYTES or stored_bytes(run, framework) >= MASTER_BYTES:
        return 0.0
    owned = owned_parameters(held, strategy) if strategy.zero >= 1 else held.total
    if not framework.flat_gradients:
        return MASTER_BYTES * owned
    bucket = np.minimum(framework.bucket_bytes, held.total * own) if strategy.zero >= 1 else 0.0
    return (MASTER_BYTES + own) * owned + bucket


def accumulation_bytes(held: Number, run: Run, framework: Framework) -> Number:
    """HBM bytes of adding one micro-batch's weight gradients into the accumulated ones [B].

    A kernel of its own reads the fresh gradient and the sum and writes the sum; the fresh one is written by the GEMM
    that made it, whose time has it (torch adds in place: torch/csrc/autograd/functions/accumulate_grad.h). Fused into
    the GEMM, the sum is read, and written in its own dtype in place of the fresh gradient's.
    """
    main, fresh = gradient_bytes(run, framework), parameter_bytes(run)
    return held * (2 * main + (-fresh if framework.fused_gradient_accumulation else fresh))


def sharding_copy_bytes(held: Number, run: Run, framework: Framework) -> tuple[Number, Number]:
    """Bytes moved by the copies around one gather of so many parameters and one scatter of their gradients [B].

    FSDP2 copies a gathered buffer out into tensors (split_with_sizes_copy: read, write) and gradients into the buffer
    to scatter (chunk_cat: read, write in the wire's dtype) (torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py).
    FSDP1's parameters are splits of a flat one, whose backward joins their gradients (_flat_param.py: read, write),
    and the flat gradient is divided before it is sent (_runtime_utils.py _reduce_grad: read, write).

    >>> from simulator.spec.run import Framework, Run
    >>> sharding_copy_bytes(10, Run(global_batch=1, precision="bf16"), Framework(name="f", sharded_copies="both"))
    (40.0, 60.0)
    """
    if framework.sharded_copies in ("none", "flattened"):
        return 0.0, 0.0
    own, wire = parameter_bytes(run), wire_bytes(run, framework)
    if framework.sharded_copies == "both":
        return held * 2 * own, held * (own + wire)
    return 0.0, held * (2 * own + 2 * wire)


def flattening_bytes(held: Number, run: Run, framework: Framework) -> Number:
    """Bytes moved around an all-reduce of gradients that are tensors of their own [B].

    They are flattened into one, divided by the number of replicas and copied back (NVIDIA/Megatron-LM v2.0
    megatron/model/distributed.py allreduce_params with _flatten_dense_tensors): read and write, three times. Buckets
    of which gradients are views need none of it.

    >>> from simulator.spec.run import Framework, Run
    >>> flattening_bytes(10, Run(global_batch=1, precision="fp16"),
    ...                  Framework(name="f", sharded_copies="flattened", gradient_reduce_dtype="fp16"))
    120.0
    """
    return held * 6 * wire_bytes(run, framework) if framework.sharded_copies == "flattened" else 0.0


def wire_bytes(run: Run, framework: Framework) -> float:
    """Bytes per gradient element that replicas send each other [B]."""
    return 4.0 if run.precision in ("fp32", "tf32") else DTYPE_BYTES[framework.gradient_reduce_dtype]


def optimizer_traffic_bytes(held: HeldParameters, run: Run, strategy: Strategy, framework: Framework) -> Number:
    """HBM bytes of one optimizer step of one rank [B].

    Zero the gradients; cast 16-bit ones to fp32 for an fp32 master; with fp16's loss scaling, divide them by the scale
    in place; read them for the norm and for the update; read and write master and moments; copy the master into the
    16-bit parameter (NVIDIA/Megatron-LM v2.6 megatron/optimizer/optimizer.py: _copy_model_grads_to_main_grads,
    _unscale_main_grads_and_check_for_nan, clip_grads, _copy_main_params_to_model_params; a kernel each). A compiler
    fuses casts and scale into the update. A framework without a fused optimizer makes about three times the passes over
    the states.

    Mixed precision of fp16 with fp16 gradients, Adam: 2 + (2 + 4) + 8 + 8 + 24 + (4 + 2):

    >>> from simulator.spec.run import Framework, Run
    >>> held = HeldParameters(dense=1.0, expert=0.0, replicated=0.0, largest_segment=1.0)
    >>> run, half = Run(global_batch=1, precision="fp16", optimizer="adam"), Framework(name="f", gradient_dtype="fp16")
    >>> optimizer_traffic_bytes(held, run, Strategy(), half)
    54.0
    """
    owned = owned_parameters(held, strategy) if strategy.zero >= 1 else held.total
    gradient = main = gradient_bytes(run, framework)
    again = parameter_bytes(run)
    if not framework.compiled and stored_bytes(run, framework) < MASTER_BYTES:
        main = MASTER_BYTES
        again += MASTER_BYTES + (gradient + main if gradient < main else 0.0)
    if not framework.compiled and run.precision == "fp16":
        again += 2 * main
    states = 2 * (MOMENT_BYTES[run.optimizer] + MASTER_BYTES)
    passes = 1 if framework.fused_optimizer else 3
    return held.total * gradient + owned * (2 * main + states * passes + again)
