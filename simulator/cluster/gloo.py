"""Collectives over gloo, the CPU backend of torch.distributed.

Source: pytorch/gloo (allreduce.cc, allgather.cc, alltoall.cc, broadcast.cc, reduce.cc). All-reduce is a ring;
reduce-scatter runs that all-reduce and keeps a part: the loopback's byte counter shows 2.00 times the optimum on
2 and 4 ranks, and 1.00 times for all-reduce, all-gather, all-to-all and broadcast. Its reduce is a ring reduce-scatter
whose parts the root gathers (reduce.cc), which the counter shows too (tests/oracles/test_torch_gloo.py).
"""

from __future__ import annotations

from simulator.cluster import collectives
from simulator.cluster.collectives import Wire
from simulator.cluster.placement import Number
from simulator.errors import InputError, Problem, did_you_mean


def _reduce_s(size_bytes: Number, ranks: Number, wire: Wire) -> Number:
    """Ring reduce-scatter, then a message of n / P from every rank to the root, which takes them one after another."""
    gathered = (ranks - 1) * (wire.alpha_s + size_bytes / ranks * wire.beta_s_per_byte)
    return collectives.ring_reduce_scatter_s(size_bytes, ranks, wire) + gathered


_FORMS = {
    "all_reduce": collectives.ring_all_reduce_s,
    "reduce_scatter": collectives.ring_all_reduce_s,
    "all_gather": collectives.ring_all_gather_s,
    "all_to_all": collectives.pairwise_all_to_all_s,
    "broadcast": collectives.binomial_broadcast_s,
    "reduce": _reduce_s,
}


def gloo_time_s(kind: str, size_bytes: Number, ranks: Number, wire: Wire) -> Number:
    """Seconds of a gloo collective on the full buffer of `size_bytes`, for more than one rank.

    >>> wire = Wire(alpha_s=1e-5, beta_s_per_byte=1e-9)
    >>> gloo_time_s("reduce_scatter", 1e6, 4, wire) == gloo_time_s("all_reduce", 1e6, 4, wire)
    True
    """
    if kind == "send":
        return wire.alpha_s + size_bytes * wire.beta_s_per_byte
    if kind not in _FORMS:
        raise InputError([Problem(f"gloo has no {kind}.", hint=did_you_mean(kind, _FORMS))])
    return _FORMS[kind](size_bytes, ranks, wire)


def gloo_wire_bytes(kind: str, size_bytes: Number, ranks: Number) -> Number:
    """Bytes that each rank sends, in the mean over ranks; the reduce-scatter's are the all-reduce's, 2 (P - 1) / P, a
    reduce's (P - 1) / P and its part of the root's gather.

    >>> gloo_wire_bytes("reduce_scatter", 8.0, 4), gloo_wire_bytes("reduce", 8.0, 4)
    (12.0, 7.5)
    """
    if kind == "send":
        return size_bytes
    share = size_bytes * (ranks - 1) / ranks
    return share * (1 + 1 / ranks) if kind == "reduce" else share * (1 + int(kind in ("all_reduce", "reduce_scatter")))
