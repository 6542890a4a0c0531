"""Textbook costs of collective algorithms: alpha seconds a message, beta seconds a byte, gamma seconds a byte reduced.

Each is a pure function of the buffer's bytes (the full, gathered or unreduced buffer) and the ranks, for any
number of ranks, numbers or arrays. Forms without another source are those in the comments of the MPICH sources
(pmodels/mpich, src/mpi/coll), which implement Thakur, Rabenseifner and Gropp, "Optimization of Collective
Communication Operations in MPICH", 2005. Measured NCCL times are in `cluster/nccl.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.cluster.elementwise import maximum, where
from simulator.cluster.placement import Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """What one message costs: `alpha_s` to start, `beta_s_per_byte` to move, `gamma_s_per_byte` to reduce."""

    alpha_s: float
    beta_s_per_byte: float
    gamma_s_per_byte: float = 0.0


def _rounds(ranks: Number) -> Number:
    """ceil(log2 ranks)."""
    return np.ceil(np.log2(ranks))


def ring_all_gather_s(size_bytes: Number, ranks: Number, wire: Wire) -> Number:
    """Ring all-gather: P - 1 steps, n (P - 1) / P bytes.

    >>> ring_all_gather_s(8.0, 4, Wire(alpha_s=1.0, beta_s_per_byte=0.5))
    6.0
    """
    return (ranks - 1) * wire.alpha_s + size_bytes * (ranks - 1) / ranks * wire.beta_s_per_byte


def ring_reduce_scatter_s(size_bytes: Number, ranks: Number, wire: Wire) -> Number:
    """Ring reduce-scatter: as the all-gather, and every byte received is reduced."""
    return ring_all_gather_s(size_bytes, ranks, wire) + size_bytes * (ranks - 1) / ranks * wire.gamma_s_per_byte


def ring_all_reduce_s(size_bytes: Number, ranks: Number, wire: Wire) -> Number:
    """Ring all-reduce is ring reduce-scatter, then ring all-gather (Patarasuk and Yuan 2009)."""
    return ring_reduce_scatter_s(size_bytes, ranks, wire) + ring_all_gather_s(size_bytes, ranks, wire)


def halving_doubling_all_reduce_s(size_bytes: Number, ranks: Number, wire: Wire) -> Number:
    """Rabenseifner's: recursive halving reduce-scatter, recursive doubling all-gather.

    Where P is no power of two, the ranks beyond the largest one fold in and out: two more messages of n bytes.

    >>> wire = Wire(alpha_s=1.0, beta_s_per_byte=1.0)
    >>> float(halving_doubling_all_reduce_s(8.0, 4, wire)), float(halving_doubling_all_reduce_s(8.0, 5, wire))
    (16.0, 34.0)
    """
    low = 2 ** np.floor(np.log2(ranks))
    extra = where(low == ranks, 0.0, 1.0)
    core = 2 * np.log2(low) * wire.alpha_s + 2 * size_bytes * (low - 1) / low * wire.beta_s_per_byte
    reduced = size_bytes * ((low - 1) / low + extra) * wire.gamma_s_per_byte
    return core + extra * 2 * (wire.alpha_s + size_bytes * wire.beta_s_per_byte) + reduced


def recursive_doubling_all_reduce_s(size_bytes: Number, ranks: Number, wire: Wire) -> Number:
    """Recursive doubling for short messages: the whole buffer in each of lg P rounds."""
    each = wire.alpha_s + size_bytes * (wire.beta_s_per_byte + wire.gamma_s_per_byte)
    return _rounds(ranks) * each


def double_binary_tree_all_reduce_s(size_bytes: Number, ranks: Number, wire: Wire) -> Number:
    """Two complementary binary trees carry half the buffer each, pipelined up and down: 2 lg P alpha + 2 n beta.

    Sanders, Speck and Traeff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", 2009.
    """
    moved = 2 * size_bytes * wire.beta_s_per_byte + size_bytes * wire.gamma_s_per_byte
    return where(ranks > 1, 2 * _rounds(ranks) * wire.alpha_s + moved, 0.0)


def bruck_all_gather_s(size_bytes: Number, ranks: Number, wire: Wire) -> Number:
    """Bruck's all-gather: ceil(lg P) rounds, each doubling what a rank holds (Bruck et al. 1997)."""
    return _rounds(ranks) * wire.alpha_s + size_bytes * (ranks - 1) / ranks * wire.beta_s_per_byte


