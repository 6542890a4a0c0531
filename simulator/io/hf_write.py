"""A model of ours as Hugging Face's config.json.

Each family writes its keys from a model's sizes, and the file is read back: only one that gives the very same layers,
embedding and head again is written, so what a family cannot say is never lost silently.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

from simulator.errors import InputError, Problem
from simulator.io.hf import model_of
from simulator.io.hf_families import FAMILIES, VERSION, Family
from simulator.spec.model import AttentionSpec, LayerSpec, ModelSpec

_TRIED = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "nemotron", "phi3", "mixtral", "qwen2_moe",
    "qwen3_moe", "deepseek_v3", "deepseek_v2", "gpt_oss", "llama4_text", "gpt2", "opt", "bloom", "bert", "t5", "mt5",
    "switch_transformers",
)  # fmt: skip
"""Families in the order in which they are tried, after those that the model's name holds."""
_WORDS = {"llama4_text": "silu", "gemma": "gelu_pytorch_tanh", "gemma2": "gelu_pytorch_tanh",
          "gemma3_text": "gelu_pytorch_tanh", "gpt2": "gelu_new"}  # fmt: skip


def dump(model: ModelSpec) -> str:
    """The config.json of a model; its first key names the transformers version.

    Raises InputError with what the nearest family would lose, where no family of transformers has such layers.
    """
    nearest: tuple[int, str, tuple[str, ...]] = (10**6, "", ())
    for kind in sorted(_candidates(model), key=lambda kind: not _named(kind, model)):
        config = _config(kind, model)
        try:
            read = model_of(json.dumps(config))
        except InputError:
            continue
        lost = _differences(model, read)
        if not lost:
            return json.dumps(config, indent=2) + "\n"
        nearest = min(nearest, (len(lost), kind, lost))
    _, kind, lost = nearest
    said = f"its nearest ({kind}) would change {', '.join(lost)}" if kind else "none is near"
    message = f"no family of transformers {VERSION} that is written here has the layers of {model.name}: {said}."
    raise InputError([Problem(message, model.name)])


def _candidates(model: ModelSpec) -> list[str]:
    """Families of the model's architecture, mixtures for a mixture."""
    return [kind for kind in _TRIED if FAMILIES[kind].architecture == model.architecture
            and bool(FAMILIES[kind].experts) == model.mixture]  # fmt: skip


def _named(kind: str, model: ModelSpec) -> bool:
    return kind.removesuffix("_text").replace("_", "") in model.name.replace("-", "").replace(".", "")


def _differences(model: ModelSpec, read: ModelSpec) -> tuple[str, ...]:
    """What of a model's structure another does not have. How a training pads and groups tokens is not the file's."""
    same = ("hidden", "embedding", "head", "norm", "norm_bias", "dropout")
    lost = [name for name in same if getattr(model, name) != getattr(read, name)]
    ours, theirs = ([_plain(layer) for stack in spec.stacks for layer in _layers(stack.runs)] for spec in (model, read))
    if [s.role for s in model.stacks] != [s.role for s in read.stacks] or len(ours) != len(theirs):
        lost.append("the stacks")
    elif [s.final_norm for s in model.stacks] != [s.final_norm for s in read.stacks]:
        lost.append("the final norm")
    names = {f"{entry.name} of layers" for one, other in zip(ours, theirs, strict=False) for entry in fields(one)
             if getattr(one, entry.name) != getattr(other, entry.name)}  # fmt: skip
    return (*lost, *sorted(names))


def _layers(runs: tuple[tuple[LayerSpec, int], ...]) -> list[LayerSpec]:
    return [layer for layer, count in runs for _ in range(count)]


def _plain(layer: LayerSpec) -> LayerSpec:
    if layer.experts is None:
        return layer
    return replace(layer, experts=replace(layer.experts, capacity_factor=0.0, routing_group=0))


def _config(kind: str, model: ModelSpec) -> dict[str, Any]:
    """A family's keys with the sizes of a model, whether or not they say all of it."""
    family = FAMILIES[kind]
    layers = _layers(model.stacks[0].runs)
    attention = next((layer.attention for layer in layers if layer.attention), None)
    dense = next((layer.feed_forward for layer in layers if layer.feed_forward), None)
    mixture = next((layer.experts for layer in layers if layer.experts), None)
    block = dense or mixture
    if attention is None or block is None:
        return {"model_type": kind}
    values = {
        "dims.hidden": model.hidden, "dims.layers": len(layers), "dims.seq_len": _context(family, model),
        "attention.heads": attention.heads, "feed_forward.hidden": block.hidden,
        "embedding.vocab": model.embedding.vocab, "activation": _WORDS.get(kind, block.activation),
        "tied": model.head.tied,
    }  # fmt: skip
    config: dict[str, Any] = {"transformers_version": VERSION, "architectures": [family.model], "model_type": kind}
    config |= {family.keys[path]: value for path, value in values.items() if family.keys[path]}
    if family.keys["kv_heads"] == "num_key_value_heads":
        config["num_key_value_heads"] = attention.kv_heads
    biases = {family.qkv_bias: attention.qkv_bias, family.out_bias: attention.out_bias, family.mlp_bias: block.bias}
    config |= {key: value for key, value in biases.items() if isinstance(key, str)}
    config |= dict.fromkeys(family.dropouts, model.dropout)
    config |= _attention(family, model, attention, layers)
    if mixture is not None:
        config |= _experts(family, layers)
    if family.architecture == "encoder-decoder":
        config |= _encoder_decoder(family, model, layers)
    if model.head.mtp_layers:
        config["num_nextn_predict_layers"] = model.head.mtp_layers
    return config


