"""Megatron-Bridge (NeMo) configuration, as its ConfigContainer of NVIDIA-NeMo/Megatron-Bridge@067f987 takes it.

Written as the YAML file that its recipes merge over their own settings; read from that, from dotted overrides
("model.tensor_model_parallel_size=8"), one a line, as its command line takes them, or from a recipe's assignments in
Python ("cfg.model.tensor_model_parallel_size = 8").
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from simulator.io import mcore
from simulator.io.imported import Imported
from simulator.io.said import said_in_yaml
from simulator.spec.model import ModelSpec
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy

VERSION = "Megatron-Bridge @ 067f987"
RECIPES = {"bf16": "bf16_mixed", "fp16": "fp16_mixed", "mxfp8": "bf16_with_mxfp8_mixed",
           "nvfp4": "bf16_with_nvfp4_mixed"}  # fmt: skip
"""Precisions that this export writes, as recipes of src/megatron/bridge/training/mixed_precision.py."""
_PRECISIONS = {
    **{recipe: precision for precision, recipe in RECIPES.items()},
    "bf16_with_fp8_current_scaling_mixed": "fp8", "bf16_with_fp8_delayed_scaling_mixed": "fp8",
    "bf16_with_fp8_subchannel_scaling_mixed": "fp8", "nanov2_bf16_with_fp8_current_scaling_mixed": "fp8",
    "nemotron_h_bf16_with_fp8_current_scaling_mixed": "fp8",
}  # fmt: skip
_SECTIONS = {
    "train": ("micro_batch_size", "global_batch_size", "rampup_batch_size"),
    "ddp": ("use_distributed_optimizer", "overlap_grad_reduce", "overlap_param_gather", "use_megatron_fsdp",
            "data_parallel_sharding_strategy", "num_distributed_optimizer_instances"),
    "dist": ("use_tp_pp_dp_mapping", "use_torch_fsdp2"),
    "optimizer": ("optimizer", "optimizer_cpu_offload", "use_precision_aware_optimizer"),
}  # fmt: skip
_ORDER = ("model", "train", "dataset", "ddp", "dist", "optimizer")


class _Keys(dict[str, str]):
    """Every field name's dotted key; what stands in no other section is the model provider's."""

    def __missing__(self, name: str) -> str:
        return f"model.{name}"


KEYS = _Keys({name: f"{section}.{name}" for section, names in _SECTIONS.items() for name in names})


def dump(strategy: Strategy, run: Run, model: ModelSpec) -> str:
    """The configuration of a strategy as YAML, after a comment that names the version.

    Raises InputError for what Megatron-Core does not run or this export does not say, with every reason.
    """
    mcore.check(strategy, run, target="Megatron-Bridge", precisions=tuple(RECIPES))
    settings = {KEYS[name]: value for name, value in mcore.settings_of(strategy, run, model).items()}
    settings["dataset.seq_length"] = run.seq_len
    ordered = sorted(settings.items(), key=lambda pair: _ORDER.index(pair[0].partition(".")[0]))
    lines = [f"# {VERSION}"]
    for section, group in groupby(ordered, key=lambda pair: pair[0].partition(".")[0]):
        lines.append(f"{section}:")
        lines += [f"  {key.partition('.')[2]}: {_yaml(value)}" for key, value in group]
    lines.append(f"mixed_precision: {RECIPES[run.precision]}")
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(value)}]"
    return f'"{value}"' if isinstance(value, str) and not value.isidentifier() else str(value)


def load(text: str, *, path: str = "config.yaml", devices: int, layers: int = 0) -> Imported:
    """The strategy and the run that a configuration says, on a number of devices; `layers` where it says no number.

    Raises InputError with every setting that cannot be read, contradicts another or changes the cost unread.
    """
    said = said_in_yaml(text, path)
    strategy = mcore.strategy_of(said, KEYS, devices=devices, layers=layers)
    run = mcore.run_of(said, KEYS, "megatron-bridge")
    length = said.count("dataset.seq_length", 0)
    if length and run.setdefault("seq_len", length) != length:
        said.bad("dataset.seq_length", f"{length} differs from model.seq_length({run['seq_len']}).")
    run["precision"] = said.choice("mixed_precision", _PRECISIONS, "bf16")
    notes = said.finish({KEYS[name]: reason for name, reason in mcore.COSTLY.items()})
    if "mixed_precision" not in said.entries:
        notes.insert(0, "mixed_precision is not said: bf16, as most recipes have it.")
    return Imported(strategy=strategy, run=run, notes=tuple(notes))
