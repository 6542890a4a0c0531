"""Which framework profile a published row means, and what its notes say about options that have no column."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from simulator.spec.run import Framework
from simulator.spec.strategy import RECOMPUTE_MODULES
from simulator.validate.runs import PublishedRun

GENERATION_YEAR = (
    ("v100", 2021), ("a100-sxm-40gb", 2021), ("tpu-v2", 2019), ("tpu-v3", 2020), ("tpu-v4", 2022), ("a100", 2022),
    ("a800", 2023), ("tpu", 2024), ("h100", 2024), ("h800", 2024), ("h200", 2024), ("b200", 2025), ("b300", 2025),
)  # fmt: skip
"""Year of a run by its device, for a source without a date: when most runs on it were published."""

MODULE_WORDS = {
    "core_attn": "core_attn", "attn": "attention", "attention": "attention", "mlp": "mlp", "up_proj": "mla_up_proj",
    "mla_up_proj": "mla_up_proj", "act": "moe_act", "moe_act": "moe_act", "norm": "layernorm", "layernorm": "layernorm",
    "moe": "moe", "shared_expert": "shared_experts", "shared_experts": "shared_experts",
}  # fmt: skip
"""Words of published recompute lists for Megatron-Core's --recompute-modules."""

OFFLOADED = (
    ("parameter CPU offload", "parameters"), ("optimizer CPU offload|optimizer-state offload", "optimizer"),
    ("[Ff]ull CPU offload|Full Offload", "parameters"),
)  # fmt: skip
"""What rests in host memory, by phrases of a row's notes or table; the first that is there counts."""


@dataclass(frozen=True, slots=True)
class Noted:
    """What a row's notes change: fields of Run and of Strategy."""

    run: Mapping[str, object] = field(default_factory=dict)
    strategy: Mapping[str, object] = field(default_factory=dict)


_RUN_NOTES: tuple[tuple[str, str, object], ...] = (
    (r"LAMB optimizer", "optimizer", "lamb"),
    (r"8-bit Adam", "optimizer", "adam-bf16"),  # the nearest smaller states: the step reads and writes little of them
    (r"tokendrop", "capacity_factor", 1.0),
    (r"opt_type=adamw", "optimizer", "adamw"),
)
_STRATEGY_NOTES: tuple[tuple[str, str, object], ...] = (
    (r"cp comm a2a", "context_kind", "ulysses"),
    (r"EP overlap (ON|on)\b|1f1b overlap", "overlap_moe", True),
    (r"EP overlap (OFF|off)\b", "overlap_moe", False),
    (r"gradient bucketing off", "overlap_grad_reduce", False),
    (r"decoder_layer_input=offload", "offload_inputs", True),
)


def noted(run: PublishedRun) -> Noted:
    """Read the notes of a row by a fixed list of phrases; a phrase that is not on it changes nothing."""
    text = f"{run.model}; {run.system}; {run.notes}"
    runs = {name: value for pattern, name, value in _RUN_NOTES if re.search(pattern, text)}
    strategies = {name: value for pattern, name, value in _STRATEGY_NOTES if re.search(pattern, text)}
    routed = re.search(r"expert group size (\d+)", text)
    if routed:
        runs["routing_group"] = int(routed.group(1))
    group = re.search(r"\bzero1=(-?\d+)", text)
    if group:
        strategies["shard_group"] = max(int(group.group(1)), 0)
    placed = f"{text}; {run.table}"
    offloaded = next((kind for pattern, kind in OFFLOADED if re.search(pattern, placed)), None)
    if offloaded:
        strategies["offload"] = offloaded
    return Noted(runs, strategies)


PADDING = ((128, 1 / 1.17), (512, 1 / 2.0))
"""Share of real tokens in Wikipedia sequences for BERT, by sequence length (Krell et al. 2021, arXiv 2107.02027,
section 3: half of all tokens at 512 are padding, packing can gain a factor of 2.0; 1.17 at 128)."""


def binned_length(seq_len: int, bins: int) -> int:
    """Mean length of BERT sequences that a loader sorts into `bins` equal bins, each padded to its upper end.

    NVIDIA LDDL does so (sequence binning); half a bin of padding is left on average.

    >>> binned_length(512, 8), binned_length(128, 8)
    (288, 117)
    """
    lengths, shares = zip(*PADDING, strict=True)
    share = float(np.interp(seq_len, lengths, shares))
    return min(seq_len, round(seq_len * (share + 0.5 / bins)))


def year_of(run: PublishedRun) -> int:
    """Year of a run: of the arXiv number in its source, else of its device."""
    dated = re.search(r"arXiv:(\d\d)\d\d\.\d{4,5}", run.source)
    if dated:
        return 2000 + int(dated.group(1))
    device = run.device or ""
    return next((year for name, year in GENERATION_YEAR if name in device), 2024)


def framework_for(system: str, year: int, profiles: Mapping[str, Framework], notes: str = "") -> str | None:
    """The profile that a published system name means, or None.

    The longest matching expression wins; between equal ones the latest `since` that is not after `year`, and when all
    are after it the earliest. An expression with "; " in it is matched against the system and what else the row says
    (`said_of`).
    """
    found = [
        (len(pattern), framework)
        for framework in profiles.values()
        for pattern in framework.systems
        if re.fullmatch(pattern, f"{system}; {notes}" if "; " in pattern else system, re.IGNORECASE)
    ]
    if not found:
        return None
    longest = max(length for length, _ in found)
    named = [framework for length, framework in found if length == longest]
    begun = [framework for framework in named if framework.since <= year]
    best = max(begun, key=lambda f: (f.since, f.name)) if begun else min(named, key=lambda f: (f.since, f.name))
    return best.name


def said_of(run: PublishedRun) -> str:
    """What picks between variants of one software: device, precision and model of a row, then its notes.

    Recipes of one release differ by device and model ("gb200; mxfp8; Qwen3_30B_a3B; ...").
    """
    return "; ".join((run.device or "", run.precision or "", run.model, run.notes))


def recompute_modules(detail: str) -> tuple[tuple[str, ...], list[str]]:
    """Modules that a detail like "selective: norm, act" names, and the words it does not know.

    >>> recompute_modules("selective: norm, act")
    (('moe_act', 'layernorm'), [])
    """
    listed = re.sub(r"\([^)]*\)", "", detail.split(";", maxsplit=1)[0]).removeprefix("selective:")
    words = [word.strip() for word in listed.split(",") if word.strip()]
    known = {MODULE_WORDS[word] for word in words if word in MODULE_WORDS}
    return tuple(m for m in RECOMPUTE_MODULES if m in known), [w for w in words if w not in MODULE_WORDS]
