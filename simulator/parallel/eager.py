"""The operators that eager PyTorch runs for a model, as nodes for a walk over what is alive.

Every operator makes its result in memory of its own and keeps what its derivative reads (pytorch
tools/autograd/derivatives.yaml); views share storage. The modules are those of `validate/torch_counts` with torch's own
kernels inside (`measure/blocks.py`): one product for q, k and v whose parts are views, `scaled_dot_product_attention`,
`layer_norm` in one operator, rotary embedding, gates and cross entropy in tensor operations. `rms_norm` is composed of
operators (aten/src/ATen/native/layer_norm.cpp rms_norm_composite: pow, mean, rsqrt, two products) wherever torch has no
kernel for it, which is the CPU; those keep the normalised input besides the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from simulator.arch.shard import Kernels
from simulator.parallel.liveness import Checkpoint, Node, Piece, Tensor
from simulator.parallel.recompute import Policy
from simulator.spec.model import AttentionSpec, ExpertsSpec, FeedForwardSpec, ModelSpec


class Builder:
    """Appends the nodes of one micro-batch; methods take tensors and give the tensors that their operators make."""

    def __init__(self, model: ModelSpec, kernels: Kernels, policy: Policy, *, batch: int) -> None:
        self.model, self.kernels, self.policy, self.batch = model, kernels, policy, batch
        self.size = kernels.element_bytes
        self.pieces: list[Piece] = []
        self.unit = ""
        self.constant_bytes: dict[tuple[object, ...], float] = {}
        """Tables that every layer reads, made once and never let go."""

    def node(self, name: str, made_bytes: float, *reads: Tensor, **more: Any) -> Tensor:
        """A node with one output of so many bytes."""
        made = Tensor(made_bytes)
        self.append(name, reads=reads, makes=(made,), **more)
        return made

    def append(self, name: str, **fields: Any) -> None:
        """A node of this unit."""
        self.pieces.append(Node(name=f"{self.unit}.{name}", **fields))

    def weight(self, name: str, elements: int) -> tuple[str, float]:
        """A parameter of this unit and the bytes of its gradient."""
        return f"{self.unit}.{name}", elements * self.size

    @contextmanager
    def checkpointed(self, wanted: bool) -> Iterator[None]:
        """The nodes made inside are run again in backward."""
        before = len(self.pieces)
        yield
        if wanted:
            inside = tuple(piece for piece in self.pieces[before:] if isinstance(piece, Node))
            self.pieces[before:] = [Checkpoint(nodes=inside)]

    def linear(self, name: str, x: Tensor, inputs: int, outputs: int, *, bias: bool = False) -> Tensor:
        """A product (and bias in its epilogue) that keeps its input."""
        weights = [self.weight(f"{name}.weight", inputs * outputs)]
        if bias:
            weights.append(self.weight(f"{name}.bias", outputs))
        return self.node(name, x.bytes / inputs * outputs, x, keeps=(x,), weights=tuple(weights))

    def add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """A sum: backward hands its gradient to both."""
        return self.node(name, x.bytes, x, y, passes=True)

    def dropout(self, name: str, x: Tensor) -> Tensor:
        """Dropout that keeps a mask of one byte per element; nothing where there is none."""
        if not self.kernels.dropout:
            return x
        mask, made = Tensor(x.bytes / self.size), Tensor(x.bytes)
        self.append(name, reads=(x,), makes=(made, mask), keeps=(mask,))
        return made

    def norm(self, name: str, x: Tensor) -> Tensor:
        """layer_norm in one operator, which keeps a mean and a scale of each row, or rms_norm composed of operators."""
        if self.model.norm != "layernorm":
            return self._rms_norm(name, x)
        width = self.model.hidden
        weights = [self.weight(f"{name}.weight", width)]
        if self.model.norm_bias:
            weights.append(self.weight(f"{name}.bias", width))
        made, mean, scale = Tensor(x.bytes), Tensor(x.bytes / width), Tensor(x.bytes / width)
        self.append(name, reads=(x,), makes=(made, mean, scale), keeps=(x, mean, scale), weights=tuple(weights))
        return made

    def _rms_norm(self, name: str, x: Tensor) -> Tensor:
        """y = w (x r), r = rsqrt(mean(x^2)), in fp32 with a cast before and after where x is narrower. Each product's
        backward also makes, before it sums it to the shape of the smaller factor, a product as large as x; that of the
        square makes x and 2 x.
        """
        width, full = self.model.hidden, x.bytes / self.size * 4.0
        wide = x if x.bytes == full else self.node(f"{name}.wide", full, x)
        squared = self.node(f"{name}.pow", full, wide, keeps=(wide,), backward_bytes=2 * full)
        mean = self.node(f"{name}.mean", full / width, squared)
        scale = self.node(f"{name}.rsqrt", full / width, mean)
        normal = self.node(f"{name}.normalised", full, wide, scale, keeps=(wide, scale), backward_bytes=full)
        made = self.node(f"{name}.weight", full, normal, keeps=(normal,), backward_bytes=full,
                         weights=(self.weight(f"{name}.weight", width),))  # fmt: skip
        return made if x.bytes == full else self.node(f"{name}.narrow", x.bytes, made)

    def views(self, name: str, x: Tensor, *parts: float) -> tuple[Tensor, ...]:
        """Slices of one tensor; backward joins their gradients in a new one."""
        made = tuple(Tensor(part, of=x) for part in parts)
        self.append(name, reads=(x,), makes=made)
        return made


def feed_forward(b: Builder, name: str, x: Tensor, spec: FeedForwardSpec) -> Tensor:
    """Up (and gate), activation, down."""
    width = b.model.hidden
    up = b.linear(f"{name}.up", x, width, spec.hidden * (2 if spec.gated else 1), bias=spec.bias)
    return b.linear(f"{name}.down", activated(b, name, up, spec), spec.hidden, width, bias=spec.bias)


def activated(b: Builder, name: str, x: Tensor, spec: FeedForwardSpec | ExpertsSpec) -> Tensor:
    """The activation: ReLU keeps its output, the others their input; a gate is two views and a product."""
    if not spec.gated:
        return _activation(b, f"{name}.{spec.activation}", x, spec.activation)
    gate, up = b.views(f"{name}.chunk", x, x.bytes / 2, x.bytes / 2)
    opened = _activation(b, f"{name}.{spec.activation}", gate, spec.activation)
    return b.node(f"{name}.gated", up.bytes, opened, up, keeps=(opened, up))


def _activation(b: Builder, name: str, x: Tensor, kind: str) -> Tensor:
    if kind in ("relu", "relu2"):
        made = Tensor(x.bytes)
        b.append(name, reads=(x,), makes=(made,), keeps=(made,))
        return made if kind == "relu" else b.node(f"{name}.square", x.bytes, made, keeps=(made,))
    return b.node(name, x.bytes, x, keeps=(x,))


def attention(
    b: Builder, name: str, x: Tensor, spec: AttentionSpec, *, memory: Tensor | None = None
) -> Tensor:
    """From the norm's output to the output layer; `memory` is the encoder's output that cross attention reads."""
    columns = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.kv_heads * spec.value_head_dim)
    query, key, value = columns
    width = b.model.hidden
    length = x.bytes / (b.batch * b.size * width)
    if memory is None:
        joined = b.linear(f"{name}.qkv", x, width, sum(columns), bias=spec.qkv_bias)
        q, k, v = b.views(f"{name}.split", joined, *(joined.bytes / sum(columns) * part for part in columns))
    else:
        q = b.linear(f"{name}.q", x, width, query, bias=spec.qkv_bias)
        joined = b.linear(f"{name}.kv", memory, width, key + value, bias=spec.qkv_bias)
        k, v = b.views(f"{name}.split", joined, *(joined.bytes / (key + value) * part for part in (key, value)))
    if spec.rope_head_dim:
        q, k = (rotated(b, f"{name}.rotary_{letter}", part) for letter, part in (("q", q), ("k", k)))
        b.constant_bytes["rotary", length] = 2 * length * spec.rope_head_dim * b.size
    if spec.causal:
        b.constant_bytes["mask", length] = length * length * b.size
    with b.checkpointed("core_attn" in b.policy.modules):
        context = _fused_core(b, name, q, k, v, spec) if b.kernels.fused_attention else _core(b, name, q, k, v, spec)
    return b.linear(f"{name}.out", context, spec.heads * spec.value_head_dim, width, bias=spec.out_bias)


def rotated(b: Builder, name: str, x: Tensor) -> Tensor:
    """x cos + (x turned by a half) sin. The tables are constants, so the products keep nothing else; the turned x is
    made of two slices, whose backward fills a tensor of the whole size each.
    """
    half = Tensor(x.bytes / 2)
    b.append(f"{name}.negative", reads=(x,), makes=(half,), backward_bytes=x.bytes / 2)
    turned = b.node(f"{name}.turned", x.bytes, x, half)
    cosine = b.node(f"{name}.cos", x.bytes, x)
    sine = b.node(f"{name}.sin", x.bytes, turned)
    return b.add(name, cosine, sine)


def _fused_core(b: Builder, name: str, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
    """scaled_dot_product_attention: keeps q, k, v, its output and the fp32 log-sum-exp of each row."""
    rows = q.bytes / (b.size * spec.head_dim)
    context, total = Tensor(q.bytes / spec.head_dim * spec.value_head_dim), Tensor(rows * 4.0)
    b.append(f"{name}.core", reads=(q, k, v), makes=(context, total), keeps=(q, k, v, context, total))
    return context


def _core(b: Builder, name: str, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
    """Two batched products with a softmax between. They read whole copies of q, k and v, heads first; the scores are
    scaled, masked and normalised by operators of their own (in fp32 where softmax is not fused), and the context is
    copied back.
    """
    q, k, v = (b.node(f"{name}.{letter}_copy", part.bytes, part) for letter, part in (("q", q), ("k", k), ("v", v)))
    queries = q.bytes / (b.batch * b.size * spec.heads * spec.head_dim)
    keys = k.bytes / (b.batch * b.size * spec.kv_heads * spec.head_dim)
    size = b.batch * spec.heads * queries * keys * b.size
    scores = b.node(f"{name}.scores", size, q, k, keeps=(q, k))
    scores = b.node(f"{name}.scale", size, scores)
    if spec.causal:
        scores = b.node(f"{name}.mask", size, scores, passes=True)
    normal = Tensor(size if b.kernels.fused_softmax else size / b.size * 4.0)
    b.append(f"{name}.softmax", reads=(scores,), makes=(normal,), keeps=(normal,),
             backward_bytes=normal.bytes - size)  # fmt: skip
    if normal.bytes > size:
        normal = b.node(f"{name}.probabilities", size, normal)
    normal = b.dropout(f"{name}.probability_dropout", normal)
    context = b.node(f"{name}.context", q.bytes / spec.head_dim * spec.value_head_dim, normal, v, keeps=(normal, v))
    return b.node(f"{name}.context_copy", context.bytes, context)
