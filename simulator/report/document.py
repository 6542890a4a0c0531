"""An estimate as a reader meets it: every number as text with the formula behind it, tables, pictures, assumptions.

The explorer's page and the one-file report show this one document.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from simulator.explain import FORMULAS, explain_term, terms
from simulator.intervals import COVERAGE
from simulator.report.svg_bars import MEMORY_ORDER, TIME_ORDER, in_order, word
from simulator.result import Estimate
from simulator.spec.run import Run
from simulator.spec.strategy import Strategy
from simulator.units import format_bytes, format_count, format_flop_rate, format_flops, format_percent, format_time

Row = dict[str, Any]


def document(answer: Estimate, *, nodes: int = 0, said: Sequence[str] = ()) -> dict[str, Any]:
    """The document of one estimate, as plain values (JSON).

    Keys: title, command, fits, verdict, headline, time, memory, traffic (rows of name, term, value, share, ...), terms
    (formula, values, source of each number), notes, provenance. `nodes` goes into the command that repeats it.
    """
    return {
        "title": f"{answer.model} on {answer.devices:,} devices of {answer.cluster}",
        "command": command_line(answer, nodes),
        "fits": answer.fits,
        "verdict": _verdict(answer),
        "headline": _headline(answer),
        "time": _time_rows(answer),
        "memory": _rows("memory", dict(answer.memory.parts), answer.peak_memory_bytes, MEMORY_ORDER),
        "traffic": _rows("traffic", dict(answer.traffic_bytes), sum(answer.traffic_bytes.values()), TIME_ORDER),
        "terms": {name: _term(answer, name) for name in terms(answer) if name in FORMULAS},
        "notes": [*said, *answer.notes],
        "provenance": [{"what": p.what, "kind": p.kind, "source": p.source} for p in answer.provenance],
    }


def _verdict(answer: Estimate) -> str:
    room = answer.device_memory_bytes - answer.peak_memory_bytes
    sure = f"({format_percent(answer.fits_confidence, 2)} sure)"
    if answer.fits:
        return f"Fits, with {format_bytes(room)} to spare on the fullest device {sure}."
    return f"Does not fit: the fullest device lacks {format_bytes(-room)} {sure}."


def _headline(answer: Estimate) -> list[Row]:
    low, high = answer.step_time_low_s, answer.step_time_high_s
    each = answer.tokens_per_s_per_device
    rate = answer.model_flops_per_s_per_device
    return [
        {"term": "step_time_s", "name": "step time", "value": format_time(answer.step_time_s),
         "note": f"likely {format_time(low, 3)} to {format_time(high, 3)} ({format_percent(COVERAGE)})"},
        {"term": "tokens_per_s", "name": "tokens per second", "value": format_count(answer.tokens_per_s),
         "note": f"{format_count(each)} per device"},
        {"term": "mfu", "name": "MFU", "value": format_percent(answer.mfu),
         "note": f"{format_flop_rate(rate)} per device, {answer.flops_convention} FLOPs"},
        {"term": "peak_memory_bytes", "name": "memory", "value": format_bytes(answer.peak_memory_bytes),
         "note": f"of {format_bytes(answer.device_memory_bytes)} per device"},
    ]  # fmt: skip


def _time_rows(answer: Estimate) -> list[Row]:
    rows = [
        {"name": word(name), "part": name, "term": _known(f"time.{name}"), "value": format_time(seconds),
         "share": format_percent(seconds / answer.step_time_s), "hidden": _hidden(answer, name)}
        for name, seconds in in_order(dict(answer.time.parts), TIME_ORDER)
    ]  # fmt: skip
    alone = {name: value for name, value in answer.time.hidden.items() if not answer.time.parts.get(name)}
    rows += [
        {"name": word(name), "part": name, "term": "", "value": format_time(0.0), "share": format_percent(0.0),
         "hidden": _hidden(answer, name)}
        for name, _ in in_order(alone, TIME_ORDER)
    ]  # fmt: skip
    return rows


def _hidden(answer: Estimate, name: str) -> str:
    seconds = answer.time.hidden.get(name, 0.0)
    return format_time(seconds) if seconds else ""


def _rows(group: str, parts: dict[str, float], total: float, order: tuple[str, ...]) -> list[Row]:
    return [
        {"name": word(name), "part": name, "term": _known(f"{group}.{name}"), "value": format_bytes(value),
         "share": format_percent(value / total)}
        for name, value in in_order(parts, order)
    ]  # fmt: skip


def _known(term: str) -> str:
    return term if term in FORMULAS else ""


def _term(answer: Estimate, name: str) -> Row:
    """One number expanded; values as text."""
    found = explain_term(answer, name)
    values = [[key, _inner(name, key, value)] for key, value in found["values"].items()]
    return {
        "name": name,
        "value": value_text(found["value"], "%" if name in {"mfu", "hfu"} else found["unit"]),
        "formula": found["formula"],
        "values": [*values, *_sureness(answer, name)],
        "source": found["source"],
    }


def _sureness(answer: Estimate, name: str) -> list[list[str]]:
    """How sure a headline number is, from the errors on published runs."""
    if name == "step_time_s":
        low, high = format_time(answer.step_time_low_s, 3), format_time(answer.step_time_high_s, 3)
        return [[f"holds {format_percent(COVERAGE)} of measured runs of other families", f"{low} to {high}"]]
    if name == "peak_memory_bytes":
        return [["probability that the verdict on memory is right", format_percent(answer.fits_confidence, 2)]]
    return []


def _inner(name: str, key: str, value: Any) -> str:
    """A number inside a formula, in the unit of its name or of the total it is a part of."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    unit = {"step_time_s": "s", "peak_memory_bytes": "B"}.get(name, "")
    if key.endswith("_s"):
        unit = "s"
    elif key.endswith("_flops_per_step"):
        unit = "FLOP"
    return value_text(value, unit)