def bruck_all_to_all_s(size_bytes: Number, ranks: Number, wire: Wire) -> Number:
    """Bruck's all-to-all for short messages: half the buffer in each of ceil(lg P) rounds."""
    return _rounds(ranks) * (wire.alpha_s + size_bytes / 2 * wire.beta_s_per_byte)


def pairwise_all_to_all_s(size_bytes: Number, ranks: Number, wire: Wire) -> Number:
    """Pairwise exchange: P - 1 rounds of n / P bytes."""
    return (ranks - 1) * (wire.alpha_s + size_bytes / ranks * wire.beta_s_per_byte)


def all_to_all_v_s(sent_bytes: Number, wire: Wire) -> float:
    """Pairwise all-to-all of unequal parts, `sent_bytes[i][j]` from rank i to rank j, in seconds.

    In round r rank i sends to i + r; a round lasts as long as its largest message.

    >>> all_to_all_v_s([[0, 4], [2, 0]], Wire(alpha_s=1.0, beta_s_per_byte=0.5))
    3.0
    """
    table = np.asarray(sent_bytes, dtype=float)
    ranks = np.arange(len(table))
    largest = (table[ranks, (ranks + shift) % len(table)].max() for shift in range(1, len(table)))
    return float(sum(wire.alpha_s + size * wire.beta_s_per_byte for size in largest))


def binomial_broadcast_s(size_bytes: Number, ranks: Number, wire: Wire) -> Number:
    """Binomial tree broadcast, for short messages: the whole buffer in each round."""
    return _rounds(ranks) * (wire.alpha_s + size_bytes * wire.beta_s_per_byte)


def binomial_reduce_s(size_bytes: Number, ranks: Number, wire: Wire) -> Number:
    """Binomial tree reduction: the broadcast backwards, reducing what arrives."""
    return binomial_broadcast_s(size_bytes, ranks, wire) + _rounds(ranks) * size_bytes * wire.gamma_s_per_byte


def scatter_all_gather_broadcast_s(size_bytes: Number, ranks: Number, wire: Wire) -> Number:
    """Broadcast of long messages: binomial scatter, then ring all-gather (van de Geijn)."""
    share = size_bytes * (ranks - 1) / ranks * wire.beta_s_per_byte
    return (_rounds(ranks) + ranks - 1) * wire.alpha_s + 2 * share


def hierarchical_all_reduce_s(size_bytes: Number, per_node: Number, nodes: Number, inner: Wire, outer: Wire) -> Number:
    """Reduce-scatter in the node, all-reduce of the shares between nodes, all-gather in the node.

    S (g - 1) / g B_in + 2 (k - 1) / k (S / g) B_nic + S (g - 1) / g B_in (stas00/ml-engineering network/README.md).

    >>> wire = Wire(alpha_s=0.0, beta_s_per_byte=1.0)
    >>> hierarchical_all_reduce_s(8.0, 4, 2, wire, wire)
    14.0
    """
    inside = ring_reduce_scatter_s(size_bytes, per_node, inner) + ring_all_gather_s(size_bytes, per_node, inner)
    return inside + ring_all_reduce_s(size_bytes / per_node, nodes, outer)


def in_switch_all_reduce_s(size_bytes: Number, ranks: Number, wire: Wire) -> Number:
    """Reduction in the switch (NVLS): N + 1 parts of n / N leave each rank instead of 2 (N - 1)."""
    return wire.alpha_s + size_bytes * (ranks + 1) / ranks * wire.beta_s_per_byte


def sharp_all_reduce_s(size_bytes: Number, levels: Number, wire: Wire) -> Number:
    """An aggregation tree of switches (SHARP; Graham et al. 2016): the buffer up once and down once at line rate."""
    return 2 * levels * wire.alpha_s + size_bytes * wire.beta_s_per_byte


def pat_all_gather_s(size_bytes: Number, ranks: Number, wire: Wire) -> Number:
    """Parallel aggregated trees (NCCL 2.23): ceil(lg P) rounds, every byte moved once (Jeaugey 2025, PAT)."""
    return bruck_all_gather_s(size_bytes, ranks, wire)


def pipelined_ring_broadcast_s(size_bytes: Number, ranks: Number, chunks: int, wire: Wire) -> Number:
    """A broadcast down a ring in `chunks` pieces: P - 2 + chunks messages follow one another.

    >>> pipelined_ring_broadcast_s(8.0, 4, 2, Wire(alpha_s=1.0, beta_s_per_byte=1.0))
    20.0
    """
    steps = maximum(ranks - 2 + chunks, 0)
    return steps * (wire.alpha_s + size_bytes / chunks * wire.beta_s_per_byte)
