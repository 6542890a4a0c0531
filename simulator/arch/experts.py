"""Sparsely-gated layers: router, dispatch, grouped feed-forwards, combine, shared experts.

Tokens leave their rank by all-to-all over ep, visit the ep rank that holds their expert, and come back. A capacity
factor pads every expert's buffer (Switch eq. 3): rows and bytes then scale with it, needed or not (facts f1-f6).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.arch.feed_forward import activation, feed_forward
from simulator.arch.linear import cast, linear, pointwise
from simulator.arch.one_hot import one_hot_moves
from simulator.arch.operations import Collective, GroupedGemm, Number, Operation, Pointwise, Saved, Weight
from simulator.arch.shard import LOW_PRECISIONS, Kernels, Shard, is_split
from simulator.spec.model import ExpertsSpec, FeedForwardSpec


def routed_rows(spec: ExpertsSpec, shard: Shard) -> Number:
    """Rows that one rank sends to experts: top_k per token of its own, times the capacity factor when padded.

    A factor of all choices together (Fedus 2022 eq. 3) does not count top_k. Without sequence parallelism every tp rank
    holds the same tokens and routes them all to its own slice.
    """
    factor = _capacity_factor(spec, shard)
    if factor and not shard.capacity_per_choice:
        return shard.split_tokens * factor
    return shard.split_tokens * spec.visited * (factor or 1.0)


def _capacity_factor(spec: ExpertsSpec, shard: Shard) -> float:
    """The run's capacity factor, else the model's; 0 is dropless."""
    return spec.capacity_factor if shard.capacity_factor is None else shard.capacity_factor


def experts(spec: ExpertsSpec, *, width: int, shard: Shard, kernels: Kernels, name: str = "moe") -> list[Operation]:
    """The whole mixture between the norm's output and the residual add."""
    rows = routed_rows(spec, shard)
    gathered = rows * shard.expert_sources
    to_experts, to_tokens = _moves(spec, rows=rows, width=width, shard=shard, kernels=kernels, name=name)
    enter, leave = _expert_tensor_borders(name, gathered, width, shard, kernels)
    operations = [
        _router(spec, width=width, shard=shard, kernels=kernels, name=name),
        to_experts,
        _exchange(f"{name}.dispatch", spec, rows=rows, width=width, shard=shard, kernels=kernels),
        *enter,
        *_grouped_feed_forward(spec, rows=gathered, width=width, shard=shard, kernels=kernels, name=name),
        *leave,
        _exchange(f"{name}.combine", spec, rows=rows, width=width, shard=shard, kernels=kernels),
        to_tokens,
    ]
    if spec.shared_hidden:
        shared = FeedForwardSpec(
            hidden=spec.shared_hidden, gated=spec.gated, bias=spec.bias, activation=spec.activation
        )
        operations += feed_forward(
            shared, width=width, shard=shard, kernels=kernels, name=f"{name}.shared",
            modules=("shared_experts", "moe"),
        )
        if spec.shared_gate:
            operations.append(_shared_gate(f"{name}.shared_gate", shard.split_tokens, width, kernels))
    if spec.extra_feed_forward is not None:
        operations += feed_forward(
            spec.extra_feed_forward, width=width, shard=shard, kernels=kernels, name=f"{name}.extra", modules=("moe",)
        )
    return operations


def _copies_again(spec: ExpertsSpec, shard: Shard, kernels: Kernels) -> Number:
    """How often dropless rows are copied again between the order of their arrival and that of the grouped products.

    A plain all-to-all brings rows rank by rank: with several experts on a rank they are sorted by expert (Megatron-LM
    megatron/core/transformer/moe/token_dispatcher.py MoEAlltoAllTokenDispatcher, sort_chunks_by_idxs; a deduplicated
    exchange sorts them only there, which `permute` counts). Narrow products take whole tiles of rows, to which each
    expert's are padded (TransformerEngine Fp8Padding, where the software has no other way to pad).
    """
    if _capacity_factor(spec, shard):
        return 0
    several = np.logical_and(np.greater(shard.ep, 1), np.less(shard.ep, spec.count))
    sorts = several * float(kernels.expert_dispatch == "all-to-all")
    return sorts + float(kernels.pads_experts and kernels.gemm_dtype in LOW_PRECISIONS)


