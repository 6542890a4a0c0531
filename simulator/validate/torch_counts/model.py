"""A whole architecture as a torch module, built from a `ModelSpec`: embedding, stacks of layers, head and loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from simulator.spec.model import AttentionSpec, LayerSpec, StackSpec
from simulator.validate.torch_counts.blocks import (
    Attention,
    FeedForward,
    Linear,
    Lstm,
    Setting,
    dropped,
    full_norm,
    parameter,
)
from simulator.validate.torch_counts.experts import Experts


class Tables:
    """Constants that every layer reads: rotary tables and additive masks. They are no activations."""

    def __init__(self, dtype: torch.dtype, device: Any) -> None:
        self.dtype, self.device = dtype, device
        self._made: dict[Any, Any] = {}

    def rotary(self, dim: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines as [tokens, 1, dim]."""
        return self._once(("rotary", dim, tokens), lambda: self._rotary(dim, tokens))

    def _rotary(self, dim: int, tokens: int) -> tuple[Tensor, Tensor]:
        rates = 1e4 ** (-torch.arange(0, dim, 2, device=self.device, dtype=torch.float32) / dim)
        angles = torch.outer(torch.arange(tokens, device=self.device, dtype=torch.float32), rates).repeat(1, 2)
        return angles.cos().to(self.dtype)[:, None], angles.sin().to(self.dtype)[:, None]

    def mask(self, spec: AttentionSpec, queries: int, keys: int) -> Tensor | None:
        """Causal and windowed masks as [queries, keys] to add to scores; None where every key is seen."""
        window = spec.window or spec.chunk
        if not spec.causal and not window:
            return None
        return self._once(("mask", window, queries, keys), lambda: self._mask(window, queries, keys))

    def _mask(self, window: int, queries: int, keys: int) -> Tensor:
        distance = torch.arange(queries, device=self.device)[:, None] - torch.arange(keys, device=self.device)
        hidden = distance < 0
        if window:
            hidden = hidden | (distance >= window)
        return torch.zeros(queries, keys, dtype=self.dtype, device=self.device).masked_fill(hidden, float("-inf"))

    def buckets(self, tokens: int, spec: AttentionSpec) -> Tensor:
        """Bucket of each distance; clipped, as log-spaced buckets of far distances do not change a shape."""
        return self._once(("buckets", tokens), lambda: self._buckets(tokens, spec.relative_bias_buckets))

    def _buckets(self, tokens: int, count: int) -> Tensor:
        place = torch.arange(tokens, device=self.device)
        return (place[None] - place[:, None]).clamp(0, count - 1)

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def tensors(self) -> list[Tensor]:
        """Everything made so far."""
        return [t for made in self._made.values() for t in (made if isinstance(made, tuple) else (made,))]


