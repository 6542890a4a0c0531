"""A model's TOML file: what it becomes layer by layer, and what is said about a bad one."""

from __future__ import annotations

import copy
import re
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.spec.model import LayerSpec, ModelSpec
from simulator.spec.model_file import read_model
from simulator.spec.model_tables import LayerRule, printed_count
from simulator.spec.reading import Document, parse_document, read_document

ROOT = Path(__file__).resolve().parents[3]
BAD = sorted((ROOT / "tests" / "unit" / "bad_files" / "models").glob("*.toml"))
FILES = sorted((ROOT / "models").rglob("*.toml"))


def load(place: str) -> ModelSpec:
    return read_model(read_document(ROOT / "models" / f"{place}.toml"))


def layers(model: ModelSpec, stack: int = 0) -> list[LayerSpec]:
    return [spec for spec, count in model.stacks[stack].runs for _ in range(count)]


def letters(name: str) -> str:
    """A name without the marks that tables of runs spell as they like."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def with_experts(model: ModelSpec, stack: int = 0) -> list[int]:
    return [index for index, layer in enumerate(layers(model, stack)) if layer.experts]


def has_table(model: ModelSpec, stack: int) -> list[int]:
    return [
        i for i, layer in enumerate(layers(model, stack)) if layer.attention and layer.attention.relative_bias_buckets
    ]


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_file_gets_every_problem_with_its_line_at_once(path: Path) -> None:
    with pytest.raises(InputError) as refused:
        read_model(read_document(path, path.name))
    assert str(refused.value) + "\n" == path.with_suffix(".txt").read_text(encoding="utf-8")


def test_every_bad_file_has_its_message_and_the_other_way_round() -> None:
    folder = ROOT / "tests" / "unit" / "bad_files" / "models"
    assert {p.stem for p in BAD} == {p.stem for p in folder.glob("*.txt")}
    assert len(BAD) >= 20


def test_a_pattern_of_any_length_is_bounded_before_it_is_written_out() -> None:
    text = (ROOT / "models/gpt3/gpt3-175b.toml").read_text(encoding="utf-8")
    huge = re.sub(r"(?m)^layers = 96", "layers = 9_000_000_000", text)
    with pytest.raises(InputError, match=r"dims.layers: must be at most 10000, got 9000000000"):
        read_model(parse_document(huge, "huge.toml"))


def test_equal_layers_are_one_run() -> None:
    model = load("gpt3/gpt3-175b")
    (run,) = model.stacks[0].runs
    layer, count = run
    assert (count, model.layers, model.architecture) == (96, 96, "decoder")
    assert layer.attention is not None
    assert (layer.attention.heads, layer.attention.kv_heads, layer.attention.head_dim) == (96, 96, 128)
    assert layer.attention.causal
    assert layer.attention.qkv_bias
    assert layer.attention.out_bias
    assert layer.feed_forward is not None
    assert layer.feed_forward.hidden == 4 * model.hidden
    assert (layer.norms, model.norm, model.norm_bias, model.name) == (2, "layernorm", True, "gpt3-175b")


def test_neighbouring_runs_differ() -> None:
    for path in FILES:
        for stack in read_model(read_document(path)).stacks:
            assert all(before != after for (before, _), (after, _) in pairwise(stack.runs)), path


def test_the_layers_written_out_are_the_layers_said() -> None:
    for path in FILES:
        said = tomllib.loads(path.read_text(encoding="utf-8"))["dims"]
        keys = ("encoder_layers", "decoder_layers") if said["architecture"] == "encoder-decoder" else ("layers",)
        assert [stack.layers for stack in read_model(read_document(path)).stacks] == [said[key] for key in keys], path


def test_bert_looks_both_ways_and_ends_without_a_norm() -> None:
    model = load("bert/bert-large")
    assert model.architecture == "encoder"
    assert all(layer.attention and not layer.attention.causal for layer in layers(model))
    assert not model.stacks[0].final_norm
    assert (model.embedding.norm, model.embedding.token_types, model.embedding.learned_positions) == (True, 2, 512)
    assert model.head.transform
    assert model.head.pooler
    assert model.head.bias
    assert model.head.pooler_classes == 2


def test_t5_owns_one_relative_table_per_stack_and_crosses_without_positions() -> None:
    model = load("t5/t5-large")
    assert model.architecture == "encoder-decoder"
    for stack, norms in ((0, 2), (1, 3)):
        assert has_table(model, stack) == [0]
        assert all(layer.attention and layer.attention.relative_bias for layer in layers(model, stack))
        assert {layer.norms for layer in layers(model, stack)} == {norms}
    assert all(layer.cross_attention is None for layer in layers(model, 0))
    for layer in layers(model, 1):
        assert layer.attention is not None
        assert layer.cross_attention is not None
        assert layer.attention.causal
        assert not layer.cross_attention.causal
        assert not layer.cross_attention.relative_bias
        assert not layer.cross_attention.relative_bias_buckets


def test_glam_owns_one_relative_table_per_layer_and_gates_only_the_dense_layers() -> None:
    model = load("glam/glam-64b-64e")
    assert has_table(model, 0) == list(range(64))
    assert with_experts(model) == list(range(1, 64, 2))
    for layer in layers(model):
        assert (layer.experts is None) != (layer.feed_forward is None)
        assert layer.experts is None or not layer.experts.gated
        assert layer.feed_forward is None or layer.feed_forward.gated


@pytest.mark.parametrize(
    ("place", "stack", "expected"),
    [
        ("switch/switch-base", 0, [1, 3, 5, 7, 9, 11]),
        ("switch/switch-base", 1, [1, 3, 5, 7, 9, 11]),
        ("switch/switch-c", 1, list(range(15))),
        ("st-moe/st-moe-32b", 0, [3, 7, 11, 15, 19, 23]),
        ("deepseek/deepseek-v3", 0, list(range(3, 61))),
        ("deepseek/deepseek-v2", 0, list(range(1, 60))),
        ("llama4/llama4-maverick", 0, list(range(1, 48, 2))),
        ("mistral/mixtral-8x7b", 0, list(range(32))),
        ("shazeer2017/moe-4096-h", 0, [1]),
    ],
)
def test_experts_stand_in_the_layers_of_their_rule(place: str, stack: int, expected: list[int]) -> None:
    assert with_experts(load(place), stack) == expected


def test_st_moe_has_a_dense_feed_forward_after_each_mixture() -> None:
    mixture = layers(load("st-moe/st-moe-32b"))[3].experts
    assert mixture is not None
    assert mixture.extra_feed_forward is not None
    assert mixture.extra_feed_forward.hidden == 20480


def test_latent_attention_keeps_its_ranks_and_shared_experts_add_up() -> None:
    spec = layers(load("deepseek/deepseek-v2"))[59]
    attention, experts = spec.attention, spec.experts
    assert attention is not None
    assert experts is not None
    assert attention.latent
    assert (attention.q_lora_rank, attention.kv_lora_rank) == (1536, 512)
    assert (attention.head_dim, attention.rope_head_dim, attention.value_head_dim) == (192, 64, 128)
    assert attention.kv_heads == attention.heads == 128
    assert experts.shared_hidden == 2 * 1536


def test_local_layers_follow_their_pattern() -> None:
    gemma = [layer.attention.window for layer in layers(load("gemma/gemma3-12b")) if layer.attention]
    assert gemma == ([1024] * 5 + [0]) * 8
    oss = [layer.attention.window for layer in layers(load("gpt-oss/gpt-oss-120b")) if layer.attention]
    assert oss == [128, 0] * 18
    assert {layer.attention.window for layer in layers(load("mistral/mistral-7b")) if layer.attention} == {4096}


def test_llama_4_drops_rotary_where_it_sees_everything() -> None:
    seen = [(a.chunk, a.rope_head_dim) for layer in layers(load("llama4/llama4-scout")) if (a := layer.attention)]
    assert seen == ([(8192, 128)] * 3 + [(0, 0)]) * 12


def test_an_lstm_mixture_has_no_attention_and_no_norms() -> None:
    model = load("shazeer2017/moe-143m")
    first, mixture, last = layers(model)
    assert first == last
    assert first.lstm is not None
    assert (first.lstm.hidden, first.lstm.projection) == (4096, 1024)
    assert mixture.lstm is None
    assert mixture.experts is not None
    assert (mixture.experts.branching, mixture.experts.visited, mixture.experts.router_matrices) == (32, 4, 2)
    assert all(layer.attention is None and layer.feed_forward is None and layer.norms == 0 for layer in layers(model))
    assert not model.stacks[0].final_norm


def test_palm_shares_one_norm_without_bias() -> None:
    model = load("palm/palm-540b")
    (layer, _), = model.stacks[0].runs  # fmt: skip
    assert (layer.parallel, layer.norms, model.norm, model.norm_bias) == (True, 1, "layernorm", False)


@pytest.mark.parametrize(
    ("text", "value", "half_unit"),
    [
        ("174.6B", 174_600_000_000, 50_000_000),
        ("1571B", 1_571_000_000_000, 500_000_000),
        ("1.2T", 1_200_000_000_000, 50_000_000_000),
        ("137577.6M", 137_577_600_000, 50_000),
        ("540.35B", 540_350_000_000, 5_000_000),
        ("13.0B", 13_000_000_000, 50_000_000),
        ("110,106,428", 110_106_428, 0),
    ],
)
def test_a_printed_count_knows_its_last_digit(text: str, value: int, half_unit: int) -> None:
    read, tolerance = printed_count(text)
    assert read == value
    assert tolerance * value == pytest.approx(half_unit, rel=1e-12)


@given(st.integers(1, 10**7), st.integers(0, 3), st.sampled_from("KMBT"))
def test_a_count_read_back_from_its_rounding_is_within_the_tolerance(digits: int, places: int, scale: str) -> None:
    unit = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}[scale]
    text = f"{digits // 10**places}.{digits % 10**places:0{places}d}{scale}" if places else f"{digits}{scale}"
    value, tolerance = printed_count(text)
    assert value == digits * unit // 10**places
    assert tolerance * value == pytest.approx(unit / 10**places / 2)


@given(st.integers(1, 12), st.integers(0, 20), st.integers(0, 60))
def test_a_layer_rule_is_a_range(every: int, first: int, count: int) -> None:
    rule = LayerRule(every=every, first=first)
    assert [index for index in range(count) if rule.covers(index)] == list(range(first, count, every))


def test_without_first_the_last_layer_of_each_group_is_meant() -> None:
    rule = LayerRule(every=4)
    assert [index for index in range(12) if rule.covers(index)] == [3, 7, 11]


def test_names_and_aliases_find_one_model_each() -> None:
    words = Counter(path.stem for path in FILES)
    for path in FILES:
        words.update(tomllib.loads(path.read_text(encoding="utf-8")).get("aliases", []))
    assert [word for word, count in words.items() if count > 1] == []
    assert all(re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", path.stem) for path in FILES)


def test_mixtures_that_published_runs_name_are_found_by_that_name() -> None:
    known = {letters(word) for path in FILES for word in (path.stem, *read_model(read_document(path)).aliases)}
    named = """Mixtral-8x7B, DeepSeek-V3, DeepSeekV3, DeepSeekV3 (w/o MTP), DeepSeekV3 (w/ MTP), DeepSeek V3 671B,
        Qwen3_30B_a3B, Qwen3_235B_a22B, Qwen3-235B, Qwen3 MoE 30B, Kimi_K2, Kimi K2, GPT OSS 120B, GPT-OSS 120B,
        Llama4-Maverick-17B-128E, Grok-1 314B, MoE L8 h1024 E8, deepseekv3 truncated to 4 layers, mT5 170M"""
    assert [name for name in named.split(",") if letters(name) not in known] == []


def test_the_example_in_the_readme_is_a_model() -> None:
    text = (ROOT / "models" / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    model = read_model(parse_document(example, "models/mistral/mixtral-8x7b.toml"))
    assert model.stacks == load("mistral/mixtral-8x7b").stacks
    assert model.published.parameters == load("mistral/mixtral-8x7b").published.parameters


VALUES = st.one_of(
    st.integers(-3, 3), st.sampled_from([10**6, 2**31, 2**53]), st.floats(allow_nan=False), st.booleans(),
    st.text(max_size=5), st.lists(st.integers(-1, 3) | st.sampled_from(["local", "full"]), max_size=4),
    st.none(), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@given(st.sampled_from(FILES), st.data())
def test_whatever_is_written_in_a_file_it_is_read_or_refused_politely(path: Path, data: st.DataObject) -> None:
    document = read_document(path, path.name)
    table = copy.deepcopy(dict(document.table))
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(table)))
        if isinstance(table[name], dict) and table[name]:
            table[name][data.draw(st.sampled_from(sorted(table[name])))] = data.draw(VALUES)
        else:
            table[name] = data.draw(VALUES)
    try:
        assert read_model(Document(document.path, table, document.lines)).layers > 0
    except InputError as error:
        refused = error.problems
        assert all(problem.where.startswith(f"{path.name}:") for problem in refused)
