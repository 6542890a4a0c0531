"""Bytes that adding up gradients over micro-batches moves, counted by hand for each way of doing it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.catalog import load_framework
from simulator.parallel.states import accumulation_bytes
from simulator.spec.run import Run


@pytest.mark.parametrize(
    ("fused", "main", "precision", "each"),
    [
        (False, "bf16", "bf16", 2 + 2 + 2),  # Read the fresh one and the sum, write the sum.
        (False, "fp32", "bf16", 2 + 4 + 4),
        (False, "fp32", "fp32", 4 + 4 + 4),
        (True, "fp32", "bf16", 4 + 4 - 2),  # Read the sum, write it; the GEMM's time has 2 of what it writes.
        (True, "bf16", "bf16", 2 + 2 - 2),
    ],
)
def test_a_sum_in_place_reads_two_tensors_and_writes_one(fused: bool, main: str, precision: str, each: int) -> None:
    framework = replace(load_framework("pytorch"), fused_gradient_accumulation=fused, gradient_dtype=main)
    assert accumulation_bytes(1000.0, Run(global_batch=8, precision=precision), framework) == 1000.0 * each
