"""config.json as a model: parameters equal those of the module that transformers builds from the same file."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.arch.parameters import mtp_parameters, parameters
from simulator.catalog import load_model, names
from simulator.errors import InputError
from simulator.io import hf, hf_write
from simulator.io.hf_families import FAMILIES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LLAMA = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
KNOWN: dict[str, dict[str, Any]] = {
    "llama2-7b": {"model_type": "llama", **LLAMA},
    "llama3.1-8b": {"model_type": "llama", **LLAMA, "num_key_value_heads": 8, "intermediate_size": 14336,
                    "vocab_size": 128256},
    "llama3.1-405b": {"model_type": "llama", "hidden_size": 16384, "num_hidden_layers": 126, "num_attention_heads": 128,
                      "num_key_value_heads": 8, "intermediate_size": 53248, "vocab_size": 128256},
    "mistral-7b": {"model_type": "mistral", **LLAMA},
    "mixtral-8x7b": {"model_type": "mixtral", **LLAMA},
    "qwen2.5-7b": {"model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
                   "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064},
    "qwen3-8b": {"model_type": "qwen3", "hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "intermediate_size": 12288},
    "qwen3-30b-a3b": {"model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48,
                      "num_attention_heads": 32, "head_dim": 128},
    "deepseek-v2-lite": {"model_type": "deepseek_v2", "hidden_size": 2048, "num_hidden_layers": 27,
                         "num_attention_heads": 16, "intermediate_size": 10944, "moe_intermediate_size": 1408,
                         "first_k_dense_replace": 1, "q_lora_rank": None, "num_experts_per_tok": 6},
    "deepseek-v3-no-mtp": {"model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61,
                           "num_attention_heads": 128},
    "gpt-oss-20b": {"model_type": "gpt_oss", "hidden_size": 2880, "num_hidden_layers": 24, "num_attention_heads": 64,
                    "num_local_experts": 32},
    "gemma-7b": {"model_type": "gemma", "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
                 "vocab_size": 256128},
    "gemma2-9b": {"model_type": "gemma2", "hidden_size": 3584, "num_hidden_layers": 42, "num_attention_heads": 16,
                  "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 256128},
    "gemma3-4b": {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34, "num_attention_heads": 8,
                  "intermediate_size": 10240, "vocab_size": 262144, "sliding_window": 1024},
    "llama4-scout": {"model_type": "llama4_text", "hidden_size": 5120, "num_hidden_layers": 48,
                     "num_attention_heads": 40},
    "nemotron4-15b": {"model_type": "nemotron", "hidden_size": 6144, "num_hidden_layers": 32, "num_attention_heads": 48,
                      "num_key_value_heads": 8},
    "gpt2-1.5b": {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25},
    "opt-350m": {"model_type": "opt", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
                 "ffn_dim": 4096, "word_embed_proj_dim": 512, "do_layer_norm_before": False},
    "bloom-176b": {"model_type": "bloom", "hidden_size": 14336, "n_layer": 70, "n_head": 112},
    "bert-large": {"model_type": "bert", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
                   "intermediate_size": 4096},
    "t5-base": {"model_type": "t5", "d_model": 768, "num_layers": 12, "num_heads": 12, "d_ff": 3072},
    "switch-base-8": {"model_type": "switch_transformers", "d_model": 768, "num_layers": 12, "num_heads": 12,
                      "d_ff": 3072, "num_sparse_encoder_layers": 6, "num_sparse_decoder_layers": 6},
}  # fmt: skip
"""The sizes that these models' files give; all else is left to the defaults."""


def built(config: dict[str, Any]) -> int:
    """Parameters of the module that transformers builds."""
    options = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    made = transformers.AutoConfig.for_model(config["model_type"], **options)
    with torch.device("meta"):
        module = getattr(transformers, FAMILIES[config["model_type"]].model)(made)
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_models_file_gives_the_catalogues_model_and_transformers_count(name: str) -> None:
    model, ours = hf.model_of(json.dumps(KNOWN[name])), load_model(name)
    assert parameters(model).total == parameters(ours).total == built(KNOWN[name])
    assert parameters(model).active == parameters(ours).active
    assert model.dropout == ours.dropout or name == "switch-base-8"


@pytest.mark.parametrize("name", ["llama3.1-8b", "deepseek-v2-lite", "gemma3-4b", "gpt-oss-20b", "qwen3-30b-a3b"])
def test_a_file_with_every_key_written_out_gives_the_same_model(name: str) -> None:
    config = KNOWN[name]
    options = {key: value for key, value in config.items() if key != "model_type"}
    full = transformers.AutoConfig.for_model(config["model_type"], **options).to_dict()
    assert hf.model_of(json.dumps(full)) == hf.model_of(json.dumps(config))


