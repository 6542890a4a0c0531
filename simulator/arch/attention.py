"""Attention blocks: multi-head, grouped-query, multi-query, latent and cross attention.

Query heads and key/value heads split over tp; when tp exceeds the key/value heads these are replicated.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.arch.core import attention_core
from simulator.arch.linear import enter_tensor_parallel, kept_in, leave_tensor_parallel, linear, norm, pointwise
from simulator.arch.operations import Number, Operation, Pointwise, Saved, Weight
from simulator.arch.shard import Kernels, Shard
from simulator.spec.model import AttentionSpec


def local_kv_heads(spec: AttentionSpec, tp: Number) -> Number:
    """Key/value heads of one rank: kv_heads / tp, at least one (then they are replicated).

    >>> from simulator.spec.model import AttentionSpec
    >>> local_kv_heads(AttentionSpec(heads=64, kv_heads=8, head_dim=128, value_head_dim=128), 16)
    1.0
    """
    if isinstance(tp, np.ndarray):
        return np.maximum(spec.kv_heads / tp, 1.0)
    return max(spec.kv_heads / tp, 1.0)


def attention(
    spec: AttentionSpec, *, width: int, shard: Shard, kernels: Kernels, name: str = "attention", cross: bool = False
) -> list[Operation]:
    """From the norm's output to the row-parallel output: projections, rotary, core, output projection."""
    enter = enter_tensor_parallel(f"{name}.enter", tokens=shard.tokens, width=width, shard=shard, kernels=kernels)
    leave = leave_tensor_parallel(f"{name}.leave", tokens=shard.tokens, width=width, shard=shard, kernels=kernels)
    if spec.latent:
        projections = _latent_projections(spec, width=width, shard=shard, kernels=kernels, name=name)
    elif cross:
        projections = _cross_projections(spec, width=width, shard=shard, kernels=kernels, name=name)
    else:
        projections = _projections(spec, width=width, shard=shard, kernels=kernels, name=name)
    keys = shard.memory_seq_len if cross else shard.seq_len
    core = attention_core(spec, kv_len=keys, shard=shard, kernels=kernels, name=name)
    values = spec.heads * spec.value_head_dim / shard.tp
    elements, dtype = shard.tokens * values, kernels.attention_output_dtype
    output = linear(
        f"{name}.out", tokens=shard.tokens, inputs=values, outputs=width, kernels=kernels,
        bias_elements=width if spec.out_bias else 0, modules=("attention",),
        saves=(Saved(name=f"{name}.core.output", bytes=elements * kernels.kept_bytes(dtype)),),
    )  # fmt: skip
    keep, take = kept_in(dtype, elements, kernels)
    output = replace(output, forward=(*output.forward, *keep), input_grad=(*output.input_grad, *take))
    return [enter, *projections, *core, output, leave]


def _projections(
    spec: AttentionSpec, *, width: int, shard: Shard, kernels: Kernels, name: str
) -> list[Operation]:
    """One fused Q, K, V projection, or three, then QK-norm and rotary where the model has them."""
    query = spec.heads * spec.head_dim / shard.tp
    kv_heads = local_kv_heads(spec, shard.tp)
    key, value = kv_heads * spec.head_dim, kv_heads * spec.value_head_dim
    saves = _query_key_value(name, shard.tokens, query, key, value, kernels.element_bytes)
    # By name the columns of each product and what is saved of it.
    products: dict[str, tuple[Number, tuple[Saved, ...]]] = {"qkv": (query + key + value, saves)}
    if kernels.separate_qkv:
        products = {part: (columns, (saved,))
                    for part, columns, saved in zip("qkv", (query, key, value), saves, strict=True)}  # fmt: skip
    operations = [
        linear(
            f"{name}.{part}", tokens=shard.tokens, inputs=width, outputs=columns, kernels=kernels,
            bias_elements=columns if spec.qkv_bias else 0, saves=saved, modules=("attention",),
        )
        for part, (columns, saved) in products.items()
    ]  # fmt: skip
    if kernels.separate_qkv:
        operations.append(_input_gradient_sum(f"{name}.qkv_sum", shard.tokens * width, kernels))
    if spec.qk_norm:
        operations.append(_qk_norm(spec, tokens=shard.tokens, query=query, key=key, kernels=kernels, name=name))
    operations += _position(spec, query_and_key=shard.tokens * (query + key), kernels=kernels, name=name)
    return operations


