"""Collectives over gloo, the CPU backend of torch.distributed.

Source: pytorch/gloo (allreduce.cc, allgather.cc, alltoall.cc, broadcast.cc, reduce.cc). All-reduce is a ring;
reduce-scatter runs that all-reduce and keeps a part: the loopback's byte counter shows 2.00 times the optimum on
2 and 4 ranks, and 1.00 times for all-reduce, all-gather, all-to-all and broadcast. Its reduce was measured at 1.25
to 2.25 times the binomial tree's bytes, which is not modelled.
"""

from __future__ import annotations

from simulator.cluster import collectives
from simulator.cluster.collectives import Wire
from simulator.cluster.placement import Number
from simulator.errors import InputError, Problem, did_you_mean

_FORMS = {
    "all_reduce": collectives.ring_all_reduce_s,
    "reduce_scatter": collectives.ring_all_reduce_s,
    "all_gather": collectives.ring_all_gather_s,
    "all_to_all": collectives.pairwise_all_to_all_s,
    "broadcast": collectives.binomial_broadcast_s,
    "reduce": collectives.binomial_reduce_s,
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
    """Bytes that each rank sends; the reduce-scatter's are the all-reduce's, 2 (P - 1) / P.

    >>> gloo_wire_bytes("reduce_scatter", 8.0, 4)
    12.0
    """
    if kind == "send":
        return size_bytes
    return size_bytes * (2 if kind in ("all_reduce", "reduce_scatter") else 1) * (ranks - 1) / ranks