def _shared_gate(name: str, tokens: Number, width: int, kernels: Kernels) -> Operation:
    """A sigmoid of one column that scales the shared expert's output: both are kept."""
    size = kernels.element_bytes
    return linear(
        name, tokens=tokens, inputs=width, outputs=1, kernels=kernels, sequence_replicated=True, modules=("moe",),
        saves=(Saved(name=f"{name}.output", bytes=tokens * size, statistic=True),
               Saved(name=f"{name}.scaled", bytes=tokens * width * size)),
    )  # fmt: skip


def _router(spec: ExpertsSpec, *, width: int, shard: Shard, kernels: Kernels, name: str) -> Operation:
    """Gate logits in fp32, softmax and top-k; hierarchical gating (Shazeer 2017 App. B) has two levels."""
    tokens = shard.split_tokens
    if spec.branching:
        columns = spec.branching + spec.count
        visited = spec.branching + spec.count / spec.branching * spec.top_k
    else:
        columns = visited = spec.count
    gate = linear(
        f"{name}.router", tokens=tokens, inputs=width, outputs=visited * spec.router_matrices, kernels=kernels
    )
    size = kernels.element_bytes
    # Softmax, top-k, one-hot counts and the auxiliary loss: about six small kernels over fp32 [tokens, experts].
    gating = Pointwise(bytes=tokens * columns * 24.0, kernels=6, kernel="router")
    gating_grad = replace(gating, kernel="router_grad")
    return Operation(
        name=gate.name,
        forward=(*gate.forward, gating),
        input_grad=(*gate.input_grad, gating_grad),
        weight_grad=gate.weight_grad,
        weights=(
            Weight(name=f"{name}.router", elements=width * columns * spec.router_matrices, sequence_replicated=True),
            *((Weight(name=f"{name}.router.bias", elements=spec.count, sequence_replicated=True),)
              if spec.router_bias else ()),
        ),
        saves=_router_saves(f"{name}.router", spec, tokens, width, size),
        modules=("moe",),
    )  # fmt: skip


def _router_saves(name: str, spec: ExpertsSpec, tokens: Number, width: int, size: float) -> tuple[Saved, ...]:
    """Per level of gating: fp32 probabilities, the chosen places (int64) and, with noise, the sample and its scale.

    A hierarchical gate copies each token for every group it visits, and keeps both levels' fp32 weights besides the
    order of the copies.
    """
    levels: list[tuple[str, Number, Number]] = [("", tokens, spec.count)]
    if spec.branching:
        levels = [("", tokens, spec.branching), (".second", tokens * spec.top_k, spec.count / spec.branching)]
    saves: list[Saved] = []
    for level, rows, columns in levels:
        parts = ("probabilities", *(("noise", "noise_scale") if spec.router_matrices > 1 else ()))
        saves += [Saved(name=f"{name}{level}.{part}", bytes=rows * columns * 4.0) for part in parts]
        saves.append(Saved(name=f"{name}{level}.chosen", bytes=rows * spec.top_k * 8.0, statistic=True))
    if spec.branching:
        copies = tokens * spec.top_k
        saves += [
            Saved(name=f"{name}.second.input", bytes=copies * width * size),
            *(Saved(name=f"{name}.second.{part}", bytes=copies * each, statistic=True)
              for part, each in (("token", 8.0), ("order", 8.0), ("weight", 4.0), ("weights", 4.0 * spec.top_k))),
            Saved(name=f"{name}.second.offsets", bytes=spec.branching * 4.0, statistic=True),
        ]  # fmt: skip
    return tuple(saves)


def _dispatch_saves(name: str, rows: Number, spec: ExpertsSpec, shard: Shard) -> tuple[Saved, ...]:
    """Indices of the copy: the token and the choice of each row (int64), and the expert whose bias it adds."""
    parts = ("token", "choice", *(("expert",) if spec.bias and not _capacity_factor(spec, shard) else ()))
    return tuple(Saved(name=f"{name}.permute.{part}", bytes=rows * 8.0, statistic=True) for part in parts)


def _combine_saves(name: str, rows: Number, width: int, kernels: Kernels) -> tuple[Saved, ...]:
    """Experts' outputs and the weights that scale them; weighted in the activation, only the weights (fp32)."""
    size = kernels.element_bytes
    if kernels.gates_in_activation:
        return (Saved(name=f"{name}.unpermute.weights", bytes=rows * 4.0, statistic=True),)
    return (Saved(name=f"{name}.unpermute.input", bytes=rows * width * size),
            Saved(name=f"{name}.unpermute.weights", bytes=rows * size, statistic=True))  # fmt: skip


