"""From the dimensions of a published row to a `ModelSpec`.

The columns give layers, widths, heads, vocabulary and experts. What they cannot say (latent attention, shared experts,
dense-first layers, head size, tied tables) comes from the catalogue model that the row names, when its dimensions
agree; otherwise from the plain architecture of its kind (GPT-2, LLaMA, BERT, T5), and the row's defaults say so.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from simulator.arch.parameters import parameters
from simulator.spec.model import (
    AttentionSpec,
    EmbeddingSpec,
    ExpertsSpec,
    FeedForwardSpec,
    HeadSpec,
    LayerSpec,
    ModelSpec,
    StackSpec,
)
from simulator.validate.runs import PublishedRun

MATCH, MATCH_MIXTURE = 0.55, 0.3
"""Least likeness of two normalised names for a row to be taken as a catalogue model; the count and width of its experts
already tell a mixture."""
TITLED = re.compile(r"MODELS\.csv\[([^\]]+)\]")
"""How the transcriber of a row names the catalogue model that its dimensions were completed from."""


@dataclass(frozen=True, slots=True)
class Skip:
    """A row that cannot be scored: `reason` is counted, `detail` says what in this row."""

    reason: str
    detail: str = ""


def normalised(name: str) -> str:
    """Letters and digits only.

    >>> normalised("LLAMA3.1_405B")
    'llama31405b'
    """
    return re.sub(r"[^a-z0-9]", "", name.lower())


def needed_fields(run: PublishedRun) -> list[str]:
    """Dimensions without which no model can be built."""
    needed = ["arch", "layers", "hidden", "heads", "ffn_hidden", "seq_len"]
    if run.mixture:
        needed.append("topk")
    return [name for name in needed if getattr(run, name) is None]


def model_for(run: PublishedRun, catalogue: Mapping[str, ModelSpec], vocab: int) -> tuple[ModelSpec, list[str]] | Skip:
    """The model of a row and the defaults taken; `vocab` stands in where neither the row nor its series gives one."""
    missing = needed_fields(run)
    if missing:
        return Skip("model dimensions missing", ", ".join(missing))
    known = named_model(run, catalogue.values())
    taken = []
    if not run.vocab:
        series = series_vocab(run, catalogue.values())
        vocab = series or vocab
        taken.append(f"vocab = {vocab} ({'series' if series else 'framework'})")
    if run.arch == "encoder-decoder" and known is None and _per_stack(run, vocab):
        run = replace(run, layers=2 * (run.layers or 0))
        taken.append(f"layers = {run.layers} (as many again in the decoder: the size in the name)")
    if known is not None:
        model, notes = adapted(run, known)
        taken += [f"model = {known.name} (catalogue)", *notes]
    else:
        model = plain_model(run)
        if run.mixture:
            taken.append("experts in every layer, no shared expert" if not _every_other(run) else "no shared expert")
    table = model.embedding
    positions = max(table.learned_positions, run.seq_len or 0) if table.learned_positions else 0
    model = replace(model, embedding=replace(table, vocab=run.vocab or vocab, learned_positions=positions))
    return with_notes(run, model), taken


def named_model(run: PublishedRun, catalogue: Iterable[ModelSpec]) -> ModelSpec | None:
    """The catalogue model that a row names, if its dimensions agree: by name or alias, else the likest."""
    titled = TITLED.search(run.assumed)
    wanted = normalised(titled.group(1) if titled else run.model.split(" truncated to ")[0])
    models, asked = tuple(catalogue), normalised(run.model)
    for model in models:
        if asked in map(normalised, (model.name, *model.aliases)) and agrees(run, model):
            return model
    best, best_likeness = None, MATCH_MIXTURE if run.mixture else MATCH
    for model in models:
        known = normalised(model.name)
        if not agrees(run, model) or (not run.mixture and _letters(known) != _letters(wanted)):
            continue
        likeness = difflib.SequenceMatcher(None, wanted, known).ratio()
        if likeness >= best_likeness:
            best, best_likeness = model, likeness
    return best


def series_vocab(run: PublishedRun, catalogue: Iterable[ModelSpec]) -> int | None:
    """The vocabulary that all models of the catalogue have whose names begin as the row's does, of the same kind.

    A series keeps its tokenizer over sizes: BERT 30,522, T5 32,128, mT5 250,112. None where sizes differ, and for
    decoders, whose names ("GPT") stand for architectures trained with any tokenizer.
    """
    if run.arch == "decoder":
        return None
    asked = _series(run.model)
    found = {m.embedding.vocab for m in catalogue if m.architecture == run.arch and _series(m.name) == asked}
    return found.pop() if len(found) == 1 else None


def _series(name: str) -> str:
    """The first word of a name, its letters and digits.

    >>> _series("mT5 3B"), _series("t5.1.1-small"), _series("BERT-Large")
    ('mt5', 't5', 'bert')
    """
    return re.match(r"[a-z0-9]*", name.lower()).group()  # type: ignore[union-attr]


def _letters(name: str) -> str:
    """The letters that a normalised name begins with: its series ("gpt", "llama", "mpt")."""
    return re.match(r"[a-z]*", name).group()  # type: ignore[union-attr]


def agrees(run: PublishedRun, model: ModelSpec) -> bool:
    """Same kind, width, heads, feed-forward width and experts; layers and vocabulary may differ (proxies, padding)."""
    if model.architecture != run.arch or model.hidden != run.hidden or model.mixture != run.mixture:
        return False
    layers = [spec for stack in model.stacks for spec, _ in stack.runs]
    heads = {(a.heads, a.kv_heads) for spec in layers if (a := spec.attention) is not None}
    if (run.heads, run.kv_heads or run.heads) not in heads and not any(
        a.latent and a.heads == run.heads for spec in layers if (a := spec.attention) is not None
    ):
        return False
    if run.mixture:
        mixtures = [spec.experts for spec in layers if spec.experts is not None]
        return any(e.hidden == run.ffn_hidden and e.count == run.experts for e in mixtures)
    forwards = [spec.feed_forward for spec in layers if spec.feed_forward is not None]
    return any(f.hidden == run.ffn_hidden and (run.gated is None or f.gated == run.gated) for f in forwards)


def adapted(run: PublishedRun, model: ModelSpec) -> tuple[ModelSpec, list[str]]:
    """A catalogue model with the layer count of the row."""
    total = run.layers or model.layers
    notes: list[str] = []
    if total == model.layers:
        return model, notes
    shares = [total] if len(model.stacks) == 1 else [total - total // 2, total // 2]
    stacks = tuple(replace(s, runs=resized(s.runs, n)) for s, n in zip(model.stacks, shares, strict=True))
    notes.append(f"layers = {total} of {model.layers} (row)")
    return replace(model, name=f"{model.name}-{total}l", stacks=stacks), notes


def resized(runs: tuple[tuple[LayerSpec, int], ...], layers: int) -> tuple[tuple[LayerSpec, int], ...]:
    """The first `layers` layers; a longer stack repeats its pattern, with runs at the front kept as they are."""
    flat = [spec for spec, count in runs for _ in range(count)]
    if layers > len(flat):
        lead = runs[0][1] if len(runs) == 2 else 0
        period = flat[lead:]
        flat += [period[(i + len(period)) % len(period)] for i in range(layers - len(flat))]
    return grouped(flat[:layers])


def grouped(flat: Iterable[LayerSpec]) -> tuple[tuple[LayerSpec, int], ...]:
    """Layers as runs of equal layers."""
    runs: list[tuple[LayerSpec, int]] = []
    for spec in flat:
        if runs and runs[-1][0] == spec:
            runs[-1] = (spec, runs[-1][1] + 1)
        else:
            runs.append((spec, 1))
    return tuple(runs)


def with_notes(run: PublishedRun, model: ModelSpec) -> ModelSpec:
    """What a row's name and notes say of the model: no multi-token prediction, how many dense layers lead, tying."""
    text = f"{run.model}; {run.notes}"
    if "w/o MTP" in text and model.head.mtp_layers:
        model = replace(model, head=replace(model.head, mtp_layers=0))
    if re.search(r"\buntied embedding", f"{run.system}; {text}"):
        model = replace(model, head=replace(model.head, tied=False))
    lead = re.search(r"dense_layers=(\d+)|(\d+) dense layer", text)
    if lead and run.mixture and len(model.stacks) == 1:
        model = _dense_first(model, int(lead.group(1) or lead.group(2)))
    return model


