"""The attention core softmax(Q K^T) V: fused (flash) or as separate kernels, and split over context parallelism."""

from __future__ import annotations

from simulator.arch.operations import (
    AttentionCore,
    Collective,
    Gemm,
    Number,
    Operation,
    Pointwise,
    Saved,
    Weight,
    Work,
)
from simulator.arch.shard import Kernels, Shard, is_split
from simulator.spec.model import AttentionSpec

CORE = ("core_attn", "attention")


def attention_core(
    spec: AttentionSpec, *, kv_len: Number, shard: Shard, kernels: Kernels, name: str
) -> list[Operation]:
    """The core of one rank with its context-parallel exchanges."""
    before, after = _context_exchange(spec, kv_len=kv_len, shard=shard, kernels=kernels, name=name)
    if kernels.fused_attention:
        core = _fused(spec, kv_len=kv_len, shard=shard, kernels=kernels, name=name)
    else:
        core = _unfused(spec, kv_len=kv_len, shard=shard, kernels=kernels, name=name)
    return [*before, *core, *after]


def _tables(spec: AttentionSpec, shard: Shard, name: str) -> tuple[Weight, ...]:
    """Learned parameters of the core: a relative-position bias table (buckets x heads), attention sinks."""
    tables: list[Weight] = []
    if spec.relative_bias_buckets:
        elements = spec.relative_bias_buckets * spec.heads / shard.tp
        tables.append(Weight(name=f"{name}.relative_bias", elements=elements))
    if spec.sinks:
        tables.append(Weight(name=f"{name}.sinks", elements=spec.heads / shard.tp))
    return tuple(tables)


def _fused(
    spec: AttentionSpec, *, kv_len: Number, shard: Shard, kernels: Kernels, name: str
) -> list[Operation]:
    """One kernel; saves the fp32 log-sum-exp per row (Dao 2022; facts b10); its output is the output layer's input.

    A relative-position bias stays in memory, once for all layers that share its table.
    """
    batch, heads, kv_heads, q_len = _local(spec, shard)
    window = spec.window or spec.chunk
    # Causal work is dealt out evenly over cp (2 cp chunks, Llama 3 sec. 3.3.2): that of whole sequences on 1 / cp of
    # the heads.
    whole = spec.causal and shard.context_kind != "ulysses"
    core_heads, core_q_len = (heads / shard.cp, shard.seq_len) if whole else (heads, q_len)

    def core(*, backward: bool) -> Work:
        return AttentionCore(
            batch=batch, heads=core_heads, kv_heads=kv_heads, q_len=core_q_len, kv_len=kv_len, head_dim=spec.head_dim,
            value_head_dim=spec.value_head_dim, causal=spec.causal, window=window, backward=backward,
            kernel=kernels.attention_kernel, dtype=kernels.attention_dtype,
        )  # fmt: skip

    rows = batch * heads * q_len
    saves = [Saved(name=f"{name}.core.logsumexp", bytes=rows * 4.0, statistic=True)]
    if spec.relative_bias_buckets:
        bias_bytes = heads * q_len * kv_len * kernels.element_bytes
        saves.append(Saved(name=f"{name}.core.relative_bias", bytes=bias_bytes))
    return [
        Operation(
            name=f"{name}.core",
            forward=(core(backward=False),),
            input_grad=(core(backward=True),),
            weights=_tables(spec, shard, name),
            saves=tuple(saves),
            modules=CORE,
        )
    ]


def _local(spec: AttentionSpec, shard: Shard) -> tuple[Number, Number, Number, Number]:
    """Batch, query heads, key/value heads and queries of one rank; Ulysses trades queries for heads."""
    kv_heads = spec.kv_heads / shard.tp
    if shard.context_kind == "ulysses":
        return shard.micro_batch, spec.heads / shard.tp / shard.cp, kv_heads / shard.cp, shard.seq_len
    return shard.micro_batch, spec.heads / shard.tp, kv_heads, shard.seq_len / shard.cp


