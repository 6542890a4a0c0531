"""Hugging Face's config.json as a model file of ours. transformers is not needed, and no code of a model is run.

A key that the file does not have takes transformers' default (`hf_families`), and a note says so; what this project
cannot express (a mixture beside a vision tower, an activation) is refused with its line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.errors import InputError, Problem, did_you_mean
from simulator.io.formats import settings_toml
from simulator.io.hf_config import Config, config_of
from simulator.io.hf_families import ACTIVATIONS, VERSION
from simulator.io.hf_layers import add_experts, windows
from simulator.io.said import Said, said_in_json
from simulator.spec.model import ModelSpec
from simulator.spec.model_file import read_model
from simulator.spec.reading import parse_document

_COSTLY = {
    "add_cross_attention": "cross-attention in a decoder alone is not modelled.",
    "is_decoder": "a BERT that decodes is not modelled.",
    "layerdrop": "layers that are skipped at random are not modelled.",
    "alternating_attention": "attention that alternates in another way is not modelled.",
}
_SOURCE = "config.json"
_T5_TARGET = 114
"""Decoder tokens that span corruption leaves of 512 (as in our T5 files)."""


def load(text: str, *, path: str = "config.json") -> tuple[str, tuple[str, ...]]:
    """A model file (TOML) of what a config.json describes, and what was taken from transformers' defaults, in words.

    Raises InputError with every key that is missing, wrong or not modelled.
    """
    said = said_in_json(text, path)
    config = config_of(said)
    tables, dropout = _tables(config), _dropout(config)
    silent = {"torch_dtype", "dtype", "transformers_version", "use_cache", "_name_or_path", "initializer_range"}
    notes = said.finish(_costly(said), silent=lambda key: key in silent or key.endswith(("_id", "_eps", "_epsilon")))
    if config.taken:
        shown = ", ".join(f"{key} = {value}" for key, value in config.taken.items())
        notes.insert(0, f"not said, taken from {config.family.model} of transformers {VERSION}: {shown}.")
    written = model_toml(f"{said.get('model_type')}, imported", tables, dropout)
    _spec(written, path)
    return written, tuple(notes)


def model_of(text: str, *, path: str = "config.json") -> ModelSpec:
    """The model that a config.json describes. Raises InputError as `load` does."""
    return _spec(load(text, path=path)[0], path)


def _spec(written: str, path: str) -> ModelSpec:
    """The model of a file that an import wrote; contradictions across sizes are the config.json's."""
    try:
        return read_model(parse_document(written, path))
    except InputError as error:
        raise InputError([Problem(problem.message, path, problem.hint) for problem in error.problems]) from None


def _costly(said: Said) -> dict[str, str]:
    return {key: reason for key, reason in _COSTLY.items() if key in said.entries and said.entries[key].value}


def _tables(config: Config) -> dict[str, dict[str, Any]]:
    family = config.family
    hidden, heads = config.size("dims.hidden"), config.size("attention.heads")
    tables: dict[str, dict[str, Any]] = {
        "dims": _dims(config, hidden), "norm": _norm(config), "attention": _attention(config, hidden, heads),
        "feed_forward": _feed_forward(config, hidden), "experts": {}, "embedding": _embedding(config, hidden),
        "head": _head(config),
    }  # fmt: skip
    if family.experts:
        add_experts(config, tables)
    if family.windows:
        tables["attention"] |= windows(config, tables["dims"].get("layers", 0))
    return {name: table for name, table in tables.items() if table}


def _dropout(config: Config) -> float:
    """The dropout of residuals; that of attention is taken as the same, as our models have one."""
    keys = config.family.dropouts or ("attention_dropout",)
    found = [float(config.said.number(key) or 0.0) if key in config.said.entries else float(config.value(key) or 0.0)
             for key in keys]  # fmt: skip
    for key, share in zip(keys, found, strict=True):
        if not 0 <= share < 1:
            config.said.bad(key, f"{share:g} is no probability of dropping.")
            return 0.0
    if found[0] and not config.family.dropouts:
        config.said.bad(keys[0], f"{found[0]:g}: dropout of attention alone is not modelled.")
    if found[-1] != found[0]:
        config.taken[keys[-1]] = f"{found[0]:g}, that of {keys[0]}"
    return found[0]


def _dims(config: Config, hidden: int) -> dict[str, Any]:
    family, layers = config.family, config.size("dims.layers")
    found: dict[str, Any] = {"architecture": family.architecture, "hidden": hidden}
    if family.architecture != "encoder-decoder":
        return {**found, "layers": layers, "seq_len": config.size("dims.seq_len")}
    decoder = config.count("num_decoder_layers", layers)
    length = config.size("dims.seq_len")
    config.taken["target_seq_len"] = _T5_TARGET
    return {**found, "encoder_layers": layers, "decoder_layers": decoder, "seq_len": length,
            "target_seq_len": _T5_TARGET}  # fmt: skip


def _norm(config: Config) -> dict[str, Any]:
    family = config.family
    found: dict[str, Any] = {"kind": family.norm}
    if family.norms_per_layer:
        found["per_layer"] = family.norms_per_layer
    # Post-norm: the last layer ends with its own norm.
    before = config.said.truth("do_layer_norm_before", True)
    if family.architecture == "encoder" or not before or config.said.truth("_remove_final_layer_norm"):
        found["final"] = False
    return found