def _dense_first(model: ModelSpec, lead: int) -> ModelSpec:
    """The same number of layers, of which the first `lead` are dense and the others have experts."""
    stack = model.stacks[0]
    dense = next((spec for spec, _ in stack.runs if spec.experts is None), None)
    sparse = next((spec for spec, _ in stack.runs if spec.experts is not None), None)
    if dense is None or sparse is None:
        return model
    flat = [dense] * min(lead, stack.layers) + [sparse] * max(0, stack.layers - lead)
    return replace(model, stacks=(replace(stack, runs=grouped(flat)),))


def _every_other(run: PublishedRun) -> bool:
    return "MoE in every other layer" in run.notes or run.arch == "encoder-decoder"


def plain_model(run: PublishedRun) -> ModelSpec:
    """The architecture of a row's kind with nothing but what its columns say."""
    hidden, heads, seq = run.hidden or 0, run.heads or 0, run.seq_len or 0
    llama = bool(run.gated) and run.arch == "decoder"
    bias = not llama
    head_dim = _head_dim(run, hidden, heads)
    attention = AttentionSpec(
        heads=heads, kv_heads=run.kv_heads or heads, head_dim=head_dim, value_head_dim=head_dim,
        causal=run.arch == "decoder", qkv_bias=bias, out_bias=bias,
    )  # fmt: skip
    dense = FeedForwardSpec(
        hidden=run.ffn_hidden or 0, gated=bool(run.gated), bias=bias, activation="silu" if llama else "gelu"
    )
    layers = _layers(run, attention, dense)
    return ModelSpec(
        name=normalised(run.model) or "row", title=run.model, family=run.family, hidden=hidden, seq_len=seq,
        stacks=_stacks(run, layers),
        embedding=EmbeddingSpec(
            vocab=run.vocab or 1, width=hidden, learned_positions=0 if llama else seq,
            token_types=2 if run.arch == "encoder" else 0, norm=run.arch == "encoder",
        ),
        head=_head(run, tied=not llama),
        norm="rmsnorm" if llama else "layernorm", norm_bias=not llama,
    )  # fmt: skip


