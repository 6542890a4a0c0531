"""Reads a model's TOML file into a `ModelSpec`: patterns are written out layer by layer, runs of equal layers joined.

`models/README.md` explains the format; the tables are in `model_tables`, what can be wrong across them in
`model_checks`.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import PurePath

from simulator.errors import InputError
from simulator.spec.model import (
    AttentionSpec,
    EmbeddingSpec,
    ExpertsSpec,
    FeedForwardSpec,
    HeadSpec,
    LayerSpec,
    LstmSpec,
    ModelSpec,
    Published,
    StackSpec,
)
from simulator.spec.model_checks import faults, stack_layers
from simulator.spec.model_tables import ModelFile, printed_count
from simulator.spec.reading import Document, validated


def read_model(document: Document) -> ModelSpec:
    """The model that a document describes.

    Raises `InputError` with every problem and its line: unknown keys, wrong values, then contradictions across keys.
    """
    file = validated(document, ModelFile)
    problems = [document.problem(fault.key, f"{fault.message}.", fault.hint) for fault in faults(file)]
    if problems:
        raise InputError(problems)
    return model_of(file, name=PurePath(document.path).stem)


def model_of(file: ModelFile, *, name: str) -> ModelSpec:
    """The frozen specification of a file that has no faults."""
    dims, norm = file.dims, file.norm
    return ModelSpec(
        name=name,
        title=file.title,
        family=file.family,
        aliases=tuple(file.aliases),
        hidden=dims.hidden,
        seq_len=dims.seq_len,
        target_seq_len=dims.target_seq_len,
        stacks=tuple(_stack(file, role, layers) for role, layers in stack_layers(file)),
        embedding=EmbeddingSpec(
            vocab=file.embedding.vocab,
            width=file.embedding.width or dims.hidden,
            learned_positions=file.embedding.learned_positions,
            token_types=file.embedding.token_types,
            norm=file.embedding.norm,
        ),
        head=HeadSpec(**dict(file.head)),
        norm="layernorm" if norm is None else norm.kind,
        norm_bias=norm is not None and norm.kind == "layernorm" and norm.bias is not False,
        dropout=file.dropout,
        published=_published(file),
        training=dict(file.training),
        sources=dict(file.sources),
    )


def _stack(file: ModelFile, role: str, layers: int) -> StackSpec:
    every = (_layer(file, role, index) for index in range(layers))
    return StackSpec(
        role="encoder" if role == "encoder" else "decoder",
        runs=tuple((layer, sum(1 for _ in run)) for layer, run in groupby(every)),
        final_norm=file.norm is not None and file.norm.final,
    )


def _layer(file: ModelFile, role: str, index: int) -> LayerSpec:
    crosses = role == "decoder" and file.dims.architecture == "encoder-decoder"
    experts = _experts(file) if file.experts is not None and file.experts.covers(index) else None
    dense = _feed_forward(file) if experts is None else None
    return LayerSpec(
        attention=_attention(file, role, index),
        cross_attention=_cross_attention(file) if crosses else None,
        feed_forward=dense,
        experts=experts,
        lstm=_lstm(file, index),
        norms=_norms(file, crosses=crosses),
        parallel=file.feed_forward is not None and file.feed_forward.parallel,
    )


def _norms(file: ModelFile, *, crosses: bool) -> int:
    if file.norm is None:
        return 0
    if file.norm.per_layer is not None:
        return file.norm.per_layer
    if file.feed_forward is not None and file.feed_forward.parallel:
        return 1
    return 3 if crosses else 2


def _attention(file: ModelFile, role: str, index: int) -> AttentionSpec | None:
    spec = file.attention
    if spec is None:
        return None
    full = bool(spec.pattern) and spec.pattern[index % len(spec.pattern)] == "full"
    owns_table = spec.relative_bias == "per-layer" or index == 0
    return AttentionSpec(
        heads=spec.heads,
        kv_heads=spec.kv_heads or spec.heads,
        head_dim=spec.head_dim,
        value_head_dim=spec.value_head_dim or spec.head_dim,
        causal=role == "decoder",
        window=0 if full else spec.window,
        chunk=0 if full else spec.chunk,
        qkv_bias=spec.qkv_bias,
        out_bias=spec.out_bias,
        qk_norm=spec.qk_norm,
        qk_norm_shared=spec.qk_norm_shared,
        sinks=spec.sinks,
        q_lora_rank=spec.q_lora_rank,
        kv_lora_rank=spec.kv_lora_rank,
        rope_head_dim=0 if full and not spec.rope_when_full else spec.rope_head_dim,
        relative_bias_buckets=spec.relative_bias_buckets if owns_table else 0,
        relative_bias=spec.relative_bias != "none",
    )


def _cross_attention(file: ModelFile) -> AttentionSpec | None:
    """The decoder's look at the encoder's output: same shape, no mask, no positions."""
    spec = file.attention
    if spec is None:
        return None
    return AttentionSpec(
        heads=spec.heads,
        kv_heads=spec.kv_heads or spec.heads,
        head_dim=spec.head_dim,
        value_head_dim=spec.value_head_dim or spec.head_dim,
        causal=False,
        qkv_bias=spec.qkv_bias,
        out_bias=spec.out_bias,
    )


def _feed_forward(file: ModelFile) -> FeedForwardSpec | None:
    spec = file.feed_forward
    if spec is None:
        return None
    return FeedForwardSpec(hidden=spec.hidden, gated=spec.gated, bias=spec.bias, activation=spec.activation)


def _experts(file: ModelFile) -> ExpertsSpec | None:
    spec = file.experts
    if spec is None:
        return None
    return ExpertsSpec(
        count=spec.count,
        top_k=spec.top_k,
        hidden=spec.hidden,
        gated=spec.gated,
        bias=spec.bias,
        activation=spec.activation,
        clamped=spec.clamped,
        router_bias=spec.router_bias,
        router_matrices=spec.router_matrices,
        branching=spec.branching,
        shared_hidden=spec.shared * (spec.shared_hidden or spec.hidden),
        shared_gate=spec.shared_gate,
        capacity_factor=spec.capacity_factor,
        routing_group=spec.routing_group,
        extra_feed_forward=_feed_forward(file) if spec.extra_feed_forward else None,
    )


def _lstm(file: ModelFile, index: int) -> LstmSpec | None:
    if file.lstm is None or not file.lstm.covers(index):
        return None
    return LstmSpec(hidden=file.lstm.hidden, projection=file.lstm.projection)


def _published(file: ModelFile) -> Published:
    said = file.published
    parameters, tolerance = printed_count(said.parameters) if said.parameters else (0, 0.0)
    active, active_tolerance = printed_count(said.active) if said.active else (0, 0.0)
    return Published(
        parameters=parameters,
        parameters_exact=said.exact,
        tolerance=tolerance,
        active_parameters=active,
        active_tolerance=active_tolerance,
        active_excludes=tuple(said.active_excludes),
        excludes=tuple(said.excludes),
        source=said.source,
        explanation=said.explanation,
    )