class Layer(nn.Module):
    """One layer: blocks with their norms, dropout and residual adds. `after`: the norm follows the add (BERT)."""

    def __init__(self, spec: LayerSpec, setting: Setting, *, after: bool) -> None:
        super().__init__()
        self.spec, self.setting, self.after = spec, setting, after
        self.blocks = [name for name in ("attention", "cross_attention", "mlp", "moe", "lstm") if self._has(name)]
        if spec.attention:
            self.attention = Attention(spec.attention, setting)
        if spec.cross_attention:
            self.cross_attention = Attention(spec.cross_attention, setting, cross=True)
        if spec.feed_forward:
            self.mlp = FeedForward(spec.feed_forward, setting)
        if spec.experts:
            self.moe = Experts(spec.experts, setting)
        if spec.lstm:
            self.lstm = Lstm(spec.lstm, setting)
        self.norms, self.post_norms = nn.ModuleDict(), nn.ModuleDict()
        left, both = spec.norms, spec.norms >= 2 * len(self.blocks)
        for index, name in enumerate(self.blocks):
            if left > 0 and not (spec.parallel and index > 0):
                self.norms[name] = full_norm(setting)
                left -= 1
            if both and left > 0:
                self.post_norms[name] = full_norm(setting)
                left -= 1

    def _has(self, name: str) -> bool:
        return getattr(self.spec, {"mlp": "feed_forward", "moe": "experts"}.get(name, name)) is not None

    def forward(self, x: Tensor, memory: Tensor | None, bias: Tensor | None, tables: Tables) -> Tensor:
        if self.setting.policy.full:
            return checkpoint(self._run, x, memory, bias, tables, use_reentrant=False)
        return self._run(x, memory, bias, tables)

    def _run(self, x: Tensor, memory: Tensor | None, bias: Tensor | None, tables: Tables) -> Tensor:
        if self.spec.parallel:
            normal, release = self._discarded_norm(self.blocks[0], x)
            made = [self._block(name, normal, memory, bias, tables) for name in self.blocks]
            return x + release(sum(dropped(each, self.setting.kernels) for each in made))
        for name in self.blocks:
            if self.after:
                made = self._block(name, x, memory, bias, tables)
            else:
                normal, release = self._discarded_norm(name, x)
                made = release(self._block(name, normal, memory, bias, tables))
            if name in self.post_norms:
                made = self.post_norms[name](made)
            x = x + dropped(made, self.setting.kernels)
            if self.after:
                x = self._normal(name, x)
        return x

    def _normal(self, name: str, x: Tensor) -> Tensor:
        return self.norms[name](x) if name in self.norms else x

    def _discarded_norm(self, name: str, x: Tensor) -> Any:
        if name not in self.norms:
            return x, lambda read: read
        return self.setting.discarded("layernorm", self.norms[name], x)

    def _block(
        self, name: str, x: Tensor, memory: Tensor | None, bias: Tensor | None, tables: Tables
    ) -> Tensor:
        if name == "attention":
            return self.attention(x, None, bias, tables)
        if name == "cross_attention":
            return self.cross_attention(x, memory, None, tables)
        if name == "mlp":
            return self.setting.recomputed("mlp", self.mlp, x)
        if name == "moe":
            return self.setting.recomputed("moe", self.moe, x)
        return self.lstm(x)


class Stack(nn.Module):
    """Layers in order, and the norm after the last."""

    def __init__(self, spec: StackSpec, setting: Setting, *, layers: int | None = None) -> None:
        super().__init__()
        after = not spec.final_norm
        kinds = [kind for kind, count in spec.runs for _ in range(count)][:layers]
        self.layers = nn.ModuleList(Layer(kind, setting, after=after) for kind in kinds)
        self.norm = full_norm(setting) if spec.final_norm else None

    def forward(self, x: Tensor, memory: Tensor | None, tables: Tables) -> Tensor:
        bias: Tensor | None = None
        for layer in self.layers:
            attention = layer.spec.attention
            if attention is not None and attention.relative_bias_buckets:
                bias = relative_bias(layer.attention.relative_bias, tables.buckets(x.shape[1], attention))
            uses = attention is not None and attention.relative_bias
            x = layer(x, memory, bias if uses else None, tables)
        return x if self.norm is None else self.norm(x)


def relative_bias(table: Tensor, buckets: Tensor) -> Tensor:
    """[1, heads, tokens, tokens] looked up by the bucket of each distance (Raffel 2020 sec. 2.1)."""
    return functional.embedding(buckets, table).permute(2, 0, 1)[None].contiguous()