def _per_stack(run: PublishedRun, vocab: int) -> bool:
    """Whether twice the layers come nearer to the parameters in the model's name ("T5 3B") than the layers do."""
    named = re.search(r"([\d.]+)\s*([MB])\b", run.model, re.IGNORECASE)
    if not named:
        return False
    size = float(named.group(1)) * (1e9 if named.group(2).upper() == "B" else 1e6)
    twice = replace(run, layers=2 * (run.layers or 0))
    counts = [parameters(replace_vocab(plain_model(r), run.vocab or vocab)).total for r in (run, twice)]
    return abs(math.log(counts[1] / size)) < abs(math.log(counts[0] / size))


def replace_vocab(model: ModelSpec, vocab: int) -> ModelSpec:
    """The same model with another vocabulary."""
    return replace(model, embedding=replace(model.embedding, vocab=vocab))


def generator_of(discriminator: ModelSpec) -> tuple[ModelSpec, ModelSpec]:
    """ELECTRA's two models (Clark et al. 2020, table 6): a generator a third as wide, and a discriminator without
    a vocabulary, which shares the generator's token table (DeepLearningExamples ELECTRA generator_hidden_size 1/3).
    """
    stack = discriminator.stacks[0]
    layer, count = stack.runs[0]
    attention, forward = layer.attention, layer.feed_forward
    if attention is None or forward is None:
        return discriminator, discriminator
    narrow = replace(
        layer,
        attention=replace(attention, heads=attention.heads // 3, kv_heads=attention.kv_heads // 3),
        feed_forward=replace(forward, hidden=forward.hidden // 3),
    )
    generator = replace(
        discriminator, name=f"{discriminator.name}-generator", hidden=discriminator.hidden // 3,
        stacks=(replace(stack, runs=((narrow, count),)),),
    )  # fmt: skip
    return generator, replace_vocab(replace(discriminator, head=HeadSpec(tied=True, transform=True)), 1)


def _head_dim(run: PublishedRun, hidden: int, heads: int) -> int:
    stated = re.search(r"head_dim=(\d+)", run.notes)
    if stated:
        return int(stated.group(1))
    return hidden // heads if heads and hidden % heads == 0 else 64


def _head(run: PublishedRun, *, tied: bool) -> HeadSpec:
    if run.arch == "encoder":
        return HeadSpec(tied=True, bias=True, transform=True, pooler=True, pooler_classes=2)
    return HeadSpec(tied=tied)


def _layers(run: PublishedRun, attention: AttentionSpec, dense: FeedForwardSpec) -> list[LayerSpec]:
    """The layers of a row in order, experts where it has them."""
    plain = LayerSpec(attention=attention, feed_forward=dense)
    count = run.layers or 0
    if not run.mixture:
        return [plain] * count
    experts = ExpertsSpec(
        count=run.experts or 1, top_k=run.topk or 1, hidden=run.ffn_hidden or 0, gated=bool(run.gated), bias=dense.bias,
        activation=dense.activation, capacity_factor=run.capacity_factor or 0.0,
    )  # fmt: skip
    sparse = LayerSpec(attention=attention, experts=experts)
    if _every_other(run):
        return [sparse if index % 2 else plain for index in range(count)]
    return [sparse] * count


def _stacks(run: PublishedRun, layers: list[LayerSpec]) -> tuple[StackSpec, ...]:
    if run.arch == "encoder-decoder":
        encoders = len(layers) - len(layers) // 2
        decoder = [
            replace(spec, cross_attention=spec.attention, attention=replace(spec.attention, causal=True), norms=3)
            for spec in layers[encoders:]
            if spec.attention is not None
        ]
        return (
            StackSpec(role="encoder", runs=grouped(layers[:encoders])),
            StackSpec(role="decoder", runs=grouped(decoder)),
        )
    if run.arch == "encoder":
        return (StackSpec(role="encoder", runs=grouped(layers), final_norm=False),)
    return (StackSpec(role="decoder", runs=grouped(layers)),)