def _attention(config: Config, hidden: int, heads: int) -> dict[str, Any]:
    family = config.family
    found: dict[str, Any] = {"heads": heads}
    kv_heads = config.count(family.keys["kv_heads"], heads)
    if kv_heads != heads and not family.latent:
        found["kv_heads"] = kv_heads
    found |= _latent(config) if family.latent else {"head_dim": _head_dim(config, hidden, heads)}
    found |= {name: True for name, key in (("qkv_bias", family.qkv_bias), ("out_bias", family.out_bias))
              if config.truth(key)}  # fmt: skip
    found |= {name: True for name in ("qk_norm", "sinks") if getattr(family, name)}
    if family.rotary == "rope" and not family.latent:
        found["rope_head_dim"] = _rotary_dims(config, found["head_dim"])
    if family.architecture == "encoder-decoder":
        buckets = config.count("relative_attention_num_buckets", 32)
        found |= {"relative_bias": "per-stack", "relative_bias_buckets": buckets}
    return found


def _head_dim(config: Config, hidden: int, heads: int) -> int:
    key = "d_kv" if config.family.architecture == "encoder-decoder" else "head_dim"
    said = config.count(key, 0)
    if said:
        return said
    if hidden % heads:
        config.said.broken.add(f"{key} is not said, and the hidden size({hidden}) is no multiple of {heads} heads.")
        return 1
    if config.family.rotary == "rope":
        config.taken["head_dim"] = f"hidden size / heads = {hidden // heads}"
    return hidden // heads


def _rotary_dims(config: Config, head_dim: int) -> int:
    names = ("partial_rotary_factor", "rope_parameters.partial_rotary_factor")
    said = [(name, share) for name in names if (share := config.said.number(name)) is not None]
    name, share = said[0] if said else (names[0], float(config.value(names[0]) or 1.0))
    if not 0 < share <= 1:
        config.said.bad(name, f"{share:g} is no share of a head.")
        return head_dim
    return int(head_dim * share)


def _latent(config: Config) -> dict[str, Any]:
    rope, nope = config.count("qk_rope_head_dim", 64), config.count("qk_nope_head_dim", 128)
    found = {"kv_lora_rank": config.count("kv_lora_rank", 512), "head_dim": nope + rope, "rope_head_dim": rope,
             "value_head_dim": config.count("v_head_dim", nope)}  # fmt: skip
    if rank := config.count("q_lora_rank", 0):
        found["q_lora_rank"] = rank
    if config.truth("attention_bias"):
        config.said.bad("attention_bias", "biases of latent attention are not modelled.")
    return found


def _activation(config: Config) -> str:
    key = config.family.keys["activation"]
    word = str(config.value(key))
    if word not in ACTIVATIONS:
        config.said.bad(key, f"{word[:40]!a} is not modelled.", did_you_mean(word, ACTIVATIONS))
    return ACTIVATIONS.get(word, "gelu")


def _feed_forward(config: Config, hidden: int) -> dict[str, Any]:
    family = config.family
    key = family.keys["feed_forward.hidden"]
    inner = config.count(key, 0) if key else 4 * hidden
    if not inner:
        inner = 4 * hidden
        config.taken[key] = f"4 * hidden size = {inner}"
    gated, activation = family.gated, ""
    if family.architecture == "encoder-decoder" and not family.experts:
        kind, _, word = str(config.value("feed_forward_proj")).rpartition("-")
        gated, activation = kind == "gated", ACTIVATIONS.get(word, "")
        if not activation or kind not in ("", "gated"):
            config.said.bad("feed_forward_proj", "is not modelled.", "As in relu or gated-gelu.")
    found: dict[str, Any] = {"hidden": inner, "activation": activation or _activation(config), "gated": gated}
    if config.truth(family.mlp_bias):
        found["bias"] = True
    return found


def _embedding(config: Config, hidden: int) -> dict[str, Any]:
    family = config.family
    found: dict[str, Any] = {"vocab": config.size("embedding.vocab")}
    width = config.said.count("word_embed_proj_dim", hidden)
    if width != hidden:
        found["width"] = width
    if family.rotary == "learned":
        # OPT keeps two positions for padding (modeling_opt.py OPTLearnedPositionalEmbedding: offset = 2).
        found["learned_positions"] = config.size("dims.seq_len") + (2 if family.model.startswith("OPT") else 0)
    if family.architecture == "encoder":
        found |= {"token_types": config.count("type_vocab_size", 2), "norm": True}
    if family.model.startswith("Bloom"):
        found["norm"] = True
    return found


def _head(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {"tied": config.truth(config.family.keys["tied"])}
    if config.family.architecture == "encoder":
        found |= {"bias": True, "transform": True}
        named = config.said.get("architectures") or [config.family.model]
        if "ForPreTraining" in str(named):
            found |= {"pooler": True, "pooler_classes": 2}
        elif "MaskedLM" not in str(named):
            config.said.bad("architectures", f"{str(named)[:60]} is not modelled.",
                            "BertForPreTraining and BertForMaskedLM are.")  # fmt: skip
    else:
        config.said.get("architectures")
    layers = config.said.count("num_nextn_predict_layers", 0, low=0) or config.said.count("num_mtp_layers", 0, low=0)
    return found | ({"mtp_layers": layers} if layers else {})


def model_toml(title: str, tables: Mapping[str, Mapping[str, Any]], dropout: float = 0.0) -> str:
    """A model file of some tables, with its sources."""
    lines = [settings_toml({"title": title, "family": "Imported", "dropout": dropout})]
    for name, table in tables.items():
        lines += [f"[{name}]", settings_toml(table)]
    lines += ["[published]", 'explanation = "Imported: no published count was read."', "", "[sources]"]
    cited = [name for name in tables if name not in ("norm", "head")]
    return "\n".join(lines) + "\n" + settings_toml(dict.fromkeys(cited, _SOURCE))