def _moves(
    spec: ExpertsSpec, *, rows: Number, width: int, shard: Shard, kernels: Kernels, name: str
) -> tuple[Operation, Operation]:
    """What brings tokens into expert order, and back weighted by the gate: copies, or products with one-hot tensors."""
    if kernels.expert_dispatch == "einsum":
        kept = Saved(name=f"{name}.unpermute.input", bytes=rows * width * kernels.element_bytes)
        return one_hot_moves(
            name, tokens=shard.split_tokens, rows=rows, group=shard.routing_group or spec.routing_group, width=width,
            kernels=kernels, kept=(kept,),
        )  # fmt: skip
    copied = rows * (1 + _copies_again(spec, shard, kernels) * shard.expert_sources)
    return (
        _permute(f"{name}.permute", rows=copied, width=width, kernels=kernels,
                 saves=_dispatch_saves(name, rows, spec, shard)),
        _permute(f"{name}.unpermute", rows=copied, width=width, kernels=kernels,
                 saves=_combine_saves(name, rows, width, kernels)),
    )  # fmt: skip


def _permute(
    name: str, *, rows: Number, width: int, kernels: Kernels, saves: tuple[Saved, ...]
) -> Operation:
    """Copy tokens into expert order (or back, weighted by the gate): read and write each copied row."""
    size = kernels.element_bytes
    return pointwise(
        name,
        elements=rows * width,
        forward=2 * size,
        backward=2 * size,
        kernels=2,
        kernel="permute",
        saves=saves,
        modules=("moe",),
    )


def _exchange(name: str, spec: ExpertsSpec, *, rows: Number, width: int, shard: Shard, kernels: Kernels) -> Operation:
    """All-to-all of routed rows over ep, forward and backward."""
    if not is_split(shard.ep):
        return Operation(name=name, modules=("moe",))
    send = Collective(
        kind="all_to_all", axis="ep", bytes=rows * width * kernels.element_bytes,
        hides="experts" if kernels.overlap_moe else "",
        copies=spec.visited if kernels.expert_dispatch == "deduplicated" else 0,
    )  # fmt: skip
    return Operation(name=name, forward=(send,), input_grad=(send,), modules=("moe",))


def _expert_tensor_borders(
    name: str, rows: Number, width: int, shard: Shard, kernels: Kernels
) -> tuple[list[Operation], list[Operation]]:
    """Expert-tensor parallelism: gather the etp group's rows before the experts, reduce-scatter after them.

    Without sequence parallelism the ranks of a tp group hold the same rows already: only those of other tp groups are
    gathered, and the outputs are all-reduced.
    """
    if not is_split(shard.etp):
        return [], []
    full_bytes = rows * width * kernels.element_bytes
    gather = (Collective(kind="all_gather", axis="etp", bytes=full_bytes),)
    reduce = (Collective(kind="reduce_scatter", axis="etp", bytes=full_bytes),)
    if not shard.sequence_parallel:
        missing = (1 - 1 / shard.expert_sources) * shard.etp / np.maximum(shard.etp - 1, 1)
        gather = (Collective(kind="all_gather", axis="etp", bytes=full_bytes * missing),)
        reduce = (Collective(kind="all_reduce", axis="etp", bytes=full_bytes),)
    enter = Operation(name=f"{name}.expert_gather", forward=gather, input_grad=reduce, modules=("moe",))
    leave = Operation(name=f"{name}.expert_scatter", forward=reduce, input_grad=gather, modules=("moe",))
    return [enter], [leave]


def _grouped_feed_forward(
    spec: ExpertsSpec, *, rows: Number, width: int, shard: Shard, kernels: Kernels, name: str
) -> list[Operation]:
    """Two grouped GEMMs with the activation between; local experts = count / ep, hidden / etp each."""
    local, hidden = spec.count / shard.ep, spec.hidden / shard.etp
    activated = activation(
        f"{name}.activation", rows=rows, hidden=hidden, spec=spec, kernels=kernels, modules=("moe_act", "moe")
    )
    columns = hidden * (2 if spec.gated else 1)
    kept = kernels.kept_bytes(kernels.activation_input_dtype)
    # Padded buffers are equal batches; a grouped product reads where each expert's rows end (int32).
    epilogue = kernels.experts_in_epilogue
    ends = Saved(name=f"{name}.offsets", bytes=local * 4.0, statistic=True)
    offsets = () if _capacity_factor(spec, shard) else (ends,)
    return [
        _grouped(
            f"{name}.up", local=local, rows=rows, inputs=width, outputs=columns, spec=spec, shard=shard,
            kernels=kernels,
            saves=(Saved(name=f"{name}.expert_input", bytes=rows * width * kernels.gemm_input_bytes), *offsets,
                   Saved(name=f"{name}.up.output", bytes=rows * columns * kept)),
            narrow_outputs=epilogue,
        ),
        *_clamp(f"{name}.clamp", rows=rows, hidden=hidden, spec=spec, kernels=kernels),
        replace(activated, forward=(), input_grad=()) if epilogue else activated,
        _grouped(
            f"{name}.down", local=local, rows=rows, inputs=hidden, outputs=width, spec=spec, shard=shard,
            kernels=kernels, narrow_inputs=epilogue,
        ),
        *_weighted_bias(f"{name}.bias", rows=rows, width=width, spec=spec, kernels=kernels),
    ]  # fmt: skip