def _unfused(
    spec: AttentionSpec, *, kv_len: Number, shard: Shard, kernels: Kernels, name: str
) -> list[Operation]:
    """Scores, softmax, dropout, context as separate kernels over a full s x s matrix (no causal skipping).

    Saves the softmax output and, with dropout, the mask (1 B) and the dropped probabilities: the 5 a s^2 b of
    Korthikanti 2022 sec. 4.1. An unfused softmax runs scale, mask, and an fp32 softmax as kernels of their own and
    keeps its output in fp32, besides the probabilities in the activations' dtype.
    """
    batch, heads, kv_heads, q_len = _local(spec, shard)
    groups, size = batch * heads, kernels.element_bytes
    scores = groups * q_len * kv_len
    dtype = kernels.activation_dtype
    score = Gemm(m=q_len, n=kv_len, k=spec.head_dim, batch=groups, dtype=dtype)
    score_q = Gemm(m=q_len, n=spec.head_dim, k=kv_len, batch=groups, dtype=dtype)
    score_k = Gemm(m=kv_len, n=spec.head_dim, k=q_len, batch=groups, dtype=dtype)
    context = Gemm(m=q_len, n=spec.value_head_dim, k=kv_len, batch=groups, dtype=dtype)
    context_p = Gemm(m=q_len, n=kv_len, k=spec.value_head_dim, batch=groups, dtype=dtype)
    context_v = Gemm(m=kv_len, n=spec.value_head_dim, k=q_len, batch=groups, dtype=dtype)
    (forward, steps), (backward, steps_back) = softmax_passes(kernels)
    bias = size if spec.relative_bias else 0.0
    softmax = Operation(
        name=f"{name}.softmax",
        forward=(Pointwise(bytes=scores * (forward + bias), flops=scores * 5, kernels=steps, kernel="softmax"),),
        input_grad=(Pointwise(bytes=scores * (backward + bias), flops=scores * 5, kernels=steps_back,
                              kernel="softmax_grad"),),
        weights=_tables(spec, shard, name),
        saves=_probabilities(spec, groups * q_len, kv_len, kernels, name),
        modules=CORE,
    )
    return [
        Operation(name=f"{name}.scores", forward=(score,), input_grad=(score_q, score_k), modules=CORE),
        softmax,
        *_probability_dropout(scores, kernels, name),
        Operation(name=f"{name}.context", forward=(context,), input_grad=(context_p, context_v), modules=CORE),
        *_layout(spec, rows=groups * q_len, kv_rows=batch * kv_heads * kv_len, kernels=kernels, name=name),
    ]


def softmax_passes(kernels: Kernels) -> tuple[tuple[float, int], tuple[float, int]]:
    """(bytes per score, kernels) of an unfused core's scale, mask and softmax, forward and backward [B].

    One kernel reads and writes once; backward it reads its output and that one's gradient. A compiler whose kernels end
    at each reduction reads the scores for the greatest, for the sum and for the quotients, and backward output and
    gradient for their sum and again for the result. In tensor operations in the activations' dtype scale, mask and
    softmax each read and write; in fp32 casts come besides.
    """
    size, wide = kernels.element_bytes, kernels.softmax_bytes
    if kernels.compiled and not (kernels.fused_softmax or kernels.fuses_reductions):
        return (3 * size + wide, 3), (2 * (size + wide) + size, 2)
    if kernels.fused_softmax or kernels.compiled:
        return (2 * size, 1), (3 * size, 1)
    if not kernels.softmax_dtype:
        return (6 * size, 3), (5 * size, 2)
    return (8 * size + 8.0, 5), (12 * size + 12.0, 5)


def _layout(
    spec: AttentionSpec, *, rows: Number, kv_rows: Number, kernels: Kernels, name: str
) -> list[Operation]:
    """Copies between [batch heads, sequence, dim] and [sequence, batch, width]: the context forward and its gradient,
    and the gradients of Q, K and V put side by side (Megatron-LM CoreAttention: permute, contiguous, split). Software
    that copies by head does so with Q, K and V too.
    """
    if kernels.compiled and not kernels.copies_heads:
        return []
    size = 2 * kernels.element_bytes
    context_bytes = rows * spec.value_head_dim * size
    sides_bytes = (rows * spec.head_dim + kv_rows * (spec.head_dim + spec.value_head_dim)) * size
    if kernels.copies_heads:
        every = Pointwise(bytes=context_bytes + sides_bytes, kernels=4)
        return [Operation(name=f"{name}.layout", forward=(every,), input_grad=(every,), modules=CORE)]
    return [
        Operation(
            name=f"{name}.layout",
            forward=(Pointwise(bytes=context_bytes),),
            input_grad=(Pointwise(bytes=context_bytes + sides_bytes, kernels=2),),
            modules=CORE,
        )
    ]


