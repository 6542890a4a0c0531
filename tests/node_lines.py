"""Operators of an eager step as lines of text, to be set against lines that were counted by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from simulator.parallel.liveness import Checkpoint, Node, Piece, Tensor


def node_lines(pieces: Iterable[Piece], known: Mapping[str, Tensor], *, unit: str = "") -> list[str]:
    """A line per node: `name (reads) -> bytes made | what else it has`; `* ` stands before the nodes of a checkpoint.

    A tensor is called by the node that makes it (the first, second, ... of several by `.0`, `.1`, ...), or as in
    `known`. The name of the unit that all are in is left out.
    """
    called = {tensor: name for name, tensor in known.items()}
    lines = []
    for piece in pieces:
        star, nodes = ("* ", piece.nodes) if isinstance(piece, Checkpoint) else ("", (piece,))
        lines += [star + _line(node, called, f"{unit}." if unit else "") for node in nodes]
    return lines


def _line(node: Node, called: dict[Tensor, str], unit: str) -> str:
    name = node.name.removeprefix(unit)
    for number, made in enumerate(node.makes):
        called[made] = f"{name}.{number}" if len(node.makes) > 1 else name
    made = ", ".join(f"{each.bytes:g}" + (f" of {called[each.of]}" if each.of else "") for each in node.makes)
    parts = [f"{name} ({' '.join(called[read] for read in node.reads)}) -> {made}"]
    if node.keeps:
        parts.append("keeps " + " ".join(called[kept] for kept in node.keeps))
    if node.weights:
        parts.append("weights " + ", ".join(f"{of.removeprefix(unit)} {size:g}" for of, size in node.weights))
    parts += [f"{word} {size:g}" for word, size in (("forward", node.forward_bytes), ("backward", node.backward_bytes))
              if size]  # fmt: skip
    return " | ".join([*parts, "passes"] if node.passes else parts)
