"""Which layers of a config.json look how far, and which are mixtures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.io.hf_config import Config


def windows(config: Config, layers: int) -> dict[str, Any]:
    """Local attention: the window or chunk, and which layers have it."""
    family, types = config.family, config.listed("layer_types")
    if family.windows == "chunks":
        return _chunks(config, layers)
    on = config.said.truth("use_sliding_window", bool(family.defaults.get("use_sliding_window", True)))
    first = config.said.count("max_window_layers", 28, low=0)
    config.said.get("sliding_window")
    window = config.count("sliding_window", 0) if on else 0
    if not window:
        return {}
    if types is None and family.period:
        period = config.said.count("sliding_window_pattern", family.period)
        types = (["sliding_attention"] * (period - 1) + ["full_attention"]) * layers
        types = types[:layers]
    elif types is None and family.windows == "from":
        types = ["full_attention"] * min(first, layers) + ["sliding_attention"] * max(layers - first, 0)
    pattern = _pattern(config, types, layers)
    return {} if types is not None and "sliding_attention" not in types else {"window": window, **pattern}


def _chunks(config: Config, layers: int) -> dict[str, Any]:
    """Llama 4: layers without rotary embedding attend to everything, the others in chunks."""
    step = config.count("no_rope_layer_interval", 4)
    rotary = config.listed("no_rope_layers") or [int((index + 1) % step != 0) for index in range(layers)]
    chunk = config.count("attention_chunk_size", 0)
    types = ["sliding_attention" if turns else "full_attention" for turns in rotary]
    written = config.listed("layer_types")
    if written is not None and [kind == "chunked_attention" for kind in written] != [bool(turns) for turns in rotary]:
        config.said.bad("layer_types", "differs from no_rope_layers: one place for both is modelled.")
    if not chunk or "sliding_attention" not in types:
        config.said.bad("attention_chunk_size", "a Llama 4 without chunks is not modelled.")
        return {}
    found = {"chunk": chunk, **_pattern(config, types, layers)}
    return found | ({"rope_when_full": False} if "pattern" in found else {})


def _pattern(config: Config, types: Any, layers: int) -> dict[str, Any]:
    """One period of the kinds of layers; nothing where every layer is local."""
    if types is None:
        return {}
    known = {"sliding_attention": "local", "chunked_attention": "local", "full_attention": "full"}
    if not isinstance(types, list) or len(types) != layers or not {str(kind) for kind in types} <= set(known):
        config.said.bad("layer_types", f"must name {layers} layers as sliding_attention or full_attention.")
        return {}
    kinds = [known[kind] for kind in types]
    return {"pattern": kinds[: _period(kinds)]} if "full" in kinds else {}


def _period(kinds: list[str]) -> int:
    """The least p with kinds[i] = kinds[i % p] throughout: the length less its longest border (Knuth et al. 1977)."""
    border = [0]
    for kind in kinds[1:]:
        length = border[-1]
        while length and kind != kinds[length]:
            length = border[length - 1]
        border.append(length + (kind == kinds[length]))
    return len(kinds) - border[-1] if kinds else 1


def add_experts(config: Config, tables: dict[str, dict[str, Any]]) -> None:
    """The mixture, and which layers have it; a dense feed-forward stays only where some layer has it."""
    readers = {"mixtral": _mixtral, "qwen": _qwen, "deepseek": _deepseek, "gpt-oss": _mixtral, "llama4": _llama4,
               "switch": _switch}  # fmt: skip
    dense = tables["feed_forward"]
    found = {name: dense[name] for name in ("activation", "gated")} | readers[config.family.experts](config, dense)
    layers = tables["dims"].get("layers", 0) or tables["dims"]["encoder_layers"]
    where = {name: found[name] for name in ("every", "first", "layers") if name in found}
    if where.get("layers") == [] or where.get("first", where.get("every", 1) - 1) >= layers or not found["count"]:
        return
    tables["experts"] = found
    if config.family.experts == "gpt-oss":
        found |= {"bias": True, "clamped": True, "router_bias": True}
    if config.family.experts == "llama4":
        dense["hidden"] = config.count("intermediate_size_mlp", 16384)
    if not where:
        tables["feed_forward"] = {}


def _mixtral(config: Config, dense: Mapping[str, Any]) -> dict[str, Any]:
    return {"count": config.count("num_local_experts", 8), "top_k": config.count("num_experts_per_tok", 2),
            "hidden": dense["hidden"]}  # fmt: skip


def _qwen(config: Config, dense: Mapping[str, Any]) -> dict[str, Any]:
    del dense
    step = config.count("decoder_sparse_step", 1)
    found: dict[str, Any] = {
        "count": config.count("num_experts", 0, low=0), "top_k": config.count("num_experts_per_tok", 1),
        "hidden": config.count("moe_intermediate_size", 1),
    }  # fmt: skip
    if apart := config.listed("mlp_only_layers") or []:
        layers = config.size("dims.layers")
        sparse = [index for index in range(layers) if index not in apart and (index + 1) % step == 0]
        found |= {} if len(sparse) == layers else {"layers": sparse}
    elif step > 1:
        found["every"] = step
    if shared := config.count("shared_expert_intermediate_size", 0, low=0):
        found |= {"shared": 1, "shared_hidden": shared, "shared_gate": True}
    return found


def _deepseek(config: Config, dense: Mapping[str, Any]) -> dict[str, Any]:
    del dense
    if config.said.count("moe_layer_freq", 1) != 1:
        config.said.bad("moe_layer_freq", "experts in every layer after the first dense ones are modelled, not fewer.")
    found = {"count": config.count("n_routed_experts", 0, low=0), "top_k": config.count("num_experts_per_tok", 1),
             "hidden": config.count("moe_intermediate_size", 1)}  # fmt: skip
    if first := config.count("first_k_dense_replace", 0, low=0):
        found["first"] = first
    if shared := config.count("n_shared_experts", 0, low=0):
        found["shared"] = shared
    return found


def _llama4(config: Config, dense: Mapping[str, Any]) -> dict[str, Any]:
    found = {**_mixtral(config, dense), "shared": 1}
    step = config.count("interleave_moe_layer_step", 1)
    listed = config.listed("moe_layers")
    if listed is not None and listed != list(range(step - 1, config.size("dims.layers"), step)):
        return {**found, "layers": listed}
    return {**found, "every": step} if step > 1 else found


def _switch(config: Config, dense: Mapping[str, Any]) -> dict[str, Any]:
    """Sparse at every step-th layer from layer 1 (modeling_switch_transformers.py: i % sparse_step == 1)."""
    encoder, decoder = config.size("dims.layers"), config.count("num_decoder_layers", config.size("dims.layers"))
    sparse = [config.count(f"num_sparse_{stack}_layers", 1, low=0) for stack in ("encoder", "decoder")]
    steps = {layers // count for layers, count in zip((encoder, decoder), sparse, strict=True) if count}
    if len(steps) != 1 or 0 in sparse:
        config.said.bad("num_sparse_encoder_layers", "the same share of sparse layers in both stacks is modelled.")
        return {"count": 1, "top_k": 1, "hidden": dense["hidden"]}
    step = steps.pop()
    where = {} if step == 1 else {"every": step} | ({} if step == 2 else {"first": 1})
    if config.truth("router_bias"):
        config.said.bad("router_bias", "of a Switch Transformer is not modelled.")
    return {"count": config.count("num_experts", 8), "top_k": 1, "hidden": dense["hidden"], **where}