def value_text(value: float, unit: str) -> str:
    """A number in its unit: s, B, FLOP, tokens/s, % (of a fraction), or none."""
    if unit == "s":
        return format_time(value)
    if unit == "B":
        return format_bytes(value)
    if unit == "FLOP":
        return format_flops(value)
    if unit == "%":
        return format_percent(value)
    if unit:
        return f"{format_count(value)} {unit}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


_FLAGS = {"sequence_parallel": ("--sequence-parallel", "--no-sequence-parallel")}
_NO_OPTION = {"recompute_modules", "reshard_after_forward", "dropout", "capacity_factor", "routing_group",
              "expert_imbalance", "flops_convention", "overlap_grad_reduce", "overlap_param_gather", "overlap_tp",
              "overlap_moe", "group_size"}  # fmt: skip
"""Fields that a strategy or run file sets and no option does."""


def command_line(answer: Estimate, nodes: int = 0) -> str:
    """The command that repeats an estimate: what differs from the defaults, as options."""
    words = ["shardwise", "estimate", answer.model, answer.cluster]
    if nodes:
        words += ["--nodes", str(nodes)]
    values: Mapping[str, Any] = {**answer.strategy, **answer.run}
    for entry in (*fields(Strategy), *fields(Run)):
        value = values.get(entry.name)
        # dp is said in full: its default is what the other degrees leave, not 1.
        if entry.name in _NO_OPTION or (value == entry.default and entry.name != "dp" and entry.default is not MISSING):
            continue
        if entry.name in _FLAGS:
            words.append(_FLAGS[entry.name][0 if value else 1])
            continue
        words += [f"--{entry.name.replace('_', '-')}", _option(entry.name, value, values)]
    return shlex.join(words)


def _option(name: str, value: Any, values: Mapping[str, Any]) -> str:
    if name == "recompute" and value == "modules":
        return ",".join(values.get("recompute_modules", ()))
    if name == "order":
        return "-".join(value)
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return str(value)
