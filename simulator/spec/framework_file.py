"""Reads a framework profile (frameworks/*.toml) into a `Framework`. `frameworks/README.md` explains the keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from simulator.errors import did_you_mean
from simulator.spec.reading import Document, Fault, raise_faults, validated
from simulator.spec.run import OPTIMIZERS, PRECISIONS, Framework, Run
from simulator.spec.strategy import CONTEXT_KINDS, RECOMPUTE, SCHEDULES, Strategy

Dtype = Literal["fp32", "fp16", "bf16"]
Fraction = Annotated[float, Field(ge=0, le=1)]

_CHOICES: dict[str, tuple[str, ...]] = {
    "precision": PRECISIONS,
    "optimizer": OPTIMIZERS,
    "attention": ("fused", "unfused"),
    "recompute": RECOMPUTE,
    "schedule": SCHEDULES,
    "context_kind": CONTEXT_KINDS,
}
_OF_TABLES = {"vocab": 0, "micro_batches": 0, "selective_layers_fraction": 0.0, "sequence_bins": 0,
              "rest_on_last_stage": False}  # fmt: skip
"""Defaults of what only published tables leave open: the vocabulary, micro-batches per step, the share of layers
under selective recomputation, the bins that a loader sorts sequences into by length, how layers that do not divide
are dealt to stages."""


def _known_defaults() -> dict[str, type]:
    """What a profile may say for a run that says nothing, with the type of each: fields of Run and Strategy."""
    named = {field.name: field.default for kind in (Run, Strategy) for field in fields(kind)}
    types = {name: type(value) for name, value in {**named, **_OF_TABLES}.items()}
    optional = {"dropout": float, "capacity_factor": float, "global_batch": int}
    flags = {name: bool for name in types if name.startswith("overlap_")}
    return {**types, **optional, **flags}


_UNCITED = {"name", "title", "systems", "since", "defaults", "sources"}


class FrameworkFile(BaseModel):
    """A profile as its file says: the fields of `Framework`, each said and each cited."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    name: str
    title: str
    attention: Literal["fused", "unfused"]
    attention_kernel: Literal["library", "flash2", "flash1"] = "library"
    fused_attention_16_bit: bool = False
    fused_softmax: bool
    softmax_dtype: Literal["fp32", ""] = "fp32"
    copies_heads: bool = False
    separate_qkv: bool = False
    fused_bias_activation: bool
    fused_bias_dropout: bool
    fused_norm: bool
    fused_rope: bool
    fused_cross_entropy: bool
    parallel_cross_entropy: bool = True
    fused_optimizer: bool
    fused_gradient_accumulation: bool = True
    dropout: Fraction | None = None
    logits_dtype: Dtype
    gradient_dtype: Dtype
    gradient_reduce_dtype: Dtype
    keeps_fresh_gradients: bool = False
    keeps_stage_outputs: bool = False
    keeps_split_outputs: bool = False
    flat_gradients: bool = False
    stored_parameter_dtype: Literal["", "fp32", "fp16", "bf16"] = ""
    overlap_grad_reduce: bool
    overlap_param_gather: bool
    zero_whole_tensors: bool = False
    defers_gradient_scatter: bool = False
    sharded_copies: Literal["none", "flattened", "gradients", "both"] = "none"
    overlap_tp_grad: bool
    overlap_tp: bool
    overlap_moe: bool
    expert_dispatch: Literal["all-to-all", "deduplicated", "einsum"] = "all-to-all"
    capacity_per_choice: bool = True
    gates_in_activation: bool = False
    experts_pointwise: Literal["kernels", "tensor-ops", "epilogue"] = "kernels"
    pads_experts: bool = False
    activation_input_dtype: Literal["fp8", "e5m6", ""] = ""
    attention_output_dtype: Literal["fp8", "e5m6", ""] = ""
    narrow_attention: bool = False
    overlap_p2p: bool
    scatter_gather_p2p: bool = True
    logits_fraction: Annotated[float, Field(gt=0, le=1)]
    vocab_multiple: Annotated[int, Field(ge=1)]
    bucket_bytes: Annotated[float, Field(ge=0)]
    launch_s: Annotated[float, Field(ge=0)]
    cuda_graphs: bool
    graphs_experts: bool = False
    compiled: bool
    fuses_reductions: bool = True
    context_bytes: Annotated[float, Field(ge=0)]
    fragmentation_fraction: Annotated[float, Field(ge=0, lt=1)]
    systems: list[str] = []
    since: Annotated[int, Field(ge=0)] = 0
    defaults: dict[str, str | int | float | bool] = {}
    sources: dict[str, str]


def read_framework(document: Document) -> Framework:
    """The profile that a document describes. Raises InputError with every problem and its line."""
    file = validated(document, FrameworkFile)
    raise_faults(document, _faults(file, PurePath(document.path).stem))
    values = {name: getattr(file, name) for name in type(file).model_fields}
    return Framework(**{**values, "systems": tuple(file.systems)})


def _faults(file: FrameworkFile, stem: str) -> Iterator[Fault]:
    """What is wrong across the keys of a profile."""
    if file.name != stem:
        yield ("name",), f'"{file.name}" is not the name of its file, {stem}.', ""
    for index, pattern in enumerate(file.systems):
        try:
            re.compile(pattern)
        except re.error as error:
            yield ("systems", index), f"no regular expression: {error}.", ""
    for key in sorted(file.model_fields_set - _UNCITED - set(file.sources)):
        yield ("sources", key), "missing key: each statement names where it is from.", ""
    known = _known_defaults()
    for key, value in file.defaults.items():
        at = ("defaults", key)
        if key not in known:
            yield at, "unknown key.", did_you_mean(key, known)
        elif not _is_of(value, known[key]):
            yield at, f"must be of type {known[key].__name__}, got {value!r}.", ""
        elif key in _CHOICES and value not in _CHOICES[key]:
            yield at, f'"{value}" is not known.', did_you_mean(str(value), _CHOICES[key])


def _is_of(value: object, wanted: type) -> bool:
    if wanted is bool or isinstance(value, bool):
        return wanted is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if wanted is float else wanted)
