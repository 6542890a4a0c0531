"""The algorithms' messages, run on real buffers, and the cost formulas against them."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.cluster import collectives
from simulator.cluster.collectives import Wire
from simulator.cluster.messages import (
    Steps,
    bruck_all_gather,
    double_binary_tree,
    halving_doubling_all_reduce,
    ring_all_gather,
    ring_all_reduce,
    ring_reduce_scatter,
)
from simulator.cluster.network import wire_bytes
from simulator.errors import InputError

WIRE = Wire(alpha_s=1.0, beta_s_per_byte=0.25, gamma_s_per_byte=0.5)


def run(steps: Steps, buffers: np.ndarray) -> np.ndarray:
    """buffers[rank, chunk] after all messages; a step reads what was there before it."""
    for step in steps:
        before = buffers.copy()
        for message in step:
            chunks = list(message.chunks)
            if message.reduces:
                buffers[message.target, chunks] += before[message.source, chunks]
            else:
                buffers[message.target, chunks] = before[message.source, chunks]
    return buffers


def random_buffers(ranks: int) -> np.ndarray:
    return np.random.default_rng(ranks).integers(0, 1000, (ranks, ranks)).astype(float)


def sent_chunks(steps: Steps, ranks: int) -> list[int]:
    return [sum(len(m.chunks) for step in steps for m in step if m.source == rank) for rank in range(ranks)]


def cost_s(steps: Steps, chunk_bytes: float) -> float:
    """Every step lasts as long as its largest message, reduced on arrival."""
    total = 0.0
    for step in steps:
        largest = max(len(message.chunks) for message in step) * chunk_bytes
        reduced = largest * WIRE.gamma_s_per_byte * step[0].reduces
        total += WIRE.alpha_s + largest * WIRE.beta_s_per_byte + reduced
    return total


@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 8, 13])
def test_ring_all_reduce_sums(ranks: int) -> None:
    start = random_buffers(ranks)
    assert (run(ring_all_reduce(ranks), start.copy()) == start.sum(axis=0)).all()


@pytest.mark.parametrize("ranks", [2, 3, 5, 8])
def test_ring_reduce_scatter_leaves_chunk_r_on_rank_r(ranks: int) -> None:
    start = random_buffers(ranks)
    assert (np.diag(run(ring_reduce_scatter(ranks), start.copy())) == start.sum(axis=0)).all()


@pytest.mark.parametrize("ranks", [2, 4, 8, 16])
def test_halving_doubling_sums(ranks: int) -> None:
    start = random_buffers(ranks)
    assert (run(halving_doubling_all_reduce(ranks), start.copy()) == start.sum(axis=0)).all()


@pytest.mark.parametrize("ranks", [2, 3, 4, 6, 7, 8, 11])
def test_all_gathers_gather(ranks: int) -> None:
    for steps in (ring_all_gather(ranks), bruck_all_gather(ranks)):
        own = np.diag(np.arange(1.0, ranks + 1))
        assert (run(steps, own) == np.arange(1.0, ranks + 1)).all()
    assert len(bruck_all_gather(ranks)) == int(np.ceil(np.log2(ranks)))


@pytest.mark.parametrize("ranks", [2, 3, 4, 8, 12])
def test_wire_bytes_are_what_the_messages_carry(ranks: int) -> None:
    size = 1024.0 * ranks
    for kind, steps in (
        ("all_reduce", ring_all_reduce(ranks)),
        ("reduce_scatter", ring_reduce_scatter(ranks)),
        ("all_gather", ring_all_gather(ranks)),
        ("all_gather", bruck_all_gather(ranks)),
    ):
        assert [chunks * 1024.0 for chunks in sent_chunks(steps, ranks)] == [wire_bytes(kind, size, ranks)] * ranks


@pytest.mark.parametrize("ranks", [2, 4, 8, 16])
def test_formulas_cost_what_the_messages_cost(ranks: int) -> None:
    size = 64.0 * ranks
    for steps, formula in (
        (ring_all_reduce(ranks), collectives.ring_all_reduce_s),
        (ring_reduce_scatter(ranks), collectives.ring_reduce_scatter_s),
        (ring_all_gather(ranks), collectives.ring_all_gather_s),
        (halving_doubling_all_reduce(ranks), collectives.halving_doubling_all_reduce_s),
        (bruck_all_gather(ranks), collectives.bruck_all_gather_s),
    ):
        assert formula(size, ranks, WIRE) == pytest.approx(cost_s(steps, 64.0), rel=1e-12)


@pytest.mark.parametrize("ranks", range(2, 40))
def test_double_binary_tree(ranks: int) -> None:
    """Both span all ranks with at most two children each, and no rank is inner in both."""
    trees = double_binary_tree(ranks)
    for parents in trees:
        assert parents.count(-1) == 1
        for rank in range(ranks):
            seen = rank
            for _ in range(2 * ranks.bit_length()):
                seen = parents[seen] if parents[seen] >= 0 else seen
            assert parents[seen] == -1
        assert max(parents.count(rank) for rank in range(ranks)) <= 2
    if ranks > 2:
        inner = [{parent for parent in parents if parent >= 0} for parents in trees]
        assert len(inner[0] & inner[1]) <= 1


def test_halving_needs_a_power_of_two() -> None:
    with pytest.raises(InputError, match="power of two of ranks, got 6"):
        halving_doubling_all_reduce(6)


def test_all_to_all_v_of_equal_parts_is_the_pairwise_exchange() -> None:
    parts = np.full((6, 6), 10.0)
    assert collectives.all_to_all_v_s(parts, WIRE) == pytest.approx(collectives.pairwise_all_to_all_s(60.0, 6, WIRE))


def test_short_messages_prefer_few_rounds_and_long_ones_few_bytes() -> None:
    for small, large in (
        (collectives.bruck_all_to_all_s, collectives.pairwise_all_to_all_s),
        (collectives.recursive_doubling_all_reduce_s, collectives.ring_all_reduce_s),
        (collectives.binomial_broadcast_s, collectives.scatter_all_gather_broadcast_s),
    ):
        assert small(1.0, 64, WIRE) < large(1.0, 64, WIRE)
        assert small(1e6, 64, WIRE) > large(1e6, 64, WIRE)


def test_in_switch_reduction_gains_2n_over_n_plus_1() -> None:
    """Against a ring of the same wire, without latency: 14/8 over 9/8 of the buffer with 8 ranks."""
    wire = Wire(alpha_s=0.0, beta_s_per_byte=1.0)
    ratio = collectives.ring_all_reduce_s(1.0, 8, wire) / collectives.in_switch_all_reduce_s(1.0, 8, wire)
    assert ratio == pytest.approx(14 / 9)


def test_a_rank_alone_sends_nothing() -> None:
    for steps in (ring_all_reduce, ring_reduce_scatter, ring_all_gather, halving_doubling_all_reduce, bruck_all_gather):
        assert steps(1) == ()
    assert double_binary_tree(1) == ((-1,), (-1,))