def _context(family: Family, model: ModelSpec) -> int:
    """The length of the positions' table where there is one, else the training length."""
    learned = model.embedding.learned_positions
    if family.rotary != "learned" or not learned:
        return model.seq_len
    return learned - (2 if family.model.startswith("OPT") else 0)


def _attention(family: Family, model: ModelSpec, spec: AttentionSpec, layers: list[LayerSpec]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if family.latent:
        rope = spec.rope_head_dim
        found |= {"q_lora_rank": spec.q_lora_rank or None, "kv_lora_rank": spec.kv_lora_rank, "qk_rope_head_dim": rope,
                  "qk_nope_head_dim": spec.head_dim - rope, "v_head_dim": spec.value_head_dim}  # fmt: skip
    elif family.rotary == "rope":
        found["head_dim"] = spec.head_dim
        turning = next((a.rope_head_dim for layer in layers if (a := layer.attention) and a.rope_head_dim), 0)
        if turning != spec.head_dim or "partial_rotary_factor" in family.defaults:
            found["partial_rotary_factor"] = turning / spec.head_dim
    if family.model.startswith("OPT"):
        found |= {"word_embed_proj_dim": model.embedding.width, "do_layer_norm_before": model.stacks[0].final_norm}
    if family.architecture == "encoder":
        found["type_vocab_size"] = model.embedding.token_types
    if family.architecture == "encoder" and not model.head.pooler:
        found["architectures"] = ["BertForMaskedLM"]
    return found | _windows(family, layers)


def _windows(family: Family, layers: list[LayerSpec]) -> dict[str, Any]:
    specs = [layer.attention for layer in layers if layer.attention]
    if family.windows == "chunks":
        return {"attention_chunk_size": max(spec.chunk for spec in specs),
                "no_rope_layers": [int(spec.rope_head_dim > 0) for spec in specs]}  # fmt: skip
    window = max((spec.window for spec in specs), default=0)
    if not family.windows:
        return {}
    found: dict[str, Any] = {"sliding_window": window or None}
    if "use_sliding_window" in family.defaults:
        found["use_sliding_window"] = bool(window)
    if window and (family.windows in ("types", "from")):
        found["layer_types"] = ["sliding_attention" if spec.window else "full_attention" for spec in specs]
    return found


def _experts(family: Family, layers: list[LayerSpec]) -> dict[str, Any]:
    places = [index for index, layer in enumerate(layers) if layer.experts]
    spec = next(layer.experts for layer in layers if layer.experts)
    dense = next((layer.feed_forward for layer in layers if layer.feed_forward), None)
    found: dict[str, Any] = {"num_experts_per_tok": spec.top_k}
    if family.experts in ("mixtral", "gpt-oss", "llama4"):
        found |= {"num_local_experts": spec.count, "intermediate_size": spec.hidden}
    if family.experts == "llama4":
        found |= {"moe_layers": places, "intermediate_size_mlp": dense.hidden if dense else 2 * spec.hidden}
    if family.experts == "qwen":
        apart = [index for index in range(len(layers)) if index not in places]
        found |= {"num_experts": spec.count, "moe_intermediate_size": spec.hidden, "mlp_only_layers": apart,
                  "decoder_sparse_step": 1}  # fmt: skip
        if "shared_expert_intermediate_size" in family.defaults:
            found["shared_expert_intermediate_size"] = spec.shared_hidden
    if family.experts == "deepseek":
        found |= {"n_routed_experts": spec.count, "moe_intermediate_size": spec.hidden,
                  "first_k_dense_replace": places[0],
                  "n_shared_experts": spec.shared_hidden // spec.hidden}  # fmt: skip
    return found


def _encoder_decoder(family: Family, model: ModelSpec, layers: list[LayerSpec]) -> dict[str, Any]:
    attention = layers[0].attention
    dense = next((layer.feed_forward for layer in layers if layer.feed_forward), None)
    decoder = _layers(model.stacks[-1].runs)
    found: dict[str, Any] = {"num_decoder_layers": len(decoder)}
    if attention is not None:
        found |= {"d_kv": attention.head_dim, "relative_attention_num_buckets": attention.relative_bias_buckets}
    if family.experts:
        spec = next(layer.experts for layer in layers if layer.experts)
        sparse = [sum(layer.experts is not None for layer in stack) for stack in (layers, decoder)]
        return found | {"num_experts": spec.count, "num_sparse_encoder_layers": sparse[0],
                        "num_sparse_decoder_layers": sparse[1]}  # fmt: skip
    if dense is not None:
        found["feed_forward_proj"] = f"gated-{dense.activation}" if dense.gated else dense.activation
        found.pop("dense_act_fn", None)
    return found
