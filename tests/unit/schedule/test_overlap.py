"""FSDP passes and ring attention, timed by hand on units that are all different."""

from __future__ import annotations

import pytest

from simulator.errors import InputError
from simulator.schedule.overlap import Layers, fsdp_passes_s, ring_attention_s

UNLIKE = Layers(forward_s=[3.0, 5.0, 7.0], backward_s=[11.0, 13.0, 17.0], gather_s=[2.0, 4.0, 6.0],
                reduce_s=[1.0, 8.0, 9.0])  # fmt: skip
"""Forward 15 s, backward 41 s, gathers 12 s, reductions 18 s."""


def test_without_prefetch_each_gather_waits_for_the_unit_before() -> None:
    """Forward: 2 + 3, 4 + 5, 6 + 7 = 27. Backward: 17 (44); gather 1 waits for compute and goes first, at 44, unless
    the reduction of unit 2 (9 s), issued at 44 too, was issued before: it was, so gather 1 runs 53 .. 57, backward 1
    57 .. 70; its reduction of 8 s 70 .. 78, gather 0 78 .. 80, backward 0 80 .. 91, reduction 91 .. 92."""
    assert fsdp_passes_s(UNLIKE, prefetch=0) == (92.0, 92.0 - 56.0)


def test_one_unit_ahead_gathers_run_beside_compute() -> None:
    """Forward: gathers 0 .. 2, 2 .. 6, and the third, whose buffer is free when unit 0 is done at 5, 6 .. 12; units at
    2 .. 5, 6 .. 11, 12 .. 19. Backward: 2 at 19 .. 36, beside it gather 1, whose buffer is free at 19: 19 .. 23; 1 at
    36 .. 49, beside it the reduction of 2, 36 .. 45, and gather 0, 45 .. 47; 0 at 49 .. 60, reductions 49 .. 57 and
    60 .. 61."""
    assert fsdp_passes_s(UNLIKE) == (61.0, 5.0)


def test_two_units_ahead_the_third_gather_waits_for_the_wire_alone() -> None:
    slow = Layers(forward_s=[8.0, 5.0, 7.0], backward_s=[1.0] * 3, gather_s=[2.0, 4.0, 6.0], reduce_s=[0.0] * 3)
    # One ahead: the third gather waits for unit 0 (10): 10 .. 16; units 2 .. 10, 10 .. 15, 16 .. 23. Backward 23 .. 24;
    # gather 1 waits for forward 2 (23): 23 .. 27, backward 27 .. 28; gather 0 27 .. 29, backward 29 .. 30.
    assert fsdp_passes_s(slow, prefetch=1) == fsdp_passes_s(slow) == (30.0, 7.0)
    # Two ahead: the third gather runs 6 .. 12: units 2 .. 10, 10 .. 15, 15 .. 22. Gather 1 waits for forward 1 (15):
    # 15 .. 19, gather 0 for forward 2: 22 .. 24; backwards 22 .. 23, 23 .. 24, 24 .. 25.
    assert fsdp_passes_s(slow, prefetch=2) == (25.0, 2.0)


def test_kept_parameters_are_gathered_once_and_gradients_reduced_after_the_last_micro_batch() -> None:
    """Three gathers in the first forward without overlap: 12 + 15; everything else is compute but the reductions.

    The last micro-batch's are 9 s from unit 2's backward on, hidden beside unit 1's 13 s; 8 s beside unit 0's 11 s;
    the last 1 s shows."""
    found = fsdp_passes_s(UNLIKE, prefetch=0, reshard=False, micro_batches=2, reduce_each=False)
    assert found == (12.0 + 2 * 56.0 + 1.0, 13.0)


def test_only_the_last_unit_stays_from_forward_to_backward() -> None:
    """Without overlap, each of two micro-batches gathers 2 + 4 + 6 forward and 4 + 2 backward, and no reduction comes
    between but after the last: there 9 s and 8 s delay gathers 1 and 0, and 1 s shows at the end."""
    found = fsdp_passes_s(UNLIKE, prefetch=0, micro_batches=2, reduce_each=False)
    assert found == (2 * (56.0 + 12.0 + 6.0) + 9.0 + 8.0 + 1.0, 2 * 18.0 + 18.0)


def test_reductions_after_every_micro_batch_delay_the_next_ones_gathers() -> None:
    """92 s for each as above: the first gather of the second micro-batch waits for the last reduction, 1 s."""
    assert fsdp_passes_s(UNLIKE, prefetch=0, micro_batches=2) == (2 * 92.0, 2 * 36.0)


@pytest.mark.parametrize("short", ["backward_s", "gather_s", "reduce_s"])
def test_each_unit_needs_all_its_times(short: str) -> None:
    times = {name: [1.0, 1.0] for name in ("forward_s", "backward_s", "gather_s", "reduce_s")}
    with pytest.raises(InputError, match="one forward, backward, gather and reduce time per unit, and one unit"):
        fsdp_passes_s(Layers(**{**times, short: [1.0]}))


def test_a_ring_of_one_sends_nothing() -> None:
    assert ring_attention_s(3.0, 5.0, 1) == 3.0
    assert ring_attention_s(3, 2, 2) == 6.0
    assert ring_attention_s(3, 2, 2).dtype == float
