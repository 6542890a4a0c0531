"""Which tensors are alive when: a walk over the operators of one step, forward and backward.

A `Node` is an operator that autograd records: the tensors that it makes, those whose gradients its backward makes, and
those that it keeps until then. The walk holds a tensor until its last reader ran, a kept one until the backward of
every node that keeps it ran, and a gradient until the backward that reads it ran (torch/csrc/autograd/engine.cpp:
nodes run in the reverse order of their creation, their saved tensors are released when they ran; input_buffer.cpp: a
second gradient of one tensor is added into the first in place where nobody else holds that; accumulate_grad.h: a
parameter's first gradient becomes its `.grad` without a copy, later ones are added to it).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

PARTS = ("parameters", "gradients", "optimizer", "activations", "temporaries", "gathered")
"""What a tensor is booked as: `activations` are made in forward (and where it is run again), `temporaries` in
backward, `gathered` are whole parameters and gradients of a sharded unit with their buffers."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor of so many bytes; a view lies in the storage `of` another one."""

    bytes: float
    of: Tensor | None = None

    @property
    def storage(self) -> Tensor:
        return self if self.of is None else self.of.storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator and its backward."""

    name: str
    reads: tuple[Tensor, ...] = ()
    """Differentiable inputs: backward makes a gradient of the same size for each."""
    makes: tuple[Tensor, ...] = ()
    keeps: tuple[Tensor, ...] = ()
    weights: tuple[tuple[str, float], ...] = ()
    """Parameters whose gradients backward makes, with their bytes."""
    forward_bytes: float = 0.0
    backward_bytes: float = 0.0
    """What only the operator itself holds while it runs [B]."""
    passes: bool = False
    """Backward hands the gradient on as it is (additions, reshapes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Nodes that keep nothing but what they read from outside, and run again when their backward comes
    (torch.utils.checkpoint, not reentrant: it stops at the last tensor that backward reads).
    """

    nodes: tuple[Node, ...]


Piece = Node | Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """What stands there when the step begins [B]."""

    parameter_bytes: float
    optimizer_bytes: float
    gradient_bytes: float = 0.0
    """Of earlier micro-batches; 0 where gradients are freed after each update and this is the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The most that is alive at once: the operator that makes it so, and bytes by part."""

    moment: str
    parts: Mapping[str, float]

    @property
    def total_bytes(self) -> float:
        return sum(self.parts.values())


class Ledger:
    """Bytes alive by part, and the peak so far."""

    def __init__(self, held: Mapping[str, float]) -> None:
        self.held = dict(held)
        self.peak = Peak(moment="", parts={})

    def look(self, moment: str, **beside: float) -> None:
        """Compare what is alive, with what only this moment adds, to the peak."""
        parts = {part: self.held[part] + beside.get(part, 0.0) for part in PARTS}
        if sum(parts.values()) > self.peak.total_bytes:
            self.peak = Peak(moment=moment, parts=parts)


def nodes_of(pieces: Iterable[Piece]) -> Iterator[Node]:
    """All nodes in forward order."""
    for piece in pieces:
        yield from (piece.nodes if isinstance(piece, Checkpoint) else (piece,))


class Walk:
    """One step over nodes; `ledger.peak` is the answer when `forward` and `backward` have run for all."""

    def __init__(self, pieces: Sequence[Piece], states: States, *, gradient_part: str = "gradients") -> None:
        self.gradient_part = gradient_part
        held = {"parameters": states.parameter_bytes, "optimizer": states.optimizer_bytes,
                "gradients": states.gradient_bytes}  # fmt: skip
        self.ledger = Ledger(dict.fromkeys(PARTS, 0.0) | held)
        self.accumulates = states.gradient_bytes > 0
        every = list(nodes_of(pieces))
        self._owed = Counter(name for node in every for name, _ in node.weights)
        self._partial: dict[str, float] = {}
        self._uses = _uses(every)
        self._holders: Counter[Tensor] = Counter()
        self._gradient: dict[Tensor, Tensor] = {}

    def forward(self, piece: Piece) -> None:
        """Run a piece forward."""
        if isinstance(piece, Node):
            self._run(piece, keep=True)
            return
        for tensor in _outside(piece):
            self._holders[tensor] += 1
        for node in piece.nodes:
            self._run(node, keep=False)

    def backward(self, piece: Piece) -> None:
        """Run a piece backward; the loss's own gradient is a number."""
        if isinstance(piece, Node):
            self._back(piece)
            return
        again, outside = _again(piece), _outside(piece)
        self._uses = _uses(again)
        for tensor in outside:
            self._uses[tensor] = 0
        for node in again:
            self._run(node, keep=True)
        for node in reversed(piece.nodes):
            self._back(node)
        for tensor in outside:
            self._let_go(tensor, "activations")

    def _run(self, node: Node, *, keep: bool) -> None:
        for made in node.makes:
            if made.of is None:
                self.ledger.held["activations"] += made.bytes
                self._holders[made] = 1
        self.ledger.look(node.name, activations=node.forward_bytes)
        if keep:
            for kept in node.keeps:
                self._holders[kept.storage] += 1
        for storage in _touched(node):
            self._uses[storage] -= 1
            if self._uses[storage] == 0:
                self._let_go(storage, "activations")

    def _let_go(self, storage: Tensor, part: str) -> None:
        self._holders[storage] -= 1
        if self._holders[storage] == 0:
            self.ledger.held[part] -= storage.bytes

    def _back(self, node: Node) -> None:
        arrived = [self._gradient.pop(made) for made in node.makes if made in self._gradient]
        spent = [self._add_gradient(read, arrived[0] if node.passes else None) for read in node.reads]
        fresh = sum(size for _, size in node.weights)
        self.ledger.look(f"{node.name}, backward", temporaries=fresh + node.backward_bytes)
        for name, size in node.weights:
            self._add_parameter_gradient(name, size)
        for gradient in (*spent, *arrived):
            if gradient is not None:
                self._let_go(gradient, "temporaries")
        for kept in node.keeps:
            self._let_go(kept.storage, "activations")

    def _add_gradient(self, tensor: Tensor, passed: Tensor | None) -> Tensor | None:
        """Give a tensor a gradient, or more of it; what is returned is let go when the node has run."""
        gradient = passed or Tensor(tensor.bytes)
        if passed is None:
            self.ledger.held["temporaries"] += gradient.bytes
        self._holders[gradient] += 1
        there = self._gradient.get(tensor)
        if there is None:
            self._gradient[tensor] = gradient
            return None
        if self._holders[there] > 1:
            total = Tensor(tensor.bytes)
            self.ledger.held["temporaries"] += total.bytes
            self._holders[total] = 1
            self._holders[there] -= 1
            self._gradient[tensor] = total
        return gradient

    def _add_parameter_gradient(self, name: str, size: float) -> None:
        """A parameter read by several nodes has its gradient when the last of them has run."""
        held = self.ledger.held
        self._owed[name] -= 1
        if name not in self._partial:
            self._partial[name] = size
            held["temporaries"] += size
        if self._owed[name] == 0:
            held["temporaries"] -= self._partial.pop(name)
            if self.gradient_part != "gradients" or not self.accumulates:
                held[self.gradient_part] += size


def _touched(node: Node) -> set[Tensor]:
    return {tensor.storage for tensor in (*node.reads, *node.makes, *node.keeps)}


def _uses(nodes: Sequence[Node]) -> Counter[Tensor]:
    """How many of the nodes still need each storage in forward."""
    return Counter(storage for node in nodes for storage in _touched(node))


def _again(piece: Checkpoint) -> list[Node]:
    """What a checkpoint runs again: up to the last node that keeps something, whose own outputs are made only if they
    are what it keeps.
    """
    nodes = list(piece.nodes)
    while nodes and not nodes[-1].keeps:
        nodes.pop()
    if nodes and not {kept.storage for kept in nodes[-1].keeps}.intersection(nodes[-1].makes):
        nodes[-1] = replace(nodes[-1], makes=(), forward_bytes=0.0)
    return nodes


def _outside(piece: Checkpoint) -> list[Tensor]:
    """Storages that a checkpoint reads and does not make."""
    made = {tensor.storage for node in piece.nodes for tensor in node.makes}
    read = dict.fromkeys(tensor.storage for node in piece.nodes for tensor in (*node.reads, *node.keeps))
    return [storage for storage in read if storage not in made]