def _input_gradient_sum(name: str, elements: Number, kernels: Kernels) -> Operation:
    """The input gradients of three products added up: two kernels, or two more reads by a compiled one."""
    moves, steps = (2, 1) if kernels.compiled else (6, 2)
    summed = Pointwise(bytes=elements * moves * kernels.element_bytes, kernels=steps)
    return Operation(name=name, input_grad=(summed,), modules=("attention",))


def _query_key_value(
    name: str, tokens: Number, query: Number, key: Number, value: Number, size: float
) -> tuple[Saved, ...]:
    """Q, K and V are the core's inputs: they belong to what makes them, and stay when only the core is recomputed."""
    parts = (("q", query), ("k", key), ("v", value))
    return tuple(Saved(name=f"{name}.{part}", bytes=tokens * columns * size) for part, columns in parts)


def _qk_norm(
    spec: AttentionSpec, *, tokens: Number, query: Number, key: Number, kernels: Kernels, name: str
) -> Operation:
    """RMS norms of Q and of K, per head (Qwen3) or over all heads."""
    size, elements = kernels.element_bytes, tokens * (query + key)
    rows = (spec.head_dim, spec.head_dim) if spec.qk_norm_shared else (query, key)
    kept = [_qk_norm_saves(f"{name}.{part}_norm", tokens * columns, row, kernels)
            for part, columns, row in (("q", query, rows[0]), ("k", key, rows[1]))]  # fmt: skip
    scale = 2 * spec.head_dim if spec.qk_norm_shared else query + key
    operation = pointwise(
        f"{name}.qk_norm", elements=elements, forward=2 * size, backward=3 * size, kernels=2,
        saves=(*kept[0], *kept[1]), modules=("attention",),
    )  # fmt: skip
    weight = Weight(name=f"{name}.qk_norm", elements=scale, sequence_replicated=spec.qk_norm_shared)
    return Operation(
        name=operation.name, forward=operation.forward, input_grad=operation.input_grad, weights=(weight,),
        saves=operation.saves, modules=operation.modules,
    )  # fmt: skip


def _qk_norm_saves(name: str, elements: Number, row: Number, kernels: Kernels) -> tuple[Saved, ...]:
    """Input and fp32 scale of each row; unfused an fp32 copy of the input and the normalised input."""
    fused = kernels.fused_norm or kernels.compiled
    scale = Saved(name=f"{name}.scale", bytes=elements / row * 4.0, statistic=True)
    if fused:
        return Saved(name=f"{name}.input", bytes=elements * kernels.element_bytes), scale
    normalised = Saved(name=f"{name}.normalised", bytes=elements * kernels.element_bytes)
    return Saved(name=f"{name}.input", bytes=elements * 4.0), scale, normalised


def _position(
    spec: AttentionSpec, *, query_and_key: Number, kernels: Kernels, name: str
) -> list[Operation]:
    """Rotary position embedding on Q and K, where the model uses it; unfused, cos and sin products, the
    rotated half (negate, concatenate) and the sum are five kernels that move ten elements.
    """
    if not spec.rope_head_dim:
        return []
    fused = kernels.fused_rope or kernels.compiled
    share = spec.rope_head_dim / spec.head_dim
    size = (2 if fused else 10) * kernels.element_bytes * share
    return [pointwise(f"{name}.rope", elements=query_and_key, forward=size, backward=size, kernels=2 if fused else 10,
                      kernel="rope", modules=("attention",))]  # fmt: skip


