"""One layer as operations, and one model as segments: embedding, each kind of layer, head."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulator.arch.attention import attention
from simulator.arch.embedding import embedding, final_norm, head
from simulator.arch.experts import experts
from simulator.arch.feed_forward import feed_forward
from simulator.arch.linear import bias_dropout_add, linear, norm
from simulator.arch.operations import Number, Operation, Saved
from simulator.arch.recurrent import lstm
from simulator.arch.shard import Kernels, Shard
from simulator.spec.model import LayerSpec, ModelSpec, StackSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A piece of the model that a pipeline stage holds whole: its operations and the bytes of its input."""

    name: str
    operations: tuple[Operation, ...]
    input_bytes: Number
    """Activation that enters (and is all that full recomputation keeps), local [B]."""
    recomputable: bool = True
    """Layers can be recomputed; the embedding and the head are not."""


def layer_operations(spec: LayerSpec, model: ModelSpec, *, shard: Shard, kernels: Kernels) -> list[Operation]:
    """The operations of one layer in the order a framework runs them.

    Each block is norm, block, (post-norm), bias-dropout-add. A parallel block (PaLM) shares one norm and one add.
    """
    blocks: list[tuple[str, list[Operation], bool]] = []
    if spec.attention is not None:
        operations = attention(spec.attention, width=model.hidden, shard=shard, kernels=kernels)
        blocks.append(("attention", operations, spec.attention.out_bias))
    if spec.cross_attention is not None:
        operations = attention(
            spec.cross_attention, width=model.hidden, shard=shard, kernels=kernels, name="cross_attention", cross=True
        )
        blocks.append(("cross_attention", operations, spec.cross_attention.out_bias))
    if spec.feed_forward is not None:
        operations = feed_forward(spec.feed_forward, width=model.hidden, shard=shard, kernels=kernels)
        blocks.append(("mlp", operations, spec.feed_forward.bias))
    if spec.experts is not None:
        operations = experts(spec.experts, width=model.hidden, shard=shard, kernels=kernels)
        blocks.append(("moe", operations, spec.experts.bias))
    if spec.lstm is not None:
        blocks.append(("lstm", lstm(spec.lstm, width=model.hidden, shard=shard, kernels=kernels), False))
    return _with_norms_and_adds(blocks, spec, model, shard=shard, kernels=kernels)


def _with_norms_and_adds(
    blocks: list[tuple[str, list[Operation], bool]], spec: LayerSpec, model: ModelSpec, *, shard: Shard,
    kernels: Kernels,
) -> list[Operation]:  # fmt: skip
    """Put the layer's norms before (and, when there are twice as many, after) its blocks."""
    result: list[Operation] = []
    after = spec.norms >= 2 * len(blocks)
    for index, (name, operations, bias) in enumerate(blocks):
        if index == 0 or not spec.parallel:
            if index < spec.norms:
                result.append(_norm(f"{name}.norm", model, shard, kernels))
            else:
                result.append(_kept_input(name, model, shard, kernels))
        result += operations
        if after:
            result.append(_norm(f"{name}.post_norm", model, shard, kernels, output_saved=False, modules=()))
        result.append(
            bias_dropout_add(f"{name}.add", tokens=shard.split_tokens, width=model.hidden, kernels=kernels, bias=bias)
        )
    return result


def _kept_input(name: str, model: ModelSpec, shard: Shard, kernels: Kernels) -> Operation:
    """A block without a norm before it (the 2017 mixtures) keeps its own input."""
    kept = Saved(name=f"{name}.input", bytes=shard.tokens * model.hidden * kernels.element_bytes, boundary=True)
    return Operation(name=f"{name}.input", saves=(kept,))


def _norm(
    name: str, model: ModelSpec, shard: Shard, kernels: Kernels, *, input_saved: bool = True,
    output_saved: bool = True, modules: tuple[str, ...] = ("layernorm",),
) -> Operation:  # fmt: skip
    return norm(
        name, tokens=shard.split_tokens, width=model.hidden, kernels=kernels, layernorm=model.norm == "layernorm",
        bias=model.norm_bias, input_saved=input_saved, output_saved=output_saved,
        modules=modules,
    )  # fmt: skip


def layer_segment(spec: LayerSpec, model: ModelSpec, *, shard: Shard, kernels: Kernels, name: str) -> Segment:
    """One layer as a segment."""
    return Segment(
        name=name,
        operations=tuple(layer_operations(spec, model, shard=shard, kernels=kernels)),
        input_bytes=shard.split_tokens * model.hidden * kernels.element_bytes,
    )


def embedding_segment(model: ModelSpec, *, shard: Shard, kernels: Kernels) -> Segment:
    """The input end. A decoder of an encoder-decoder shares the same table."""
    operations = tuple(embedding(model, shard=shard, kernels=kernels))
    return Segment(name="embedding", operations=operations, input_bytes=shard.tokens * 8.0, recomputable=False)


def norm_segment(model: ModelSpec, stack: StackSpec, *, shard: Shard, kernels: Kernels) -> Segment:
    """A stack's final norm."""
    operations = (final_norm(model, shard=shard, kernels=kernels, name=f"{stack.role}.final_norm"),)
    input_bytes = shard.split_tokens * model.hidden * kernels.element_bytes
    return Segment(name=f"{stack.role}.final_norm", operations=operations if stack.final_norm else (),
                   input_bytes=input_bytes, recomputable=False)  # fmt: skip


def head_segment(model: ModelSpec, *, shard: Shard, kernels: Kernels) -> Segment:
    """The output end: projection onto the vocabulary and the loss."""
    return Segment(
        name="head",
        operations=tuple(head(model, shard=shard, kernels=kernels)),
        input_bytes=shard.split_tokens * model.hidden * kernels.element_bytes,
        recomputable=False,
    )


def mtp_segment(model: ModelSpec, *, shard: Shard, kernels: Kernels) -> Segment:
    """One multi-token-prediction depth (DeepSeek-V3 sec. 2.2): two norms, a 2h x h projection, one more layer like the
    last, its final norm, and a pass through the shared head.
    """
    width = model.hidden
    last = model.stacks[-1].layer(model.stacks[-1].layers - 1)
    shared_head = replace(model, head=replace(model.head, tied=True, bias=False))
    mask = Saved(name="mtp.embedding.dropout_mask", bytes=shard.split_tokens * width * 1.0)
    operations = [
        Operation(name="mtp.embedding", saves=(mask,) if kernels.dropout else ()),
        # The trunk's final norm lists this norm's input, which the head reads too.
        _norm("mtp.hidden_norm", model, shard, kernels, input_saved=False, output_saved=False, modules=()),
        _norm("mtp.embedding_norm", model, shard, kernels, output_saved=False, modules=()),
        linear("mtp.project", tokens=shard.tokens, inputs=2 * width, outputs=width / shard.tp, kernels=kernels,
               saves=(Saved(name="mtp.joined", bytes=shard.split_tokens * 2 * width * kernels.gemm_input_bytes),)),
        *layer_operations(last, model, shard=shard, kernels=kernels),
        _norm("mtp.final_norm", model, shard, kernels, modules=()),
        *head(shared_head, shard=shard, kernels=kernels),
    ]
    return Segment(name="mtp", operations=tuple(operations), recomputable=False,
                   input_bytes=shard.split_tokens * width * kernels.element_bytes)  # fmt: skip