def _clamp(
    name: str, *, rows: Number, hidden: Number, spec: ExpertsSpec, kernels: Kernels
) -> list[Operation]:
    """Clamps of both halves of the gated products in tensor operations, joined again.

    Forward 8 elements a hidden unit (two clamps, a concatenation), backward 10 (two masks of gradient by input, the
    join of their halves); keeps the clamped copy (Megatron-LM megatron/core/fusions/fused_bias_geglu.py
    weighted_bias_quick_geglu_impl, core 0.14 to 0.16).
    """
    if not spec.clamped or kernels.experts_pointwise == "kernels" or kernels.experts_in_epilogue:
        return []
    size = kernels.element_bytes
    columns = hidden * (2 if spec.gated else 1)
    return [
        pointwise(
            name, elements=rows * columns, forward=4 * size, backward=5 * size, kernels=3, kernel="clamp",
            saves=(Saved(name=f"{name}.output", bytes=rows * columns * size),), modules=("moe_act", "moe"),
        )
    ]  # fmt: skip


def _weighted_bias(
    name: str, *, rows: Number, width: int, spec: ExpertsSpec, kernels: Kernels
) -> list[Operation]:
    """Adds each expert's output bias times its rows' gates (fp32), in tensor operations expert by expert.

    Per element forward: the product (4 B written), the sum (reads both, writes fp32), the concatenation and the cast
    back: 24 B and two elements. Backward: the cast to fp32, the cast of the sum's gradient, the products with gate and
    bias and their sums (12 B each), the join of the outputs' gradients: 32 B and four elements (Megatron-LM
    megatron/core/transformer/moe/experts.py TEGroupedMLP._apply_bias, core 0.14 to 0.16). Counted as the kernels of
    one expert.
    """
    if not spec.bias or kernels.experts_pointwise == "kernels" or kernels.experts_in_epilogue:
        return []
    size = kernels.element_bytes
    forward = Pointwise(bytes=rows * width * (24.0 + 2 * size), kernels=4, kernel="weighted_bias")
    backward = Pointwise(bytes=rows * width * (32.0 + 4 * size), kernels=7, kernel="weighted_bias_grad")
    return [Operation(name=name, forward=(forward,), input_grad=(backward,), modules=("moe",))]


def _grouped(
    name: str, *, local: Number, rows: Number, inputs: Number, outputs: Number, spec: ExpertsSpec, shard: Shard,
    kernels: Kernels, saves: tuple[Saved, ...] = (), narrow_inputs: bool = False, narrow_outputs: bool = False,
) -> Operation:  # fmt: skip
    """One grouped linear layer over the local experts, with its two backward products.

    `narrow_inputs` and `narrow_outputs` say that the inputs, or the outputs' gradients, come quantised.
    """

    def grouped(n: Number, k: Number) -> GroupedGemm:
        return GroupedGemm(experts=local, tokens=rows, n=n, k=k, imbalance=shard.imbalance, dtype=kernels.gemm_dtype)

    bias = (Weight(name=f"{name}.bias", elements=local * outputs, sharing="expert"),) if spec.bias else ()
    return Operation(
        name=name,
        forward=(*(() if narrow_inputs else cast(rows * inputs, kernels)), grouped(outputs, inputs)),
        input_grad=(*(() if narrow_outputs else cast(rows * outputs, kernels)), grouped(inputs, outputs)),
        weight_grad=(grouped(inputs, outputs),),
        weights=(Weight(name=f"{name}.weight", elements=local * inputs * outputs, sharing="expert"), *bias),
        saves=saves,
        modules=("moe",),
    )