def test_a_mixture_in_two_stacks_keeps_its_place_in_the_catalogue() -> None:
    model = hf.model_of(json.dumps(KNOWN["switch-base-8"]))
    assert [[spec.experts is not None for spec, _ in stack.runs] for stack in model.stacks] == [
        [spec.experts is not None for spec, _ in stack.runs] for stack in load_model("switch-base-8").stacks
    ]


def whole(model: Any) -> list[Any]:
    """What a file can say of a model: its layers in order, both ends, and the norm."""
    def layers(stack: Any) -> list[Any]:
        untrained = {"capacity_factor": 0.0, "routing_group": 0}
        plain = [(replace(one, experts=replace(one.experts, **untrained)) if one.experts else one, count)
                 for one, count in stack.runs]  # fmt: skip
        return [stack.role, stack.final_norm, *(one for one, count in plain for _ in range(count))]

    return [model.hidden, model.dropout, model.embedding, model.head, model.norm, model.norm_bias,
            *map(layers, model.stacks)]  # fmt: skip


WITHOUT = ("alpa-", "deepseekmoe", "glam-", "gpt3-13b-printed", "gpt3-xl-printed", "grok1", "gshard", "moe-", "palm-",
           "st-moe", "switch-base-256", "switch-large-printed", "switch-xxl", "transformer-")  # fmt: skip
"""Models whose layers no family of transformers has: parallel blocks, gated Switch, GLaM, LSTMs, post-norm pairs."""


@pytest.mark.parametrize("name", names("models"))
def test_every_catalogued_model_reads_back_whole_or_is_refused_by_name(name: str) -> None:
    model = load_model(name)
    if name == "switch-base" or name.startswith(WITHOUT):
        with pytest.raises(InputError, match=name):
            hf_write.dump(model)
        return
    text = hf_write.dump(model)
    assert text.splitlines()[1] == '  "transformers_version": "5.23.0",'
    assert whole(hf.model_of(text)) == whole(model)


WITNESSED = (
    "llama3.1-70b", "qwen2.5-72b", "qwen3-235b-a22b", "deepseek-v2", "kimi-k2", "gemma3-27b", "gemma2-2b",
    "gpt-oss-120b",
    "llama4-maverick", "mixtral-8x22b", "nemotron4-340b", "gpt3-175b", "opt-66b", "bert-base", "t5-11b", "internlm-7b",
    "switch-base-8",
)  # fmt: skip


@pytest.mark.parametrize("name", WITNESSED)
def test_transformers_builds_an_exported_file_with_the_catalogues_parameters(name: str) -> None:
    config = json.loads(hf_write.dump(load_model(name)))
    del config["transformers_version"], config["architectures"]
    assert built(config) == parameters(load_model(name)).total


def problems(config: Any) -> list[str]:
    with pytest.raises(InputError) as refused:
        hf.load(json.dumps(config, indent=1), path="config.json")
    return [str(problem) for problem in refused.value.problems]


def test_every_problem_of_a_bad_file_is_told_at_its_line() -> None:
    dropped = "changes the cost and is not read: layers that are skipped at random are not modelled."
    told = problems({"model_type": "llama", "hidden_size": "big", "num_attention_head": 32, "num_hidden_layers": 32,
                     "hidden_act": "sillu", "vocab_size": -1, "layerdrop": 0.1})  # fmt: skip
    assert told == [
        "config.json:3: hidden_size: needs a whole number of at least 1, not 'big'.",
        "config.json:4: num_attention_head: is unknown. Did you mean num_attention_heads?",
        "config.json:6: hidden_act: 'sillu' is not modelled. Did you mean silu?",
        "config.json:7: vocab_size: needs a whole number of at least 1, not -1.",
        f"config.json:8: layerdrop: {dropped}",
        "num_attention_heads is missing: without it the file describes no model.",
    ]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "mamba"}, "not modelled"),
        ({"model_type": "llama", **LLAMA, "attention_dropout": 0.1}, "attention alone"),
        ({"model_type": "bert", **LLAMA, "hidden_dropout_prob": 1.5}, "no probability"),
        ({}, "not modelled"),
        ({"model_type": "llama", **LLAMA, "num_key_value_heads": 5}, "does not divide"),
        ({"model_type": "gpt2", "n_embd": 100, "n_layer": 2, "n_head": 3}, "no multiple"),
        ({"model_type": "gemma2", **LLAMA, "layer_types": ["full_attention"]}, "must name 32 layers"),
        ({"model_type": "deepseek_v3", **LLAMA, "moe_layer_freq": 2}, "moe_layer_freq"),
        ({"model_type": "bert", **LLAMA, "architectures": ["BertForTokenClassification"]}, "BertForPreTraining"),
    ],
)
def test_what_is_not_modelled_is_refused(config: dict[str, Any], said: str) -> None:
    assert said in " ".join(problems(config))


