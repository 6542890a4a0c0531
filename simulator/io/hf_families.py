"""What each `model_type` of Hugging Face's config.json means beyond its keys: defaults and structure.

Defaults live in transformers' code and not in the file; these are those of transformers 5.23.0
(src/transformers/models/*/configuration_*.py), its structure that of the modeling files beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VERSION = "5.23.0"
"""The transformers version whose keys and defaults these are."""
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "relu": "relu", "relu2": "relu2", "gelu": "gelu", "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "quick_gelu": "gelu", "gelu_python": "gelu",
}  # fmt: skip
STANDARD = {
    "dims.hidden": "hidden_size", "dims.layers": "num_hidden_layers", "dims.seq_len": "max_position_embeddings",
    "attention.heads": "num_attention_heads", "feed_forward.hidden": "intermediate_size",
    "embedding.vocab": "vocab_size", "activation": "hidden_act", "tied": "tie_word_embeddings",
    "kv_heads": "num_key_value_heads",
}  # fmt: skip
"""Where most families keep what ours calls by its table's name."""
REQUIRED = ("dims.hidden", "dims.layers", "attention.heads")
"""Sizes without which a file describes no model, whatever the code's defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One `model_type`. Biases are true, false, or the key that says so."""

    model: str
    """The class that config.json's `architectures` names."""
    keys: Mapping[str, str] = field(default_factory=lambda: STANDARD)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """transformers' value of a key that the file does not have."""
    architecture: str = "decoder"
    norm: str = "rmsnorm"
    norm_bias: bool = True
    norms_per_layer: int = 0
    """0 is what our model files take: 2, and 3 with cross-attention."""
    gated: bool = True
    qkv_bias: bool | str = False
    out_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    sinks: bool = False
    rotary: str = "rope"
    """How positions enter: "rope", "learned", or "none" of the two (ALiBi, relative bias)."""
    windows: str = ""
    """Empty for none, "every" layer, "from" a layer on (Qwen), "types" by `layer_types`, "chunks" (Llama 4)."""
    period: int = 0
    """With windows = "types": of so many layers the last one is full, where the file has no `layer_types`."""
    experts: str = ""
    """How a mixture is said: "mixtral", "qwen", "deepseek", "gpt-oss", "llama4" or "switch"."""
    latent: bool = False
    dropouts: tuple[str, ...] = ()
    """The keys of the dropout of residuals and of attention; without them only `attention_dropout` exists, 0."""


def _dense(model: str, *, vocab: int, ffn: int, context: int, **options: Any) -> Family:
    defaults = {"vocab_size": vocab, "intermediate_size": ffn, "max_position_embeddings": context, "hidden_act": "silu",
                "tie_word_embeddings": False, **options.pop("defaults", {})}  # fmt: skip
    return Family(model=model, defaults=defaults, **options)


_DEEPSEEK = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "kv_lora_rank": 512,
             "q_lora_rank": 1536, "attention_bias": False}  # fmt: skip
_QWEN = {"use_sliding_window": False, "sliding_window": 4096, "attention_bias": False}
_GEMMA = {"tie_word_embeddings": True, "head_dim": 256, "attention_bias": False}
_T5_KEYS = {
    "dims.hidden": "d_model", "dims.layers": "num_layers", "dims.seq_len": "n_positions",
    "attention.heads": "num_heads", "feed_forward.hidden": "d_ff", "embedding.vocab": "vocab_size",
    "activation": "dense_act_fn", "tied": "tie_word_embeddings", "kv_heads": "num_heads",
}  # fmt: skip
_T5 = {"d_kv": 64, "n_positions": 512, "relative_attention_num_buckets": 32, "tie_word_embeddings": True,
       "feed_forward_proj": "relu", "dense_act_fn": "relu", "dropout_rate": 0.1}  # fmt: skip
_GPT2_KEYS = {
    "dims.hidden": "n_embd", "dims.layers": "n_layer", "dims.seq_len": "n_positions", "attention.heads": "n_head",
    "feed_forward.hidden": "n_inner", "embedding.vocab": "vocab_size", "activation": "activation_function",
    "tied": "tie_word_embeddings", "kv_heads": "n_head",
}  # fmt: skip
_OPT_KEYS = {**STANDARD, "feed_forward.hidden": "ffn_dim", "activation": "activation_function",
             "kv_heads": "num_attention_heads"}  # fmt: skip
