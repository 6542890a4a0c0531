"""Megatron-LM flags, as `megatron/training/arguments.py` of NVIDIA/Megatron-LM@d98e8a6 reads them."""

from __future__ import annotations

from typing import Any

from simulator.io import mcore
from simulator.io.imported import Imported
from simulator.io.said import Said, said_in_flags
from simulator.spec.model import ModelSpec
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy

VERSION = "Megatron-LM @ d98e8a6"
WRITTEN = ("fp32", "fp16", "bf16")
"""Precisions that this export writes."""
_SPELT = {
    "virtual_pipeline_model_parallel_size": "num-virtual-stages-per-pipeline-rank",
    "microbatch_group_size_per_vp_stage": "microbatch-group-size-per-virtual-pipeline-stage",
    "num_layers_in_first_pipeline_stage": "decoder-first-pipeline-num-layers",
    "num_layers_in_last_pipeline_stage": "decoder-last-pipeline-num-layers",
    "num_moe_experts": "num-experts",
}
"""Flags that are not their field's name with dashes."""
_LAYERS_PER_VP = "num-layers-per-virtual-pipeline-stage"
_MODEL = {
    "num-layers", "num-experts", "hidden-size", "ffn-hidden-size", "num-attention-heads", "group-query-attention",
    "num-query-groups", "kv-channels", "max-position-embeddings", "position-embedding-type", "swiglu", "squared-relu",
    "disable-bias-linear", "add-qkv-bias", "untie-embeddings-and-output-weights", "normalization", "vocab-size",
    "make-vocab-size-divisible-by", "multi-latent-attention", "q-lora-rank", "kv-lora-rank", "qk-head-dim",
    "qk-pos-emb-head-dim", "v-head-dim", "qk-layernorm", "moe-router-topk", "moe-ffn-hidden-size", "moe-layer-freq",
    "moe-shared-expert-intermediate-size", "mtp-num-layers", "rotary-base", "rotary-percent", "window-size",
}  # fmt: skip
"""Flags that describe the model, which a strategy does not."""


class _Flags(dict[str, str]):
    """Every field name's flag: its name with dashes where it is not spelt another way."""

    def __missing__(self, name: str) -> str:
        return name.replace("_", "-")


KEYS = _Flags(_SPELT)


def dump(strategy: Strategy, run: Run, model: ModelSpec) -> str:
    """The flags of a strategy, one a line, after a line that names the version.

    Raises InputError for what Megatron-LM does not run or this export does not say, with every reason.
    """
    mcore.check(strategy, run, target="Megatron-LM", precisions=WRITTEN)
    lines = [f"# {VERSION}"]
    for name, value in mcore.settings_of(strategy, run, model).items():
        words = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        if name == "pipeline_model_parallel_layout":
            words = [f"'{value}'"]  # A shell takes the stage bars for pipes.
        lines.append(" ".join([f"--{KEYS[name]}", *([] if value is True else words)]))
    lines += [f"--{run.precision}"] if run.precision != "fp32" else []
    if run.attention:
        lines.append(f"--attention-backend {'flash' if run.attention == 'fused' else 'unfused'}")
    return "\n".join(lines) + "\n"


def load(text: str, *, path: str = "flags", devices: int, layers: int = 0) -> Imported:
    """The strategy and the run that some flags say, on a number of devices; `layers` where --num-layers is not said.

    Raises InputError with every flag that cannot be read, contradicts another or changes the cost unread.
    """
    said = said_in_flags(text, path)
    strategy = mcore.strategy_of(said, KEYS, devices=devices, layers=layers, vp=_virtual_stages(said, layers))
    run = mcore.run_of(said, KEYS, "megatron-core") | _run(said)
    costly = {name.replace("_", "-"): reason for name, reason in mcore.COSTLY.items()}
    described = sorted(_MODEL & said.entries.keys())
    notes = said.finish(costly, silent=lambda key: key in _MODEL)
    if described:
        notes.insert(0, f"describe the model, which MODEL names: {', '.join(described)}.")
    return Imported(strategy=strategy, run=run, notes=tuple(notes))


def _virtual_stages(said: Said, layers: int) -> int:
    """Virtual stages by the number of layers in each; 0 where the flags do not say it so."""
    layers = said.count(KEYS["num_layers"], layers)
    per_stage, pp = said.count(_LAYERS_PER_VP, 0), said.count(KEYS["pipeline_model_parallel_size"], 1)
    if not per_stage:
        return 0
    vp, rest = divmod(layers, pp * per_stage)
    if rest or not vp:
        said.bad(_LAYERS_PER_VP, f"{layers or 'unknown'} layers are no multiple of pp({pp}) * {per_stage}.",
                 "" if layers else "--layers says the model's layers.")  # fmt: skip
    if KEYS["virtual_pipeline_model_parallel_size"] in said.entries:
        said.bad(_LAYERS_PER_VP, f"{KEYS['virtual_pipeline_model_parallel_size']} is said too.", "Keep one.")
    return vp


def _run(said: Said) -> dict[str, Any]:
    """Precision and attention by Megatron-LM's own flags; without one it trains in fp32."""
    plain = {"bf16": said.truth("bf16"), "fp16": said.truth("fp16")}
    if all(plain.values()):
        said.bad("fp16", "contradicts bf16.")
    precision = mcore.fp8_precision(said, "fp8-format", "fp8-recipe", "fp4-format")
    found: dict[str, Any] = {"precision": precision or next((name for name, on in plain.items() if on), "fp32")}
    fused = said.truth("use-flash-attn")
    backends = {"flash": "fused", "fused": "fused", "auto": "", "unfused": "unfused", "local": "unfused"}
    kind = said.choice("attention-backend", backends, "fused" if fused else "")
    return found | ({"attention": kind} if kind else {})
