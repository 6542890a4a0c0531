"""A whole model as the nodes of one micro-batch: embedding, layers, head and loss as eager PyTorch runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from simulator.arch.shard import Kernels
from simulator.errors import InputError
from simulator.parallel.eager import Builder, activated, attention, feed_forward
from simulator.parallel.liveness import Piece, Tensor
from simulator.parallel.recompute import Policy
from simulator.spec.model import ExpertsSpec, FeedForwardSpec, LayerSpec, ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """Pieces of one micro-batch in forward order, by unit ("embedding", "decoder.3", "head"), and constant tables."""

    units: tuple[tuple[str, tuple[Piece, ...]], ...]
    layers: tuple[str, ...]
    """The units that are layers, in order."""
    constant_bytes: float
    element_bytes: float
    """Of activations, and of parameters as the operators read them."""

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return tuple(piece for _, pieces in self.units for piece in pieces)


def trace(
    model: ModelSpec, kernels: Kernels, policy: Policy, *, batch: int, seq_len: int, target_seq_len: int = 0
) -> Traced:
    """The nodes of one micro-batch. Raises InputError for blocks that have no nodes here."""
    refused = sorted(set(_unmodelled(model)))
    if refused:
        raise InputError([f"peak memory operator by operator is not modelled for {', '.join(refused)}."])
    b = Builder(model, kernels, policy, batch=batch)
    units: list[tuple[str, tuple[Piece, ...]]] = []

    def close() -> None:
        units.append((b.unit, tuple(b.pieces)))
        b.pieces = []

    memory: Tensor | None = None
    layers: list[str] = []
    for stack, length in zip(model.stacks, (seq_len, target_seq_len or seq_len), strict=False):
        b.unit = "embedding"
        x = _embedding(b, length)
        close()
        for index, spec in enumerate(kind for kind, count in stack.runs for _ in range(count)):
            b.unit = f"{stack.role}.{index}"
            layers.append(b.unit)
            x = _layer(b, x, spec, memory, after=not stack.final_norm)
            close()
        b.unit = f"{stack.role}.end"
        memory = b.norm("norm", x) if stack.final_norm else x
        close()
    b.unit = "head"
    if memory is not None:
        _head(b, memory)
    close()
    return Traced(units=tuple(units), layers=tuple(layers), constant_bytes=sum(b.constant_bytes.values()),
                  element_bytes=b.size)  # fmt: skip


def _unmodelled(model: ModelSpec) -> Iterator[str]:
    """Names of what has no nodes here."""
    if model.head.mtp_layers:
        yield "multi-token prediction"
    if model.embedding.width != model.hidden:
        yield "narrow embeddings"
    if model.head.transform or model.head.pooler:
        yield "BERT's heads"
    for stack in model.stacks:
        for layer, _ in stack.runs:
            yield from _unmodelled_layer(layer)


def _unmodelled_layer(layer: LayerSpec) -> Iterator[str]:
    for spec in (layer.attention, layer.cross_attention):
        if spec is not None:
            names = {"latent attention": spec.latent, "norms of q and k": spec.qk_norm, "attention sinks": spec.sinks,
                     "relative position biases": spec.relative_bias, "attention windows": spec.window or spec.chunk,
                     "partly rotated heads": spec.rope_head_dim not in (0, spec.head_dim)}  # fmt: skip
            yield from (name for name, found in names.items() if found)
    if layer.parallel:
        yield "parallel blocks"
    blocks = sum(spec is not None for spec in (layer.attention, layer.cross_attention, layer.feed_forward,
                                               layer.experts))  # fmt: skip
    if layer.lstm is not None or layer.norms != blocks:
        yield "recurrent layers and layers without one norm per block"
    experts = layer.experts
    if experts is not None and (experts.bias or experts.branching or experts.router_matrices > 1
                                or experts.extra_feed_forward or experts.shared_gate):  # fmt: skip
        yield "experts with biases, noise, two levels or gates of their own"


def _embedding(b: Builder, length: int) -> Tensor:
    """Token table, token types, positions, norm, dropout. The gradient of a table is as large as the table; one read
    in part (positions, a type) is first filled in a tensor of the part's size.
    """
    spec, width = b.model.embedding, b.model.hidden
    size = b.batch * length * width * b.size
    x = b.node("tokens", size, weights=(b.weight("tokens", spec.vocab * width),))
    if spec.token_types:
        x = b.node("token_types", size, x, passes=True, weights=(b.weight("types", spec.token_types * width),))
    if spec.learned_positions:
        x = b.node("positions", size, x, passes=True, backward_bytes=length * width * b.size,
                   weights=(b.weight("positions", spec.learned_positions * width),))  # fmt: skip
    if spec.norm:
        x = b.norm("norm", x)
    return b.dropout("dropout", x)


def _layer(b: Builder, x: Tensor, spec: LayerSpec, memory: Tensor | None, *, after: bool) -> Tensor:
    """Norm, block, add for each block; `after`: block, add, norm."""
    with b.checkpointed(b.policy.full):
        for name, block in _blocks(b, spec, memory):
            made = block(x if after else b.norm(f"{name}.norm", x))
            x = b.add(f"{name}.add", x, b.dropout(f"{name}.dropout", made))
            if after:
                x = b.norm(f"{name}.norm", x)
    return x


def _blocks(b: Builder, spec: LayerSpec, memory: Tensor | None) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """The blocks of a layer in order, by name."""
    if spec.attention is not None:
        yield "attention", partial(attention, b, "attention", spec=spec.attention)
    if spec.cross_attention is not None:
        yield "cross_attention", partial(attention, b, "cross_attention", spec=spec.cross_attention, memory=memory)
    if spec.feed_forward is not None:
        yield "mlp", partial(feed_forward, b, "mlp", spec=spec.feed_forward)
    if spec.experts is not None:
        yield "moe", partial(_experts, b, "moe", spec=spec.experts)


def _experts(b: Builder, name: str, x: Tensor, spec: ExpertsSpec) -> Tensor:
    """Router, rows copied in expert order, two batched (dropless: grouped) products, rows weighted and added to their
    tokens. A row's token and choice are kept as 8-byte indices, a grouped product also keeps where each expert's rows
    end (int32). What is added into (`index_add`, `scatter_add` out of place) is made twice: zeros, then the sum.
    """
    width, size = b.model.hidden, b.size
    tokens = x.bytes / (width * size)
    rows = tokens * spec.visited * (spec.capacity_factor or 1.0)
    columns = spec.hidden * (2 if spec.gated else 1)
    weights = _router(b, f"{name}.router", x, spec, tokens)
    order, token = Tensor(rows * 8.0), Tensor(rows * 8.0)
    b.append(f"{name}.order", makes=(order, token))
    sent = b.node(f"{name}.permute", rows * width * size, x, keeps=(token,), backward_bytes=x.bytes)
    offsets: tuple[Tensor, ...] = ()
    if not spec.capacity_factor:
        offsets = (Tensor(spec.count * 4.0),)
        b.append(f"{name}.offsets", makes=offsets)
    up = b.node(f"{name}.up", rows * columns * size, sent, keeps=(sent, *offsets),
                weights=(b.weight(f"{name}.up", spec.count * width * columns),))  # fmt: skip
    inner = activated(b, name, up, spec)
    made = b.node(f"{name}.down", rows * width * size, inner, keeps=(inner, *offsets),
                  weights=(b.weight(f"{name}.down", spec.count * spec.hidden * width),))  # fmt: skip
    chosen = b.node(f"{name}.weights", rows * size, weights, keeps=(order,))
    weighted = b.node(f"{name}.weighted", made.bytes, made, chosen, keeps=(made, chosen), backward_bytes=made.bytes)
    result = b.node(f"{name}.unpermute", x.bytes, weighted, keeps=(token,), forward_bytes=x.bytes)
    if not spec.shared_hidden:
        return result
    shared = FeedForwardSpec(hidden=spec.shared_hidden, gated=spec.gated, activation=spec.activation)
    return b.add(f"{name}.shared.add", result, feed_forward(b, f"{name}.shared", x, shared))


def _router(b: Builder, name: str, x: Tensor, spec: ExpertsSpec, tokens: float) -> Tensor:
    """Logits, softmax in fp32 and the largest: keeps the probabilities and the places chosen."""
    weights = [b.weight(f"{name}.weight", spec.count * b.model.hidden)]
    if spec.router_bias:
        weights.append(b.weight(f"{name}.bias", spec.count))
    logits = b.node(f"{name}.logits", tokens * spec.count * b.size, x, keeps=(x,), weights=tuple(weights))
    normal, places = Tensor(tokens * spec.count * 4.0), Tensor(tokens * spec.top_k * 8.0)
    b.append(f"{name}.softmax", reads=(logits,), makes=(normal,), keeps=(normal,))
    values = Tensor(tokens * spec.top_k * 4.0)
    b.append(f"{name}.top_k", reads=(normal,), makes=(values, places), keeps=(places,), backward_bytes=normal.bytes)
    return values


def _head(b: Builder, x: Tensor) -> None:
    """Logits, then the loss as log_softmax, gather and mean in the loss's dtype: keeps the log-probabilities. The
    gradient that gather makes is filled into zeros out of place, so it stands twice.
    """
    model, tokens = b.model, x.bytes / (b.model.hidden * b.size)
    vocab = model.embedding.vocab
    table = ("embedding.tokens", vocab * model.hidden * b.size) if model.head.tied else b.weight(
        "weight", vocab * model.hidden)  # fmt: skip
    weights = (table, b.weight("bias", vocab)) if model.head.bias else (table,)
    logits = b.node("logits", tokens * vocab * b.size, x, keeps=(x,), weights=weights)
    wide = tokens * vocab * (4.0 if b.kernels.logits_dtype == "fp32" else b.size)
    if wide > logits.bytes:
        logits = b.node("logits_fp32", wide, logits)
    log = Tensor(wide)
    b.append("log_softmax", reads=(logits,), makes=(log,), keeps=(log,))
    targets = Tensor(tokens * 8.0)
    b.append("targets", makes=(targets,))
    picked = b.node("gather", wide / vocab, log, keeps=(targets,), backward_bytes=wide)
    b.node("mean", wide / (tokens * vocab), picked)
    # The caller's loss and its gradient, two numbers.
    b.constant_bytes["loss",] = 2 * wide / (tokens * vocab)
