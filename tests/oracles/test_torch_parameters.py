"""Parameters equal torch's, to the integer: our reference modules for every model, transformers' where it has them."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.arch.parameters import COUNTING, mtp_parameters, parameters
from simulator.catalog import load_model, names
from simulator.parallel.recompute import Policy

torch = pytest.importorskip("torch")

from simulator.validate.torch_counts.blocks import Setting  # noqa: E402
from simulator.validate.torch_counts.tally import parameters_by_part  # noqa: E402


@pytest.mark.parametrize("name", names("models"))
def test_every_part_of_every_model_equals_its_torch_module(name: str) -> None:
    model = load_model(name)
    ours = {part: count for part, count in parameters(model).by_part.items() if count}
    if mtp_parameters(model):
        ours["mtp"] = mtp_parameters(model)
    assert parameters_by_part(Setting(model=model, kernels=COUNTING, policy=Policy())) == ours


def _llama(hidden: int, layers: int, heads: int, kv: int, inner: int, vocab: int) -> tuple[str, dict[str, Any]]:
    return "Llama", {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "intermediate_size": inner, "vocab_size": vocab, "tie_word_embeddings": False,
    }  # fmt: skip


def _gpt2(hidden: int, layers: int, heads: int, positions: int = 1024) -> tuple[str, dict[str, Any]]:
    return "GPT2", {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_positions": positions}


def _t5(hidden: int, layers: int, heads: int, inner: int, dim: int = 64) -> tuple[str, dict[str, Any]]:
    return "T5", {"d_model": hidden, "num_layers": layers, "num_heads": heads, "d_ff": inner, "d_kv": dim,
                  "vocab_size": 32128}  # fmt: skip


def _switch(experts: int) -> tuple[str, dict[str, Any]]:
    return "SwitchTransformers", {
        "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 12,
        "num_sparse_encoder_layers": 6, "num_sparse_decoder_layers": 6, "num_experts": experts, "vocab_size": 32128,
    }  # fmt: skip


def _mixtral(hidden: int, layers: int, heads: int, inner: int, vocab: int) -> tuple[str, dict[str, Any]]:
    return "Mixtral", {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8,
        "intermediate_size": inner, "vocab_size": vocab, "num_local_experts": 8, "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    }  # fmt: skip


def _qwen3_moe(hidden: int, layers: int, heads: int, inner: int) -> tuple[str, dict[str, Any]]:
    return "Qwen3Moe", {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 4,
        "head_dim": 128, "moe_intermediate_size": inner, "num_experts": 128, "num_experts_per_tok": 8,
        "vocab_size": 151936, "tie_word_embeddings": False,
    }  # fmt: skip


def _gpt_oss(layers: int, experts: int) -> tuple[str, dict[str, Any]]:
    return "GptOss", {"num_hidden_layers": layers, "num_local_experts": experts}


def _bert(hidden: int, layers: int, heads: int) -> tuple[str, dict[str, Any]]:
    return "Bert", {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
                    "intermediate_size": 4 * hidden}  # fmt: skip


WITNESSES = {
    "bert-base": _bert(768, 12, 12),
    "bert-large": _bert(1024, 24, 16),
    "gpt2-124m": _gpt2(768, 12, 12),
    "gpt2-355m": _gpt2(1024, 24, 16),
    "gpt2-774m": _gpt2(1280, 36, 20),
    "gpt2-1.5b": _gpt2(1600, 48, 25),
    "gpt3-175b": _gpt2(12288, 96, 96, 2048),
    "t5-base": _t5(768, 12, 12, 3072),
    "t5-large": _t5(1024, 24, 16, 4096),
    "t5-11b": _t5(1024, 24, 128, 65536, 128),
    "switch-base-8": _switch(8),
    "switch-base-64": _switch(64),
    "llama2-7b": _llama(4096, 32, 32, 32, 11008, 32000),
    "llama2-70b": _llama(8192, 80, 64, 8, 28672, 32000),
    "llama3.1-8b": _llama(4096, 32, 32, 8, 14336, 128256),
    "llama3.1-70b": _llama(8192, 80, 64, 8, 28672, 128256),
    "llama3.1-405b": _llama(16384, 126, 128, 8, 53248, 128256),
    "mixtral-8x7b": _mixtral(4096, 32, 32, 14336, 32000),
    "mixtral-8x22b": _mixtral(6144, 56, 48, 16384, 32768),
    "deepseek-v3": ("DeepseekV3", {}),
    "qwen3-30b-a3b": _qwen3_moe(2048, 48, 32, 768),
    "qwen3-235b-a22b": _qwen3_moe(4096, 94, 64, 1536),
    "gpt-oss-20b": _gpt_oss(24, 32),
    "gpt-oss-120b": _gpt_oss(36, 128),
}
HEADS = {"Bert": "ForPreTraining", "GPT2": "LMHeadModel", "T5": "ForConditionalGeneration",
         "SwitchTransformers": "ForConditionalGeneration"}  # fmt: skip


@pytest.mark.parametrize("name", WITNESSES)
def test_transformers_counts_the_same(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    family, sizes = WITNESSES[name]
    config = getattr(transformers, f"{family}Config")(**sizes)
    with torch.device("meta"):
        module = getattr(transformers, family + HEADS.get(family, "ForCausalLM"))(config)
    assert sum(p.numel() for p in module.parameters()) == parameters(load_model(name)).total