def _probabilities(
    spec: AttentionSpec, rows: Number, keys: Number, kernels: Kernels, name: str
) -> tuple[Saved, ...]:
    """What an unfused softmax keeps: its output (a sink adds a column), and what the context product reads of it.

    The context product reads the output itself unless that is wider (fp32); with dropout it reads the dropped copy.
    """
    size = kernels.element_bytes
    wide = kernels.softmax_bytes
    scores = rows * (keys + int(spec.sinks))
    # In fp32: the gradients of its output and of its input, and the one of the probabilities that they came from.
    beside = scores * (2 * wide + size) if wide > size else None
    output = Saved(name=f"{name}.softmax.output", bytes=scores * wide, beside_bytes=beside)
    if kernels.dropout or wide == size:
        return (output,)
    return output, Saved(name=f"{name}.softmax.probabilities", bytes=scores * size)


def _probability_dropout(scores: Number, kernels: Kernels, name: str) -> list[Operation]:
    """Dropout on the attention probabilities: mask of 1 B and the dropped copy are saved."""
    if not kernels.dropout:
        return []
    size = kernels.element_bytes
    return [
        Operation(
            name=f"{name}.probability_dropout",
            forward=(Pointwise(bytes=scores * (2 * size + 1.0)),),
            input_grad=(Pointwise(bytes=scores * (2 * size + 1.0)),),
            saves=(
                Saved(name=f"{name}.probability_dropout.mask", bytes=scores * 1.0),
                Saved(name=f"{name}.probability_dropout.output", bytes=scores * size),
            ),
            modules=CORE,
        )
    ]


def _context_exchange(
    spec: AttentionSpec, *, kv_len: Number, shard: Shard, kernels: Kernels, name: str
) -> tuple[list[Operation], list[Operation]]:
    """What context parallelism sends around the core.

    ring: K and V visit every rank, beside the core; backward sends them again with their fp32 gradients
    (Liu 2023; torch's ring does the same). all-gather: K and V are gathered first and their gradients
    reduce-scattered (Llama 3 sec. 3.3.2). ulysses: all-to-alls of Q, K, V and of the output (Jacobs 2023).
    """
    if not is_split(shard.cp):
        return [], []
    size = kernels.element_bytes
    kv_columns = spec.kv_heads * (spec.head_dim + spec.value_head_dim) / shard.tp
    kv_bytes = shard.micro_batch * kv_len * kv_columns * size
    if shard.context_kind == "ulysses":
        query_bytes = shard.tokens * spec.heads * spec.head_dim / shard.tp * size
        output_bytes = shard.tokens * spec.heads * spec.value_head_dim / shard.tp * size
        there = tuple(
            Collective(kind="all_to_all", axis="cp", bytes=part) for part in (query_bytes, kv_bytes / shard.cp)
        )
        back = (Collective(kind="all_to_all", axis="cp", bytes=output_bytes),)
        return (
            [Operation(name=f"{name}.context_scatter", forward=there, input_grad=there, modules=CORE)],
            [Operation(name=f"{name}.context_gather", forward=back, input_grad=back, modules=CORE)],
        )
    hides = "attention" if shard.context_kind == "ring" else ""
    gather = Collective(kind="all_gather", axis="cp", bytes=kv_bytes, hides=hides)
    gradients = Collective(kind="reduce_scatter", axis="cp", bytes=kv_bytes * 4.0 / size, hides=hides)
    return [
        Operation(name=f"{name}.context_gather", forward=(gather,), input_grad=(gather, gradients), modules=CORE)
    ], []