def test_what_was_taken_from_the_code_and_what_was_left_is_said() -> None:
    config = {"model_type": "llama", **LLAMA, "quantization_config": {"bits": 8}, "rope_theta": 1e4, "bos_token_id": 1}
    _, (taken, left) = hf.load(json.dumps(config))
    assert "head_dim = hidden size / heads = 128" in taken
    assert "num_key_value_heads" not in taken
    assert left == "not read, taken as without effect on the cost: quantization_config.bits, rope_theta."


def test_the_text_part_of_a_model_of_pictures_is_read() -> None:
    text = {key: value for key, value in KNOWN["gemma3-4b"].items() if key != "model_type"}
    both = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 1152}}
    assert parameters(hf.model_of(json.dumps(both))) == parameters(load_model("gemma3-4b"))


def test_prediction_layers_are_counted_apart() -> None:
    config = {**KNOWN["deepseek-v3-no-mtp"], "num_nextn_predict_layers": 1}
    assert mtp_parameters(hf.model_of(json.dumps(config))) == mtp_parameters(load_model("deepseek-v3"))


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """A small config.json of any family, with whatever structure its keys can say."""
    kind = draw(st.sampled_from([name for name in FAMILIES if name not in ("switch_transformers", "llama4_text")]))
    family, heads = FAMILIES[kind], draw(st.sampled_from([2, 4, 8]))
    keys, number, yes = family.keys, st.integers(1, 6), st.booleans()
    head_dim = draw(st.sampled_from([8, 16]))
    config: dict[str, Any] = {
        "model_type": kind, keys["dims.hidden"]: heads * head_dim, keys["dims.layers"]: draw(number),
        keys["attention.heads"]: heads, keys["feed_forward.hidden"]: 8 * draw(number),
        keys["embedding.vocab"]: draw(st.integers(4, 99)), keys["tied"]: draw(yes),
    }  # fmt: skip
    if keys["kv_heads"] == "num_key_value_heads" and not family.latent:
        config["num_key_value_heads"] = draw(st.sampled_from([1, 2, heads]))
    if family.windows and not family.experts:
        config["sliding_window"] = 16
    if "head_dim" in family.defaults:
        config["head_dim"] = draw(st.sampled_from([8, 16]))
    if not keys["feed_forward.hidden"]:
        del config[""]
    if kind == "phi3":
        config["pad_token_id"] = 0
    said = {key for key in (family.qkv_bias, family.out_bias, family.mlp_bias) if isinstance(key, str)}
    config |= {key: draw(yes) for key in sorted(said)}
    if kind == "opt":
        config |= {"word_embed_proj_dim": draw(st.sampled_from([4, heads * head_dim])),
                   "do_layer_norm_before": draw(yes)}  # fmt: skip
    if kind in ("t5", "mt5"):
        config |= {"d_kv": 8, "num_decoder_layers": draw(number), "feed_forward_proj": draw(st.sampled_from(
            ["relu", "gated-gelu"])), "relative_attention_num_buckets": draw(st.sampled_from([4, 32]))}  # fmt: skip
    if family.latent:
        config |= {"q_lora_rank": draw(st.sampled_from([None, 8])), "kv_lora_rank": 8, "qk_nope_head_dim": 8,
                   "qk_rope_head_dim": 4, "v_head_dim": draw(st.sampled_from([4, 8])), "attention_bias": False,
                   "first_k_dense_replace": draw(st.integers(0, 2)), "n_shared_experts": draw(number),
                   "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 8 * draw(number),
                   "n_group": 1, "topk_group": 1}  # fmt: skip
    if family.experts in ("mixtral", "gpt-oss"):
        config |= {"num_local_experts": draw(st.integers(2, 6)), "num_experts_per_tok": 2}
    if family.experts == "qwen":
        config |= {"num_experts": draw(st.integers(2, 6)), "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                   "decoder_sparse_step": draw(st.integers(1, 3)),
                   "mlp_only_layers": draw(st.lists(st.integers(0, 5), unique=True, max_size=2))}  # fmt: skip
    if kind == "qwen2_moe":
        config["shared_expert_intermediate_size"] = 8 * draw(number)
    return config


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(configs())
def test_any_small_file_counts_as_transformers_does(config: dict[str, Any]) -> None:
    # transformers 5 ties T5's vocabulary whatever the file says (files of v1.1 mean two tables), and keeps BERT's
    # output bias twice where it is not tied, which no published file has.
    if config["model_type"] in ("t5", "mt5", "bert"):
        config["tie_word_embeddings"] = True
    assert parameters(hf.model_of(json.dumps(config))).total == built(config)
