"""Every float says its unit in its name, or stands in a list of names that have none, each with what it is.

Public functions' parameters and public dataclasses' fields are read from the source. `Number` (a number, or an array of
them over strategies) also counts things: those names end in what they count.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNITS = (
    "s", "seconds", "ms", "us", "bytes", "gib", "flops", "watts", "joules", "kwh", "kg", "nats", "usd", "hours", "days",
    "inches", "fraction", "share", "ratio", "efficiency", "rate", "factor", "probability",
)  # fmt: skip
PER = re.compile(r"(?:^|_)(s|bytes|flops|usd|tokens|watts|kg)_per_[a-z]+(_[a-z]+)?$")
DIMENSIONLESS = {
    "capacity_factor": "expert buffer slots over mean tokens",
    "active_tolerance": "a relative rounding",
    "alpha": "an exponent",
    "dropout": "a probability",
    "expert_imbalance": "busiest rank's tokens over the mean",
    "imbalance": "busiest over the mean",
    "eps": "added to a variance",
    "fits_confidence": "a probability",
    "gap": "relative: the best found over the least bound, less one",
    "hfu": "a fraction of peak",
    "load": "the machine's load average",
    "load_after": "the machine's load average",
    "load_before": "the machine's load average",
    "memory_drift": "a ratio of two times",
    "mfu": "a fraction of peak",
    "oversubscription": "capacity down over capacity up",
    "power": "an exponent",
    "product_drift": "a ratio of two times",
    "pue": "power of a building over that of its machines",
    "sigma": "a standard deviation of logarithms or of a ratio",
    "tolerance": "a relative rounding",
}
"""Floats without a unit: name -> what it is."""

ELSEWHERE = {
    "Bench.work": "FLOPs, roughly: it sets how often a kernel is repeated",
    "Curve.alone": "true or false",
    "HeldParameters.dense": "parameters",
    "HeldParameters.expert": "parameters",
    "HeldParameters.largest_layer": "parameters",
    "HeldParameters.largest_segment": "parameters",
    "HeldParameters.replicated": "parameters",
    "Jitter.stragglers": "a share of the ranks",
    "Project.batch_tokens": "tokens per step",
    "Project.critical_batch_tokens": "tokens per step",
    "Project.steps_over_fewest": "a ratio of two counts",
    "Bill.tokens": "tokens",
    "Deadline.tokens": "tokens",
    "Project.tokens": "tokens",
    "ScalingLaw.floor": "nats per token",
    "ScalingLaw.parameter_power": "an exponent",
    "ScalingLaw.parameter_scale": "nats, times parameters to a power",
    "ScalingLaw.token_power": "an exponent",
    "ScalingLaw.token_scale": "nats, times tokens to a power",
    "ScoredRow.error": "relative",
    "Speeds.patience": "a ratio of two times",
    "Term.value": "in Term.unit",
    "accumulation_bytes.held": "parameters",
    "sharding_copy_bytes.held": "parameters",
    "flattening_bytes.held": "parameters",
    "host_update_s.owned": "parameters",
    "best_math_s.peak": "FLOP/s of the dtype",
    "copies_kept.copies": "experts that a token visits",
    "deduplicated_exchange_s.copies": "experts that a token visits",
    "format_count.count": "any count",
    "kv_bytes_per_layer.context_tokens": "tokens",
    "loss.parameters": "parameters",
    "loss.tokens": "tokens",
    "off_optimum.batch_tokens": "tokens per step",
    "off_optimum.critical_tokens": "tokens per step",
    "optimal_tokens.parameters": "parameters",
    "pointwise.backward": "bytes per element",
    "pointwise.forward": "bytes per element",
    "prefetched_s.pieces": "layers",
    "bill.tokens": "tokens",
    "check_conditions.tokens": "tokens",
    "fewest_devices.tokens": "tokens",
    "pareto.tokens": "tokens",
    "plan.tokens": "tokens",
    "project.tokens": "tokens",
    "ticks.largest": "in the unit of the axis",
    "value_text.value": "in the unit given beside it",
    "training_flops.parameters": "parameters",
    "training_flops.tokens": "tokens",
}
"""Names whose unit stands somewhere else: owner.name -> what it is."""

COUNTS = (
    "batch", "batches", "channels", "chunks", "degree", "degrees", "devices", "dim", "elements", "experts", "groups",
    "heads", "hops", "kernels", "layers", "len", "count", "nodes", "ranks", "repeat", "rows", "size", "stages", "steps",
    "tokens", "units", "width", "parameters", "messages", "rings", "sequences", "hidden", "inputs", "outputs", "logits",
    "members", "concurrent", "levels", "per_node", "stride", "blocks", "rank",
)  # fmt: skip
SYMBOLS = ("m", "n", "k", "p", "q", "tp", "pp", "dp", "cp", "ep", "etp", "vp")
"""Symbols of matrix shapes, of group and pipeline sizes, and the degrees."""


@dataclass(frozen=True)
class Named:
    """A public parameter or field, where it stands and what it holds."""

    where: str
    owner: str
    name: str
    annotation: str


def _public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        bodies = node.body if isinstance(node, ast.Module | ast.ClassDef) else []
        if isinstance(node, ast.ClassDef) and node.name.startswith("_"):
            continue
        yield from (f for f in bodies if isinstance(f, ast.FunctionDef) and not f.name.startswith("_"))


def _named(file: Path, root: Path) -> Iterator[Named]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    place = file.relative_to(root).as_posix()
    for function in _public_functions(tree):
        for a in [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]:
            if a.annotation is not None:
                yield Named(f"{place}:{a.lineno}", function.name, a.arg, ast.unparse(a.annotation))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    yield Named(f"{place}:{line.lineno}", node.name, line.target.id, ast.unparse(line.annotation))


def has_unit(name: str) -> bool:
    """True when the name is, or ends in, a unit."""
    return name.rpartition("_")[2] in UNITS or PER.search(name) is not None


def is_count(name: str) -> bool:
    """True when the name says what it counts."""
    return name in (*SYMBOLS, *COUNTS) or name.rpartition("_")[2] in COUNTS


def _unsaid(named: Named) -> bool:
    if has_unit(named.name) or named.name in DIMENSIONLESS or f"{named.owner}.{named.name}" in ELSEWHERE:
        return False
    if re.fullmatch(r"float( \| None)?", named.annotation):
        return True
    return re.fullmatch(r"Number( \| None)?", named.annotation) is not None and not is_count(named.name)


def test_every_float_says_its_unit(root: Path) -> None:
    named = [n for file in sorted((root / "simulator").rglob("*.py")) for n in _named(file, root)]
    assert len(named) > 100, "the reader of names has gone blind"
    unsaid = [f"{n.where}: {n.owner}.{n.name}: {n.annotation}" for n in named if _unsaid(n)]
    assert not unsaid, "no unit in the name, and not in DIMENSIONLESS:\n" + "\n".join(unsaid)


def test_the_lists_hold_only_names_in_use(root: Path) -> None:
    named = [n for file in (root / "simulator").rglob("*.py") for n in _named(file, root)]
    used = {n.name for n in named} | {f"{n.owner}.{n.name}" for n in named}
    assert not {*DIMENSIONLESS, *ELSEWHERE} - used


def test_what_a_unit_is() -> None:
    assert has_unit("step_time_s")
    assert has_unit("bytes")
    assert has_unit("memory_bandwidth_bytes_per_s")
    assert not has_unit("latency")
    assert not has_unit("bandwidth")
    assert is_count("kv_heads")
    assert not is_count("duration")