_BLOOM_KEYS = {**STANDARD, "dims.layers": "n_layer", "attention.heads": "n_head", "dims.seq_len": "seq_length",
               "feed_forward.hidden": "", "kv_heads": "n_head"}  # fmt: skip
"""BLOOM's feed-forward is always four times as wide (modeling_bloom.py BloomMLP)."""

FAMILIES: Mapping[str, Family] = {
    "llama": _dense("LlamaForCausalLM", vocab=32000, ffn=11008, context=2048, qkv_bias="attention_bias",
                    out_bias="attention_bias", mlp_bias="mlp_bias"),
    "mistral": _dense("MistralForCausalLM", vocab=32000, ffn=14336, context=131072, windows="every",
                      defaults={"num_key_value_heads": 8, "sliding_window": 4096}),
    "qwen2": _dense("Qwen2ForCausalLM", vocab=151936, ffn=22016, context=32768, qkv_bias=True, windows="from",
                    defaults={**_QWEN, "num_key_value_heads": 32}),
    "qwen3": _dense("Qwen3ForCausalLM", vocab=151936, ffn=22016, context=32768, qk_norm=True, windows="from",
                    qkv_bias="attention_bias", out_bias="attention_bias",
                    defaults={**_QWEN, "num_key_value_heads": 32, "head_dim": 128}),
    "phi3": _dense("Phi3ForCausalLM", vocab=32064, ffn=8192, context=4096, windows="every",
                   defaults={"sliding_window": None}),
    "gemma": _dense("GemmaForCausalLM", vocab=256000, ffn=24576, context=8192, qkv_bias="attention_bias",
                    out_bias="attention_bias",
                    defaults={**_GEMMA, "num_key_value_heads": 16, "hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": _dense("Gemma2ForCausalLM", vocab=256000, ffn=9216, context=8192, norms_per_layer=4, windows="types",
                     period=2, keys={**STANDARD, "activation": "hidden_activation"}, qkv_bias="attention_bias",
                     out_bias="attention_bias",
                     defaults={**_GEMMA, "num_key_value_heads": 4, "hidden_activation": "gelu_pytorch_tanh",
                               "sliding_window": 4096}),
    "gemma3_text": _dense("Gemma3ForCausalLM", vocab=262208, ffn=9216, context=131072, norms_per_layer=4, qk_norm=True,
                          windows="types", period=6, keys={**STANDARD, "activation": "hidden_activation"},
                          qkv_bias="attention_bias", out_bias="attention_bias",
                          defaults={**_GEMMA, "num_attention_heads": 8, "num_key_value_heads": 4,
                                    "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4096}),
    "nemotron": _dense("NemotronForCausalLM", vocab=256000, ffn=24576, context=4096, norm="layernorm", gated=False,
                       qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias",
                       defaults={"hidden_act": "relu2", "partial_rotary_factor": 0.5}),
    "mixtral": _dense("MixtralForCausalLM", vocab=32000, ffn=14336, context=131072, experts="mixtral", windows="every",
                      defaults={"num_key_value_heads": 8, "sliding_window": None, "num_local_experts": 8,
                                "num_experts_per_tok": 2}),
    "qwen2_moe": _dense("Qwen2MoeForCausalLM", vocab=151936, ffn=5632, context=32768, experts="qwen",
                        qkv_bias="qkv_bias", windows="from",
                        defaults={**_QWEN, "num_key_value_heads": 16, "qkv_bias": True, "decoder_sparse_step": 1,
                                  "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
                                  "num_experts_per_tok": 4, "num_experts": 60}),
    "qwen3_moe": _dense("Qwen3MoeForCausalLM", vocab=151936, ffn=6144, context=32768, experts="qwen", qk_norm=True,
                        qkv_bias="attention_bias", out_bias="attention_bias", windows="every",
                        defaults={**_QWEN, "num_key_value_heads": 4, "decoder_sparse_step": 1,
                                  "moe_intermediate_size": 768, "num_experts_per_tok": 8, "num_experts": 128}),
    "deepseek_v2": _dense("DeepseekV2ForCausalLM", vocab=102400, ffn=11008, context=2048, experts="deepseek",
                          latent=True,
                          defaults={**_DEEPSEEK, "first_k_dense_replace": 0, "n_routed_experts": 64,
                                    "n_shared_experts": 2, "moe_intermediate_size": 1407}),
    "deepseek_v3": _dense("DeepseekV3ForCausalLM", vocab=129280, ffn=18432, context=4096, experts="deepseek",
                          latent=True,
                          defaults={**_DEEPSEEK, "first_k_dense_replace": 3, "n_routed_experts": 256,
                                    "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048}),
    "gpt_oss": _dense("GptOssForCausalLM", vocab=201088, ffn=2880, context=131072, experts="gpt-oss", sinks=True,
                      qkv_bias="attention_bias", out_bias="attention_bias", windows="types", period=2,
                      defaults={"num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128, "attention_bias": True,
                                "num_local_experts": 128, "num_experts_per_tok": 4}),
    "llama4_text": _dense("Llama4ForCausalLM", vocab=202048, ffn=8192, context=131072, experts="llama4",
                          windows="chunks", qkv_bias="attention_bias", out_bias="attention_bias",
                          defaults={"num_key_value_heads": 8, "head_dim": 128, "num_local_experts": 16,
                                    "num_experts_per_tok": 1, "interleave_moe_layer_step": 1,
                                    "intermediate_size_mlp": 16384, "attention_chunk_size": 8192,
                                    "no_rope_layer_interval": 4}),
    "gpt2": Family(model="GPT2LMHeadModel", keys=_GPT2_KEYS, norm="layernorm", gated=False, qkv_bias=True,
                   out_bias=True, mlp_bias=True, rotary="learned",
                   dropouts=("resid_pdrop", "attn_pdrop"),
                   defaults={"vocab_size": 50257, "n_positions": 1024, "activation_function": "gelu_new",
                             "resid_pdrop": 0.1, "attn_pdrop": 0.1, "tie_word_embeddings": True}),
    "opt": Family(model="OPTForCausalLM", keys=_OPT_KEYS, norm="layernorm", gated=False, qkv_bias="enable_bias",
                  out_bias="enable_bias", mlp_bias="enable_bias", rotary="learned",
                  dropouts=("dropout", "attention_dropout"),
                  defaults={"dropout": 0.1, "vocab_size": 50272, "ffn_dim": 3072,
                            "max_position_embeddings": 2048, "enable_bias": True,
                            "activation_function": "relu", "tie_word_embeddings": True}),
    "bloom": Family(model="BloomForCausalLM", keys=_BLOOM_KEYS, norm="layernorm", gated=False, qkv_bias=True,
                    out_bias=True, mlp_bias=True, rotary="none",
                    dropouts=("hidden_dropout", "attention_dropout"),
                    defaults={"vocab_size": 250880, "hidden_act": "gelu", "seq_length": 2048,
                              "tie_word_embeddings": True}),
    "bert": Family(model="BertForPreTraining", architecture="encoder", norm="layernorm", gated=False, qkv_bias=True,
                   out_bias=True, mlp_bias=True, rotary="learned",
                   keys={**STANDARD, "kv_heads": "num_attention_heads"},
                   dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob"),
                   defaults={"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "vocab_size": 30522,
                             "intermediate_size": 3072, "max_position_embeddings": 512,
                             "hidden_act": "gelu", "type_vocab_size": 2, "tie_word_embeddings": True}),
    "t5": Family(model="T5ForConditionalGeneration", architecture="encoder-decoder", keys=_T5_KEYS, gated=False,
                 rotary="none", dropouts=("dropout_rate",), defaults={**_T5, "vocab_size": 32128, "d_ff": 2048}),
    "mt5": Family(model="MT5ForConditionalGeneration", architecture="encoder-decoder", keys=_T5_KEYS, gated=False,
                  rotary="none", dropouts=("dropout_rate",),
                  defaults={**_T5, "vocab_size": 250112, "d_ff": 1024, "feed_forward_proj": "gated-gelu"}),
    "switch_transformers": Family(model="SwitchTransformersForConditionalGeneration", architecture="encoder-decoder",
                                  keys=_T5_KEYS, gated=False, rotary="none", experts="switch",
                                  dropouts=("dropout_rate",),
                                  defaults={**_T5, "vocab_size": 32128, "d_ff": 2048, "num_experts": 8,
                                            "num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 3}),
}  # fmt: skip
NESTED = {"gemma3": "gemma3_text", "llama4": "llama4_text"}
"""Models of text and pictures, whose `text_config` is one of the above."""
ALIASES = {"kimi_k2": "deepseek_v3"}
"""Types of files with their own code, whose structure is another's (Kimi K2's modeling file is DeepSeek-V3's)."""