class Embedding(nn.Module):
    """Token table, positions, token types, projection, norm and dropout."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        model, self.setting = setting.model, setting
        spec = model.embedding
        self.tokens = parameter(spec.vocab, spec.width)
        self.positions = parameter(spec.learned_positions, model.hidden) if spec.learned_positions else None
        self.token_types = parameter(spec.token_types, spec.width) if spec.token_types else None
        self.project = Linear(spec.width, model.hidden) if spec.width != model.hidden else None
        self.norm = full_norm(setting) if spec.norm else None

    def forward(self, ids: Tensor) -> Tensor:
        x = functional.embedding(ids, self.tokens)
        if self.token_types is not None:
            x = x + self.token_types[0]
        if self.project is not None:
            x = self.project(x)
        if self.positions is not None:
            x = x + self.positions[: ids.shape[1]]
        if self.norm is not None:
            x = self.norm(x)
        return dropped(x, self.setting.kernels)


class Head(nn.Module):
    """From the last hidden state to the loss; a tied table comes from the embedding."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        model, self.setting = setting.model, setting
        spec, width, inner = model.head, model.hidden, model.embedding.width
        self.transform = Linear(width, width, bias=True) if spec.transform else None
        self.norm = full_norm(setting) if spec.transform else None
        self.project = Linear(width, inner) if inner != width else None
        self.weight = None if spec.tied else parameter(model.embedding.vocab, inner)
        self.bias = parameter(model.embedding.vocab) if spec.bias else None
        self.pooler = Linear(width, width, bias=True) if spec.pooler else None
        self.classifier = Linear(width, spec.pooler_classes, bias=True) if spec.pooler_classes else None

    def forward(self, x: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        inputs = x
        if self.transform is not None and self.norm is not None:
            x = self.norm(functional.gelu(self.transform(x)))
        if self.project is not None:
            x = self.project(x)
        logits = functional.linear(x, table if self.weight is None else self.weight, self.bias)
        loss = cross_entropy(logits, targets, self.setting.kernels)
        if self.pooler is not None:
            pooled = torch.tanh(self.pooler(inputs[:, 0]))
            loss = loss + (pooled if self.classifier is None else self.classifier(pooled)).sum().float()
        return loss


def cross_entropy(logits: Tensor, targets: Tensor, kernels: Any) -> Tensor:
    """Mean cross entropy in the loss's dtype: keeps the log-probabilities and the targets."""
    wide = torch.float32 if kernels.logits_dtype == "fp32" else logits.dtype
    return -functional.log_softmax(logits.to(wide), -1).gather(-1, targets[..., None]).mean()


class MultiTokenPrediction(nn.Module):
    """One depth (DeepSeek-V3 sec. 2.2): norms of state and next embedding, a projection, one more layer, a norm."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        stack, width = setting.model.stacks[-1], setting.model.hidden
        self.hidden_norm, self.embedding_norm, self.final_norm = (full_norm(setting) for _ in range(3))
        self.project = Linear(2 * width, width)
        # Our program recomputes the layers of the trunk only.
        kept = replace(setting, policy=replace(setting.policy, full=False))
        self.layer = Layer(stack.layer(stack.layers - 1), kept, after=False)

    def forward(self, x: Tensor, embedded: Tensor, tables: Tables) -> Tensor:
        joined = self.project(torch.cat((self.hidden_norm(x), self.embedding_norm(embedded)), -1))
        return self.final_norm(self.layer(joined, None, None, tables))


class Reference(nn.Module):
    """The whole model. `layers` keeps only the first layers of each stack (shapes of the rest repeat)."""

    def __init__(self, setting: Setting, *, layers: int | None = None) -> None:
        super().__init__()
        self.setting = setting
        self.embedding = Embedding(setting)
        self.stacks = nn.ModuleList(Stack(spec, setting, layers=layers) for spec in setting.model.stacks)
        self.head = Head(setting)
        self.mtp = nn.ModuleList(MultiTokenPrediction(setting) for _ in range(setting.model.head.mtp_layers))
        self.tables: Tables | None = None

    def forward(self, *ids: Tensor) -> Tensor:
        """The loss of token ids [batch, tokens], one tensor for each stack; the last stack's are also its targets."""
        self.tables = Tables(self.embedding.tokens.dtype, ids[0].device)
        memory: Tensor | None = None
        for stack, tokens in zip(self.stacks, ids, strict=True):
            memory = stack(self.embedding(tokens), memory, self.tables)
        targets = ids[-1].clone()
        loss = self.head(memory, self.embedding.tokens, targets)
        for depth in self.mtp:
            memory = depth(memory, self.embedding(ids[-1]), self.tables)
            loss = loss + self.head(memory, self.embedding.tokens, targets.clone())
        return loss
