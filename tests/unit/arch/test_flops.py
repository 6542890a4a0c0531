"""FLOPs against closed forms counted by hand or printed in papers."""

from __future__ import annotations

import pytest

from simulator.arch.flops import core_flops, forward_flops_per_sequence, model_flops_per_sequence
from simulator.arch.operations import AttentionCore
from tests.support import gpt, mixture


@pytest.mark.parametrize(("hidden", "layers", "heads"), [(2304, 24, 24), (12288, 96, 96), (25600, 128, 160)])
def test_narayanan_2021_equation_3_without_its_recomputed_forward(hidden: int, layers: int, heads: int) -> None:
    s, vocab = 2048, 51200
    printed = 72 * s * layers * hidden**2 * (1 + s / (6 * hidden) + vocab / (12 * layers * hidden))
    assert model_flops_per_sequence(gpt(hidden, layers, heads), s, 0, "torch") == pytest.approx(printed, rel=1e-12)


def test_megatron_convention_halves_only_the_causal_core() -> None:
    model, s = gpt(1024, 4, 16), 512
    full = model_flops_per_sequence(model, s, 0, "torch")
    halved = model_flops_per_sequence(model, s, 0, "megatron")
    core = 4 * s * s * 1024 * 4
    assert full - halved == pytest.approx(3 * core / 2, rel=1e-12)


def test_palm_convention_is_six_n_plus_attention() -> None:
    model, s = gpt(1024, 4, 16), 512
    parameters = 4 * (12 * 1024**2 + 13 * 1024) + (51200 + 2048) * 1024 + 2 * 1024
    expected = s * (6 * parameters + 12 * 4 * 1024 * s)
    assert model_flops_per_sequence(model, s, 0, "palm") == pytest.approx(expected, rel=1e-12)


def test_a_mixture_counts_the_experts_a_token_visits() -> None:
    model = mixture(hidden=64, layers=1, heads=4, experts=8, top_k=2, expert_hidden=128)
    s = 32
    attention = 2 * s * 64 * (64 + 2 * 32) + 2 * s * 64 * 64 + 4 * s * s * 64
    experts = 2 * (2 * s * 3 * 64 * 128)
    router, head = 2 * s * 64 * 8, 2 * s * 64 * 32000
    assert forward_flops_per_sequence(model, s) == attention + experts + router + head


def test_a_sliding_window_bounds_the_keys_of_every_query() -> None:
    shape = {"batch": 1, "heads": 1, "kv_heads": 1, "q_len": 1000, "kv_len": 1000, "head_dim": 8, "value_head_dim": 8}
    windowed = AttentionCore(**shape, causal=True, window=100)
    pairs = sum(min(query + 1, 100) for query in range(1000))
    assert core_flops(windowed) == pytest.approx(2 * pairs * 16, rel=1e-3)
    assert core_flops(AttentionCore(**shape, causal=True)) == 2 * 1000 * 500 * 16
