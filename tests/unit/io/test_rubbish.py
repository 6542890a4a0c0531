"""Whatever a file holds, an import answers or says what is wrong with it: nothing else escapes or runs away."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.catalog import load_model
from simulator.errors import InputError, Problem
from simulator.io import hf
from simulator.io.formats import FORMATS, MODULES, dump_as, load_as
from simulator.io.hf_families import ALIASES, FAMILIES, NESTED
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy

MODEL = load_model("llama3.1-8b")
GOOD = {
    "megatron": dump_as("megatron", Strategy(tp=2, pp=2, dp=2, recompute="selective", layers_per_stage=(15, 17)),
                        Run(global_batch=8, seq_len=64), MODEL),
    "megatron-bridge": dump_as("megatron-bridge", Strategy(tp=2, pp=2, dp=2, recompute="selective", zero=1),
                               Run(global_batch=8, seq_len=64), MODEL),
    "torchtitan": dump_as("torchtitan", Strategy(tp=2, pp=2, dp=2, zero=2, recompute="full"),
                          Run(global_batch=8, seq_len=64), MODEL),
    "deepspeed": dump_as("deepspeed", Strategy(dp=8, zero=3), Run(global_batch=8, seq_len=64), MODEL),
    "hf": json.dumps({"model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                      "layer_types": ["full_attention", "full_attention"], "mlp_only_layers": [0]}, indent=1),
}  # fmt: skip
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8),
                   st.lists(st.integers(-3, 3) | st.text(max_size=3), max_size=4),
                   st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))  # fmt: skip


def read(form: str, text: str) -> None:
    """An answer or an InputError whose every problem is a sentence."""
    problems: tuple[Problem, ...] = (Problem("none"),)
    try:
        hf.load(text) if form == "hf" else load_as(form, text, path="file", devices=8, layers=32)
    except InputError as error:
        problems = error.problems
    assert problems
    assert all(problem.message.strip() for problem in problems)


@pytest.mark.parametrize("form", FORMATS)
@given(text=st.text(max_size=200))
def test_any_text(form: str, text: str) -> None:
    read(form, text)


@pytest.mark.parametrize("form", GOOD)
@given(data=st.data())
def test_a_good_file_with_a_piece_cut_out_or_put_in(form: str, data: st.DataObject) -> None:
    text = GOOD[form]
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 20)))
    read(form, text[:start] + data.draw(st.text(max_size=6)) + text[end:])


KEYS = {key for family in FAMILIES.values() for key in (*family.keys.values(), *family.defaults)}
LISTS = {"layer_types", "mlp_only_layers", "no_rope_layers", "moe_layers", "text_config", "architectures",
         "num_nextn_predict_layers", "max_window_layers"}  # fmt: skip


@given(
    kind=st.sampled_from([*FAMILIES, *NESTED, *ALIASES]),
    keys=st.dictionaries(st.sampled_from(sorted(KEYS | LISTS)), VALUES),
)
def test_any_values_of_the_keys_of_a_model(kind: str, keys: dict[str, Any]) -> None:
    sizes = {name: 8 for name in FAMILIES.get(kind, FAMILIES["llama"]).keys.values() if name}
    read("hf", json.dumps({"model_type": kind, **sizes, **keys}))


@given(keys=st.dictionaries(st.sampled_from([
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "zero_optimization", "bf16",
    "optimizer", "tensor_parallel", "sequence_parallel_size"]), VALUES))  # fmt: skip
def test_any_values_of_the_keys_of_deepspeed(keys: dict[str, Any]) -> None:
    read("deepspeed", json.dumps(keys))


@pytest.mark.parametrize("form", MODULES)
def test_a_mountain_of_text_is_refused(form: str) -> None:
    with pytest.raises(InputError):
        load_as(form, "x" * 2_000_000, path="file", devices=8)


HUGE = 2**53


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("megatron", f"--pipeline-model-parallel-size {HUGE} --num-layers 9 --decoder-first-pipeline-num-layers 1"),
        ("torchtitan", f"[parallelism]\npipeline_parallel_degree = {HUGE}\n[activation_checkpoint]\nmode = 'none'"),
        ("hf", json.dumps({"model_type": "gemma2", "hidden_size": 8, "num_attention_heads": 2,
                           "num_hidden_layers": HUGE})),
    ],
)  # fmt: skip
def test_numbers_without_measure_are_refused_and_not_written_out(form: str, text: str) -> None:
    with pytest.raises(InputError):
        hf.load(text) if form == "hf" else load_as(form, text, path="file", devices=8, layers=32)
