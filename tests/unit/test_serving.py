"""Serving against hand counts: the cache, the weights that every token reads, and what may be asked."""

from __future__ import annotations

import json

import pytest

import simulator as sim
from simulator.arch.parameters import parameters
from simulator.errors import InputError
from simulator.serving import Load, Serving, kv_bytes_per_layer, serve
from tests.support import dgx, gpt


def served(batch: int = 8, prompt: int = 512, output: int = 128, **strategy: int) -> Serving:
    strategy = {"tp": 1, "dp": 8, **strategy}
    return serve(gpt(2048, 8, 16), dgx(1), sim.Strategy(**strategy), Load(
        batch=batch, prompt_tokens=prompt, output_tokens=output), price_usd_per_device_hour=2.0)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "per_token"),
    [
        ("llama3.1-70b", 80 * 2 * 8 * 128 * 2),
        ("llama3.1-8b", 32 * 2 * 8 * 128 * 2),
        ("gpt3-175b", 96 * 2 * 12288 * 2),
        ("deepseek-v3", 61 * (512 + 64) * 2),
        ("mistral-7b", 32 * 2 * 8 * 128 * 2),
    ],
)
def test_the_cache_of_one_token_is_counted_by_hand(name: str, per_token: int) -> None:
    """Llama 3.1 70B: 320 KiB; DeepSeek-V2 sec. 2.1.4 for the compressed one (70 KB a token in V3)."""
    model = sim.load_model(name)
    layers = [spec for stack in model.stacks for spec, count in stack.runs for _ in range(count)]
    total = sum(kv_bytes_per_layer(spec.attention, 1.0, 1, "bf16") for spec in layers)
    assert total == per_token


def test_the_cache_is_split_over_heads_and_halved_in_fp8() -> None:
    spec = sim.load_model("llama3.1-70b").stacks[0].runs[0][0].attention
    whole = kv_bytes_per_layer(spec, 1000.0, 1, "bf16")
    assert kv_bytes_per_layer(spec, 1000.0, 8, "bf16") == whole / 8
    assert kv_bytes_per_layer(spec, 1000.0, 16, "bf16") == whole / 8, "eight heads are replicated over sixteen ranks"
    assert kv_bytes_per_layer(spec, 1000.0, 1, "fp8") == whole / 2


def test_a_window_bounds_the_cache() -> None:
    spec = sim.load_model("gemma2-9b").stacks[0].runs[0][0].attention
    assert spec.window > 0
    assert kv_bytes_per_layer(spec, 1e6, 1, "bf16") == kv_bytes_per_layer(spec, float(spec.window), 1, "bf16")


def test_weights_are_two_bytes_each_and_bound_a_token_from_below() -> None:
    answer = served(batch=1)
    assert answer.weight_bytes == pytest.approx(2 * parameters(gpt(2048, 8, 16)).total, rel=1e-6)
    assert answer.time_per_output_token_s > 0.9 * answer.weight_bytes / 2.039e12


def test_a_larger_batch_costs_each_reader_and_serves_more() -> None:
    small, large = served(batch=1), served(batch=64)
    assert large.time_per_output_token_s >= small.time_per_output_token_s
    assert large.output_tokens_per_s > 5 * small.output_tokens_per_s
    assert large.kv_bytes == 64 * small.kv_bytes
    assert large.time_to_first_token_s == small.time_to_first_token_s


def test_longer_prompts_and_contexts_cost_more() -> None:
    assert served(prompt=4096).time_to_first_token_s > 4 * served(prompt=512).time_to_first_token_s
    assert served(prompt=8192).time_per_output_token_s > served(prompt=512).time_per_output_token_s


def test_tensor_parallelism_is_quicker_for_a_reader_and_pipelines_are_not() -> None:
    assert served(tp=8, dp=1).time_per_output_token_s < served().time_per_output_token_s
    assert served(pp=2, dp=4).time_per_output_token_s >= 0.99 * served(pp=2, dp=4).decode_parts_s["gemm"]
    assert served(pp=2, dp=4).weight_bytes < served().weight_bytes


def test_rates_and_money_follow_from_each_other() -> None:
    answer = served()
    assert answer.output_tokens_per_s_per_device == pytest.approx(answer.output_tokens_per_s / 8)
    assert answer.usd_per_million_tokens == pytest.approx(1e6 * 8 * 2.0 / 3600 / answer.output_tokens_per_s)


def test_what_fits_is_what_the_largest_batch_says() -> None:
    answer = served()
    assert answer.fits
    assert served(batch=answer.largest_batch).fits
    assert not served(batch=answer.largest_batch + 1).fits


def test_the_document_is_json() -> None:
    assert json.loads(json.dumps(served().to_dict(), allow_nan=False))["replicas"] == 8


@pytest.mark.parametrize(
    ("model", "strategy", "load", "said"),
    [
        ("bert-base", {}, {}, "only decoders with causal attention"),
        ("t5-small", {}, {}, "encoder-decoder"),
        ("gpt2-124m", {"cp": 2, "dp": 4}, {}, "cp(2) is not modelled in serving"),
        ("gpt2-124m", {"zero": 3}, {}, "zero(3)"),
        ("gpt2-124m", {"pp": 2, "dp": 4}, {"batch": 3}, "batch(3) % pp(2) = 1"),
        ("gpt2-124m", {}, {"batch": 0}, "batch(0)"),
        ("gpt2-124m", {}, {"prompt_tokens": 0}, "prompt_tokens(0)"),
        ("gpt2-124m", {}, {"kv_dtype": "int4"}, "kv_dtype 'int4'"),
    ],
)
def test_what_is_not_modelled_is_refused(
    model: str, strategy: dict[str, int], load: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError) as refusal:
        serve(sim.load_model(model), dgx(1), sim.Strategy(**{"dp": 8, **strategy}),
              Load(**{"batch": 8, "prompt_tokens": 64, "output_tokens": 8, **load}))  # fmt: skip
    assert said in str(refusal.value)
