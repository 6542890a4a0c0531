"""DeepSpeed's configuration, JSON as `deepspeed/runtime/config.py` of deepspeedai/DeepSpeed@edaa722 reads it."""

from __future__ import annotations

import json
from typing import Any

from simulator.errors import Complaints
from simulator.io.imported import Imported, refuse_unwritten
from simulator.io.said import Said, said_in_json
from simulator.spec.model import ModelSpec
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy

VERSION = "DeepSpeed @ edaa722"
PRECISIONS = ("fp32", "fp16", "bf16")
_IN_MODEL = ("pp", "ep", "etp")
_WRITTEN = (
    *_IN_MODEL, "recompute", "recompute_layers", "recompute_modules", "tp", "dp", "cp", "micro_batch", "zero",
    "shard_group", "context_kind", "overlap_grad_reduce", "overlap_param_gather", "overlap_tp", "overlap_moe",
    "offload", "global_batch", "seq_len", "target_seq_len", "precision", "optimizer", "sequence_parallel",
    "reshard_after_forward",
)  # fmt: skip
_COSTLY = {
    "zero_optimization.zero_quantized_weights": "quantised gathers are not modelled.",
    "zero_optimization.zero_quantized_gradients": "quantised reductions are not modelled.",
    "zero_optimization.mics_shard_size": "MiCS is not modelled; shard_group is its nearest.",
    "activation_checkpointing.partition_activations": "checkpointed activations spread over tp are not modelled.",
    "activation_checkpointing.cpu_checkpointing": "checkpointed activations in host memory are not modelled here.",
    "communication_data_type": "the dtype on the wire is the framework profile's.",
    "data_types.grad_accum_dtype": "the dtype of accumulated gradients is the framework profile's.",
    "curriculum_learning.enabled": "the sequence length grows over the run; say one length.",
}  # fmt: skip
_OPTIMIZERS = {"Adam": "adam", "AdamW": "adamw", "Lamb": "lamb", "SGD": "sgd"}
_NAMES = {word: name for name, word in _OPTIMIZERS.items()}


def dump(strategy: Strategy, run: Run, model: ModelSpec) -> str:
    """The configuration; its first key names the version (JSON has no comments).

    Pipeline and expert degrees and recomputation are set in DeepSpeed's model code, so they are refused here.
    """
    del model
    _check(strategy, run)
    zero: dict[str, Any] = {"stage": strategy.zero}
    if strategy.overlap_grad_reduce is not None:
        zero["overlap_comm"] = strategy.overlap_grad_reduce
    if strategy.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if strategy.offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    if strategy.shard_group:
        zero["zero_hpz_partition_size"] = strategy.shard_group
    document: dict[str, Any] = {
        "_version": VERSION,
        "train_batch_size": run.global_batch,
        "train_micro_batch_size_per_gpu": strategy.micro_batch,
        "gradient_accumulation_steps": run.global_batch // (strategy.dp * strategy.micro_batch),
        "zero_optimization": zero,
        "optimizer": {"type": _NAMES[run.optimizer]},
    }
    if strategy.tp > 1:
        document["tensor_parallel"] = {"autotp_size": strategy.tp}
    if strategy.cp > 1:
        document["sequence_parallel_size"] = strategy.cp
    if run.precision != "fp32":
        document[run.precision] = {"enabled": True}
    return json.dumps(document, indent=2) + "\n"


def _check(strategy: Strategy, run: Run) -> None:
    broken = Complaints()
    refuse_unwritten(broken, run, strategy, target="DeepSpeed's file", written=_WRITTEN)
    for name in _IN_MODEL:
        value = getattr(strategy, name)
        message = f"{name}({value}): DeepSpeed sets that in the model's code, not in this file."
        broken.require(value == 1, message, where=name)
    broken.require(strategy.recompute == "none", f"recompute = {strategy.recompute}: DeepSpeed checkpoints activations "
                   "where the model's code calls it, not by this file.", where="recompute")  # fmt: skip
    ulysses = strategy.cp == 1 or strategy.context_kind == "ulysses"
    broken.require(ulysses, "DeepSpeed's sequence parallelism is ulysses.", where="context_kind")
    broken.require(not strategy.shard_group or strategy.zero == 3, "a shard group (hpZ) divides the parameters of "
                   f"zero = 3, not {strategy.zero}.", where="shard_group")  # fmt: skip
    broken.require(run.precision in PRECISIONS, f"{run.precision} is not written. Choose from "
                   f"{', '.join(PRECISIONS)}.", where="precision")  # fmt: skip
    broken.require(run.optimizer in _NAMES, f"{run.optimizer} is no optimizer of DeepSpeed's file. Choose from "
                   f"{', '.join(_NAMES)}.", where="optimizer")  # fmt: skip
    broken.require(strategy.tp == 1 or not strategy.sequence_parallel, "AutoTP keeps norms whole on every rank.",
                   where="sequence_parallel", hint="Say --no-sequence-parallel.")  # fmt: skip
    broken.require(strategy.reshard_after_forward, "DeepSpeed frees gathered parameters after the forward pass.",
                   where="reshard_after_forward")  # fmt: skip
    broken.raise_if_any()