def _cross_projections(
    spec: AttentionSpec, *, width: int, shard: Shard, kernels: Kernels, name: str
) -> list[Operation]:
    """Q from the decoder, K and V from the encoder's output."""
    query = spec.heads * spec.head_dim / shard.tp
    kv_heads = local_kv_heads(spec, shard.tp)
    key, value = kv_heads * spec.head_dim, kv_heads * spec.value_head_dim
    size = kernels.element_bytes
    q_saved, k_saved, v_saved = _query_key_value(name, 1.0, query, key, value, size)
    return [
        linear(
            f"{name}.q", tokens=shard.tokens, inputs=width, outputs=query, kernels=kernels,
            bias_elements=query if spec.qkv_bias else 0, modules=("attention",),
            saves=(Saved(name=q_saved.name, bytes=q_saved.bytes * shard.tokens),),
        ),
        linear(
            f"{name}.kv", tokens=shard.memory_tokens, inputs=width, outputs=key + value, kernels=kernels,
            bias_elements=key + value if spec.qkv_bias else 0, modules=("attention",),
            saves=tuple(
                Saved(name=kept.name, bytes=kept.bytes * shard.memory_tokens)
                for kept in (k_saved, v_saved)
            ),
        ),
    ]  # fmt: skip


def _latent_projections(
    spec: AttentionSpec, *, width: int, shard: Shard, kernels: Kernels, name: str
) -> list[Operation]:
    """Multi-head latent attention (DeepSeek-V2 sec. 2.1): down-projections to small latents, norms, up-projections.

    Down-projections are replicated over tp. The shared rotary key is broadcast to all heads, so the core sees
    full keys of head_dim. Module "mla_up_proj" recomputes the up-projections from the latents.
    """
    tokens, heads, size = shard.tokens, spec.heads / shard.tp, kernels.element_bytes
    nope = spec.head_dim - spec.rope_head_dim
    query, key, value = heads * spec.head_dim, heads * spec.head_dim, heads * spec.value_head_dim
    q_saved, k_saved, v_saved = _query_key_value(name, tokens, query, key, value, size)
    up_modules = ("mla_up_proj", "attention")
    operations = (
        _latent_down(f"{name}.q_down", tokens, width, spec.q_lora_rank, spec.q_lora_rank, kernels)
        if spec.q_lora_rank else []
    )  # fmt: skip
    operations.append(
        linear(
            f"{name}.q_up" if spec.q_lora_rank else f"{name}.q", tokens=tokens, inputs=spec.q_lora_rank or width,
            outputs=query, kernels=kernels, saves=(q_saved,), modules=up_modules,
        )
    )  # fmt: skip
    operations += _latent_down(
        f"{name}.kv_down", tokens, width, spec.kv_lora_rank + spec.rope_head_dim, spec.kv_lora_rank, kernels
    )
    operations.append(
        linear(
            f"{name}.kv_up", tokens=tokens, inputs=spec.kv_lora_rank, outputs=heads * (nope + spec.value_head_dim),
            kernels=kernels, saves=(k_saved, v_saved), modules=up_modules,
        )
    )  # fmt: skip
    rope = pointwise(
        f"{name}.rope", elements=tokens * (query + key), forward=2 * size, backward=2 * size, kernels=2,
        modules=up_modules,
    )  # fmt: skip
    return [*operations, rope]


def _latent_down(
    name: str, tokens: Number, width: int, outputs: int, normed: int, kernels: Kernels
) -> list[Operation]:
    """A down-projection and the RMS norm of its latent; the latent (norm input and output) is saved."""
    down = linear(
        name, tokens=tokens, inputs=width, outputs=outputs, kernels=kernels, modules=("attention",),
        sequence_replicated=True,
    )  # fmt: skip
    latent = norm(f"{name}.norm", tokens=tokens, width=normed, kernels=kernels, layernorm=False, bias=False)
    saves = tuple(replace(saved, boundary=False) for saved in latent.saves)
    return [down, Operation(
        name=latent.name, forward=latent.forward, input_grad=latent.input_grad[:1], weight_grad=latent.weight_grad,
        weights=latent.weights, saves=saves, modules=("attention",),
    )]  # fmt: skip
