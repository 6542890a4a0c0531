"""What a model's file can get wrong across its fields: each problem with its place and the arithmetic that failed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from simulator.errors import did_you_mean
from simulator.spec.model_tables import LayerRule, ModelFile, printed_count


@dataclass(frozen=True, slots=True)
class Fault:
    """One problem and the key it sits at, outermost table first."""

    key: tuple[str, ...]
    message: str
    hint: str = ""


def stack_layers(file: ModelFile) -> tuple[tuple[str, int], ...]:
    """The stacks of the architecture in order, each with its number of layers."""
    if file.dims.architecture == "encoder-decoder":
        return (("encoder", file.dims.encoder_layers), ("decoder", file.dims.decoder_layers))
    return ((file.dims.architecture, file.dims.layers),)


def faults(file: ModelFile) -> list[Fault]:
    """Every cross-field problem of a file whose fields are each well formed."""
    found: list[Fault] = []
    for check in (
        _dims,
        _norm,
        _attention,
        _windows,
        _experts,
        _lstm,
        _feed_forward,
        _coverage,
        _embedding,
        _head,
        _published,
        _sources,
        _aliases,
    ):
        found.extend(check(file))
    return found


def _dims(file: ModelFile) -> Iterator[Fault]:
    dims = file.dims
    if dims.architecture == "encoder-decoder":
        for key in ("encoder_layers", "decoder_layers", "target_seq_len"):
            if not getattr(dims, key):
                yield Fault(("dims", key), f"an encoder-decoder needs {key} of at least 1")
        if dims.layers:
            yield Fault(
                ("dims", "layers"), "an encoder-decoder has two stacks", "Say encoder_layers and decoder_layers."
            )
        return
    if not dims.layers:
        yield Fault(("dims", "layers"), f"a model with one stack ({dims.architecture}) needs layers of at least 1")
    for key in ("encoder_layers", "decoder_layers", "target_seq_len"):
        if getattr(dims, key):
            yield Fault(
                ("dims", key),
                f"only an encoder-decoder has {key}, and architecture is {dims.architecture}",
                'Set architecture = "encoder-decoder" or drop the key.',
            )


def _norm(file: ModelFile) -> Iterator[Fault]:
    if file.norm is None:
        if file.attention is not None:
            yield Fault(("norm",), "a model with attention needs a [norm] table", 'kind = "layernorm" or "rmsnorm".')
    elif file.norm.kind == "rmsnorm" and file.norm.bias:
        yield Fault(("norm", "bias"), "an RMS norm has no bias", 'Drop the key, or set kind = "layernorm".')


def _attention(file: ModelFile) -> Iterator[Fault]:
    spec = file.attention
    if spec is None:
        return
    kv_heads = spec.kv_heads or spec.heads
    if kv_heads > spec.heads:
        yield Fault(("attention", "kv_heads"), f"kv_heads({kv_heads}) > heads({spec.heads})")
    elif spec.heads % kv_heads:
        rest = spec.heads % kv_heads
        yield Fault(
            ("attention", "kv_heads"),
            f"kv_heads({kv_heads}) does not divide heads({spec.heads}): remainder {rest}",
            f"Nearest that divide: {_nearest_divisors(spec.heads, kv_heads)}.",
        )
    if spec.rope_head_dim > spec.head_dim:
        yield Fault(
            ("attention", "rope_head_dim"),
            f"rope_head_dim({spec.rope_head_dim}) > head_dim({spec.head_dim})",
            "head_dim is all that a score uses: the part without rotary embedding plus the part with it.",
        )
    elif spec.rope_head_dim % 2:
        yield Fault(("attention", "rope_head_dim"), f"rope_head_dim({spec.rope_head_dim}) is odd: rotary turns pairs")
    if (spec.relative_bias == "none") != (spec.relative_bias_buckets == 0):
        yield Fault(
            ("attention", "relative_bias_buckets"),
            f'relative_bias = "{spec.relative_bias}" with relative_bias_buckets({spec.relative_bias_buckets})',
            'Say both: relative_bias = "per-stack" (T5) or "per-layer", and the number of buckets.',
        )
    if file.dims.architecture == "encoder-decoder":
        for key in ("kv_lora_rank", "qk_norm", "sinks"):
            if getattr(spec, key):
                yield Fault(("attention", key), f"{key} beside cross-attention is not modelled")
    yield from _latent(file)


def _latent(file: ModelFile) -> Iterator[Fault]:
    spec = file.attention
    if spec is None:
        return
    if not spec.kv_lora_rank:
        if spec.q_lora_rank:
            yield Fault(("attention", "q_lora_rank"), "q_lora_rank without kv_lora_rank: latent attention has both")
        return
    if spec.kv_heads not in (0, spec.heads):
        yield Fault(
            ("attention", "kv_heads"),
            f"kv_heads({spec.kv_heads}) != heads({spec.heads}): latent attention makes a key for every head",
            "Drop kv_heads.",
        )
    if not 0 < spec.rope_head_dim < spec.head_dim:
        yield Fault(
            ("attention", "rope_head_dim"),
            f"latent attention needs 0 < rope_head_dim({spec.rope_head_dim}) < head_dim({spec.head_dim})",
            "head_dim = qk_nope_head_dim + qk_rope_head_dim.",
        )
    if spec.qk_norm:
        yield Fault(("attention", "qk_norm"), "latent attention norms its latents; qk_norm on top is not modelled")


def _windows(file: ModelFile) -> Iterator[Fault]:
    spec = file.attention
    if spec is None:
        return
    if spec.window and spec.chunk:
        yield Fault(("attention", "chunk"), f"window({spec.window}) and chunk({spec.chunk}) are both set", "Keep one.")
    local = spec.window or spec.chunk
    if spec.pattern and not local:
        yield Fault(("attention", "pattern"), "a pattern of local layers needs window or chunk, in tokens")
    if spec.pattern and "local" not in spec.pattern:
        yield Fault(("attention", "pattern"), "the pattern names no local layer", "Drop it: every layer is full.")
    layers = max(count for _, count in stack_layers(file))
    if len(spec.pattern) > layers > 0:
        yield Fault(
            ("attention", "pattern"),
            f"the pattern is {len(spec.pattern)} layers long, the stack has {layers}",
            "A pattern repeats; say one period of it.",
        )
    if not spec.rope_when_full and not (spec.rope_head_dim and "full" in spec.pattern):
        yield Fault(
            ("attention", "rope_when_full"), "rope_when_full = false needs rope_head_dim and a pattern with full layers"
        )


def _experts(file: ModelFile) -> Iterator[Fault]:
    spec = file.experts
    if spec is None:
        return
    yield from _rule("experts", spec, [count for _, count in stack_layers(file)])
    if spec.top_k > spec.count:
        yield Fault(("experts", "top_k"), f"top_k({spec.top_k}) > count({spec.count})")
    if spec.branching and spec.count % spec.branching:
        rest = spec.count % spec.branching
        yield Fault(
            ("experts", "branching"),
            f"branching({spec.branching}) does not divide count({spec.count}): remainder {rest}",
            f"Nearest that divide: {_nearest_divisors(spec.count, spec.branching)}.",
        )
    elif spec.branching:
        smaller = min(spec.branching, spec.count // spec.branching)
        if spec.top_k > smaller:
            yield Fault(("experts", "top_k"), f"top_k({spec.top_k}) > {smaller}, the choices at one level of the gate")
    if not spec.shared:
        for key in ("shared_hidden", "shared_gate"):
            if getattr(spec, key):
                yield Fault(("experts", key), f"{key} without shared experts", "Set shared to their number.")
    if spec.extra_feed_forward and file.feed_forward is None:
        yield Fault(("experts", "extra_feed_forward"), "extra_feed_forward needs a [feed_forward] table for its size")


def _rule(table: str, rule: LayerRule, stacks: list[int]) -> Iterator[Fault]:
    """A layer rule must name layers that exist, in one way, and in every stack."""
    if rule.layers is not None:
        if rule.every != 1 or rule.first is not None:
            yield Fault((table, "layers"), "layers and every / first both say which layers", "Keep one.")
        outside = [index for index in rule.layers if index >= max(stacks)]
        if outside:
            yield Fault((table, "layers"), f"no layer {_some(outside)}: layers count from 0 to {max(stacks) - 1}")
        if len(set(rule.layers)) != len(rule.layers):
            yield Fault((table, "layers"), "a layer is named twice")
        if not rule.layers:
            yield Fault((table, "layers"), "names no layer", f"Drop the [{table}] table.")
        return
    for layers in stacks:
        if layers and not any(rule.covers(index) for index in range(layers)):
            first = rule.every - 1 if rule.first is None else rule.first
            yield Fault(
                (table, "every" if rule.first is None else "first"),
                f"names no layer: the first would be layer {first}, and layers count from 0 to {layers - 1}",
            )


def _lstm(file: ModelFile) -> Iterator[Fault]:
    spec = file.lstm
    if spec is None:
        if file.attention is None:
            yield Fault((), "neither [attention] nor [lstm]: nothing mixes the tokens")
        return
    if file.attention is not None:
        yield Fault(("lstm",), "[lstm] and [attention] in one model are not modelled")
    if file.dims.architecture != "decoder":
        yield Fault(("lstm",), f"an LSTM model is a decoder here, not an {file.dims.architecture}")
    yield from _rule("lstm", spec, [file.dims.layers])
    state, hidden = spec.projection or spec.hidden, file.dims.hidden
    if state != hidden:
        key = "projection" if spec.projection else "hidden"
        yield Fault(
            ("lstm", key),
            f"the block puts out {state} and the residual stream is hidden({hidden}) wide",
            f"Set projection = {hidden}.",
        )


def _feed_forward(file: ModelFile) -> Iterator[Fault]:
    spec = file.feed_forward
    if spec is None:
        return
    if spec.parallel and (file.experts is not None or file.dims.architecture == "encoder-decoder"):
        yield Fault(("feed_forward", "parallel"), "parallel blocks with experts or cross-attention are not modelled")
    used = any(not _has_experts(file, index) for _, count in stack_layers(file) for index in range(count))
    if file.experts is not None and not used and not file.experts.extra_feed_forward:
        yield Fault(("feed_forward",), "every layer has experts, so no layer uses it", "Drop the [feed_forward] table.")
    if file.lstm is not None:
        yield Fault(("feed_forward",), "an LSTM model has no dense feed-forward here")


def _coverage(file: ModelFile) -> Iterator[Fault]:
    """Every layer has a feed-forward, experts or an LSTM, and not two of them."""
    for role, count in stack_layers(file):
        layers = range(count)
        if file.lstm is not None:
            both = [index for index in layers if file.lstm.covers(index) and _has_experts(file, index)]
            if both:
                yield Fault(
                    ("lstm", "layers"),
                    f"{role} layer {_some(both)} is an LSTM and has experts",
                    "Give each its own layer.",
                )
        if file.feed_forward is None:
            bare = [i for i in layers if not _has_experts(file, i) and not (file.lstm and file.lstm.covers(i))]
            if bare:
                yield Fault(
                    ("dims",),
                    f"{role} layer {_some(bare)} has no feed-forward, experts or LSTM",
                    "Add [feed_forward], or widen the rule of [experts].",
                )


def _embedding(file: ModelFile) -> Iterator[Fault]:
    positions, seq_len = file.embedding.learned_positions, file.dims.seq_len
    if 0 < positions < seq_len:
        yield Fault(("embedding", "learned_positions"), f"learned_positions({positions}) < seq_len({seq_len})")
    if file.embedding.width == file.dims.hidden:
        yield Fault(("embedding", "width"), f"width({file.embedding.width}) is the hidden size anyway", "Drop the key.")


def _head(file: ModelFile) -> Iterator[Fault]:
    head = file.head
    if file.dims.architecture != "encoder":
        for key in ("transform", "pooler"):
            if getattr(head, key):
                yield Fault(("head", key), f"only an encoder (BERT) has a {key}")
    if head.pooler_classes and not head.pooler:
        yield Fault(("head", "pooler_classes"), f"pooler_classes({head.pooler_classes}) without pooler = true")
    if head.mtp_layers and file.dims.architecture != "decoder":
        yield Fault(("head", "mtp_layers"), "multi-token prediction is modelled for decoders only")


def _published(file: ModelFile) -> Iterator[Fault]:
    published = file.published
    if published.parameters is None:
        for key in ("exact", "active", "excludes", "active_excludes"):
            if getattr(published, key):
                yield Fault(("published", key), f"{key} without parameters", 'Give the total: parameters = "174.6B".')
        if not published.explanation:
            yield Fault(
                ("published",), "no published count", "Say parameters, or say in explanation why there is none."
            )
        return
    if not published.source:
        yield Fault(("published", "parameters"), "a published count needs its source")
    if not published.exact and not published.explanation:
        yield Fault(
            ("published", "explanation"),
            "a published count that is not exact needs an explanation",
            "Say why our count differs, or set exact = true if it rounds to the printed digits.",
        )
    yield from _active(file)


def _active(file: ModelFile) -> Iterator[Fault]:
    published = file.published
    if published.active is None or published.parameters is None:
        if published.active_excludes:
            yield Fault(("published", "active_excludes"), "active_excludes without active")
        return
    if file.experts is None:
        yield Fault(("published", "active"), "a dense model has no activated count of its own", "Drop the key.")
    if printed_count(published.active)[0] > printed_count(published.parameters)[0]:
        yield Fault(("published", "active"), f"active({published.active}) > parameters({published.parameters})")


_GROUPS = ("dims", "norm", "attention", "feed_forward", "experts", "lstm", "embedding", "head", "training")
_CITED = ("dims", "attention", "feed_forward", "experts", "lstm", "embedding", "training")


def _sources(file: ModelFile) -> Iterator[Fault]:
    for group in _CITED:
        if getattr(file, group) and not file.sources.get(group):
            yield Fault(("sources",), f"[{group}] has no source", f'Add to [sources]: {group} = "paper and table".')
    for key in file.sources:
        if key not in _GROUPS:
            yield Fault(("sources", key), f"{key} is no number group", did_you_mean(key, _GROUPS))
        elif not getattr(file, key):
            yield Fault(("sources", key), f"a source for [{key}], which the file does not have")


_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def _aliases(file: ModelFile) -> Iterator[Fault]:
    for alias in file.aliases:
        if not _ALIAS.fullmatch(alias):
            slug = re.sub(r"[^a-z0-9._-]+", "-", alias.lower()).strip("-._")
            yield Fault(
                ("aliases",),
                f"alias {alias!a} is not made of a-z, 0-9, dots, dashes and underscores",
                f'Write "{slug}".' if _ALIAS.fullmatch(slug) else "",
            )
    if len(set(file.aliases)) != len(file.aliases):
        yield Fault(("aliases",), "an alias stands twice")


def _has_experts(file: ModelFile, index: int) -> bool:
    return file.experts is not None and file.experts.covers(index)


def _nearest_divisors(total: int, wanted: int) -> str:
    divisors = sorted((n for n in range(1, total + 1) if total % n == 0), key=lambda n: (abs(n - wanted), n))
    return ", ".join(str(n) for n in sorted(divisors[:2]))


def _some(indices: Iterable[int]) -> str:
    """The first few indices of a list, and how many more."""
    numbers = list(indices)
    shown = ", ".join(str(n) for n in numbers[:4])
    return shown + (f" and {len(numbers) - 4} more" if len(numbers) > 4 else "")