def load(text: str, *, path: str = "ds_config.json", devices: int = 0) -> Imported:
    """The strategy and the run that a configuration says; `devices` where it says only two of its three batch sizes.

    Raises InputError with every setting that cannot be read, contradicts another or changes the cost unread.
    """
    said = said_in_json(text, path)
    zero = said.count("zero_optimization.stage", 0, low=0)
    if zero > 3:
        said.bad("zero_optimization.stage", f"{zero} is no stage: 0, 1, 2 or 3.")
    tp, cp = said.count("tensor_parallel.autotp_size", 1, low=0) or 1, said.count("sequence_parallel_size", 1)
    group = said.count("zero_optimization.zero_hpz_partition_size", 1, low=0)
    batch, micro, dp = _batches(said, devices, tp * cp)
    strategy = Strategy(
        dp=dp, micro_batch=micro, zero=zero, cp=cp, tp=tp, sequence_parallel=tp == 1,
        context_kind="ulysses" if cp > 1 else "ring", shard_group=group if group > 1 else 0,
        # ZeRO-3 overlaps where the file does not say (runtime/zero/config.py overlap_comm_valid).
        overlap_grad_reduce=said.truth("zero_optimization.overlap_comm", zero == 3),
        offload=_offload(said),
    )  # fmt: skip
    optimizer = said.choice("optimizer.type", _OPTIMIZERS, "")
    run: dict[str, Any] = {"global_batch": batch, "framework": "deepspeed", "precision": _precision(said)}
    notes = said.finish(_COSTLY, silent=lambda key: key.startswith("_"))
    if optimizer:
        run["optimizer"] = optimizer
    else:
        notes.insert(0, "the optimizer is not said: the framework profile's default counts.")
    notes.append("a sequence length is not in DeepSpeed's file: the model's counts.")
    if group > 1:
        notes.append("zero_hpz_partition_size is read as a shard group; hpZ spreads optimizer states over all ranks.")
    return Imported(strategy=strategy, run=run, notes=tuple(notes))


def _batches(said: Said, devices: int, ranks: int) -> tuple[int, int, int]:
    """Sequences per step, sequences per micro-batch and replica, and replicas (each 1 where there is a problem)."""
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    before = len(said.broken.problems)
    batch, micro, steps = (said.count(name) for name in names)
    if len(said.broken.problems) > before:
        return 1, 1, 1
    dp, rest = divmod(devices, ranks)
    if devices and rest:
        said.broken.add(f"tp * cp = {ranks} does not divide {devices} devices.", where="--devices")
        return 1, 1, 1
    known = {**dict(zip(names, (batch, micro, steps), strict=True)), "the number of replicas": dp}
    missing = [name for name, value in known.items() if not value]
    if missing == ["the number of replicas"] and batch % (micro * steps) == 0:
        dp = batch // (micro * steps)
    elif missing == [names[0]]:
        batch = micro * steps * dp
    elif missing == [names[1]]:
        micro = batch // (steps * dp)
    elif missing == [names[2]]:
        steps = batch // (micro * dp)
    elif len(missing) > 1:
        said.broken.add(f"{', '.join(missing)} are not said; three of the four are needed.",
                        hint="" if devices else "--devices says the replicas.")  # fmt: skip
        return 1, 1, 1
    if not dp or batch != micro * steps * dp:
        shown = f"{micro} * {steps}" + (f" * {dp} replicas = {micro * steps * dp}" if dp else "")
        said.bad(names[0], f"{batch} is not {'' if dp else 'a multiple of '}{shown}.")
        return 1, 1, 1
    return batch, micro, dp


def _offload(said: Said) -> str:
    """What rests in host memory; on an NVMe drive nothing is modelled."""
    keys = {name: f"zero_optimization.offload_{name}.device" for name in ("optimizer", "param")}
    on = {name: said.choice(key, {"none": False, "cpu": True}, False) for name, key in keys.items()}
    if on["param"] and not on["optimizer"]:
        said.bad(keys["param"], "parameters in host memory without the optimizer's states are not modelled.")
    return "parameters" if on["param"] else "optimizer" if on["optimizer"] else "none"


def _precision(said: Said) -> str:
    on = [name for name in ("bf16", "fp16") if said.truth(f"{name}.enabled")]
    if len(on) > 1:
        said.bad("fp16.enabled", "contradicts bf16.enabled.")
    return on[0] if on else "fp32"
