"""DeepSpeed's configuration, JSON as `deepspeed/runtime/config.py` of deepspeedai/DeepSpeed@edaa722 reads it."""

from __future__ import annotations

import json
from typing import Any

from simulator.errors import Complaints, InputError
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy

VERSION = "DeepSpeed @ edaa722"


def dump(strategy: Strategy, run: Run) -> str:
    """The configuration; its first key names the version (JSON has no comments).

    Pipeline and expert degrees are set in DeepSpeed's model code, so they are refused here.
    """
    broken = Complaints()
    for name in ("pp", "ep", "etp"):
        value = getattr(strategy, name)
        message = f"{name}({value}): DeepSpeed sets that in the model's code, not in this file."
        broken.require(value == 1, message, where=name)
    ulysses = strategy.cp == 1 or strategy.context_kind == "ulysses"
    broken.require(ulysses, "DeepSpeed's sequence parallelism is ulysses.", where="context_kind")
    broken.raise_if_any()
    document: dict[str, Any] = {
        "_version": VERSION,
        "train_batch_size": run.global_batch,
        "train_micro_batch_size_per_gpu": strategy.micro_batch,
        "gradient_accumulation_steps": run.global_batch // (strategy.dp * strategy.micro_batch),
        "zero_optimization": {"stage": strategy.zero},
    }
    if strategy.overlap_grad_reduce is not None:
        document["zero_optimization"]["overlap_comm"] = strategy.overlap_grad_reduce
    if strategy.shard_group:
        document["zero_optimization"]["zero_hpz_partition_size"] = strategy.shard_group
    if strategy.tp > 1:
        document["tensor_parallel"] = {"autotp_size": strategy.tp}
    if strategy.cp > 1:
        document["sequence_parallel_size"] = strategy.cp
    if run.precision in ("bf16", "fp16"):
        document[run.precision] = {"enabled": True}
    return json.dumps(document, indent=2) + "\n"


def load(text: str) -> tuple[Strategy, dict[str, Any]]:
    """The strategy and the run's settings of a configuration. Raises InputError for JSON that says too little."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError([f"not JSON: {error}."]) from None
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    missing = [name for name in names if not isinstance(document.get(name), int)]
    if missing:
        raise InputError([f"{name} is missing or no whole number." for name in missing])
    batch, micro, steps = (int(document[name]) for name in names)
    if batch % (micro * steps):
        raise InputError([f"train_batch_size({batch}) is not a multiple of {micro} * {steps}."])
    zero = document.get("zero_optimization", {})
    cp = int(document.get("sequence_parallel_size", 1))
    strategy = Strategy(
        dp=batch // (micro * steps), micro_batch=micro, zero=int(zero.get("stage", 0)), cp=cp,
        tp=int(document.get("tensor_parallel", {}).get("autotp_size", 1)),
        context_kind="ulysses" if cp > 1 else "ring", shard_group=int(zero.get("zero_hpz_partition_size", 0)),
        overlap_grad_reduce=zero.get("overlap_comm"),
    )  # fmt: skip
    run: dict[str, Any] = {"global_batch": batch}
    for precision in ("bf16", "fp16"):
        if document.get(precision, {}).get("enabled"):
            run["precision"] = precision
    return strategy, run
