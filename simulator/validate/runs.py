"""The strict table of published runs: what `shardwise validate RUNS.csv` reads, and what a row says about itself.

One row is one measured training run with its configuration. An empty cell means that the source does not say: it is
`None` here, never a guess. Columns are those of `validation/runs/README.md`, in any order; one more or one less is an
error, and so is a cell that cannot be read. Every fault of a file is reported at once, each with its line.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from simulator.errors import Complaints, InputError, Problem, did_you_mean
from simulator.spec.run import PRECISIONS
from simulator.spec.strategy import SCHEDULES

MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_COUNT = 10**9
"""No published dimension or degree comes near: a larger number is a slip."""
GIB = 2.0**30

ARCHITECTURES = ("decoder", "encoder", "encoder-decoder")
RECOMPUTE_WORDS = ("none", "selective", "full", "modules", "other")
OUTCOMES = ("ok", "oom")
GRADES = ("A", "A-", "B")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRun:
    """One row. `None` is what the source leaves open. The meaning of each field is that of its column."""

    run_id: str
    family: str
    source: str
    table: str
    system: str
    train_kind: str
    model: str
    arch: str | None
    layers: int | None
    hidden: int | None
    heads: int | None
    kv_heads: int | None
    ffn_hidden: int | None
    gated: bool | None
    vocab: int | None
    experts: int | None
    topk: int | None
    capacity_factor: float | None
    seq_len: int | None
    device: str | None
    devices: int | None
    devices_per_node: int | None
    nic_bytes_per_s: float | None
    """Per device, one direction."""
    tp: int | None
    sp: bool | None
    cp: int | None
    pp: int | None
    vp: int | None
    schedule: str | None
    dp: int | None
    zero: int | None
    ep: int | None
    etp: int | None
    micro_batch: int | None
    global_batch: int | None
    recompute: str | None
    recompute_detail: str
    precision: str | None
    attention: str | None
    step_time_s: float | None
    step_time_from: str
    peak_memory_bytes: float | None
    outcome: str
    grade: str
    assumed: str
    notes: str
    consistent: bool
    where: str = ""
    """"file:line" of the row."""

    @property
    def mixture(self) -> bool:
        return bool(self.experts and self.experts > 1)


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= MAX_COUNT:
        raise ValueError(f"must be a whole number from 1 to {MAX_COUNT}")
    return value


def _stage(text: str) -> int:
    value = int(text)
    if value not in (0, 1, 2, 3):
        raise ValueError("must be 0, 1, 2 or 3")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError("must be a positive number")
    return value


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("must be 0 or 1")
    return text == "1"


def _truth(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError("must be True or False")
    return text == "True"


def _one_of(words: Iterable[str]) -> Callable[[str], str]:
    known = tuple(words)

    def read(text: str) -> str:
        if text not in known:
            raise ValueError(f"is not known. {did_you_mean(text, known)}".rstrip())
        return text

    return read


_COUNTS = (
    "layers", "hidden", "heads", "kv_heads", "ffn_hidden", "vocab", "experts", "topk", "seq_len", "devices",
    "devices_per_node", "tp", "cp", "pp", "vp", "dp", "ep", "etp", "micro_batch", "global_batch",
)  # fmt: skip
_TEXTS = (
    "run_id", "family", "source", "table", "system", "train_kind", "model", "device", "recompute_detail",
    "step_time_from", "assumed", "notes",
)  # fmt: skip
_READERS: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(_COUNTS, _count),
    **dict.fromkeys(_TEXTS, str),
    "arch": _one_of(ARCHITECTURES),
    "gated": _flag,
    "sp": _flag,
    "zero": _stage,
    "capacity_factor": _positive,
    "nic_gbps_per_device": lambda text: _positive(text) * 1e9 / 8,
    "schedule": _one_of((*SCHEDULES, "other")),
    "recompute": _one_of(RECOMPUTE_WORDS),
    "precision": _one_of(PRECISIONS),
    "attention": _one_of(("fused", "unfused")),
    "step_time_s": _positive,
    "peak_memory_gib": lambda text: _positive(text) * GIB,
    "outcome": _one_of(OUTCOMES),
    "grade": _one_of(GRADES),
    "consistent": _truth,
}
COLUMNS = tuple(_READERS)
_FIELD_OF = {"nic_gbps_per_device": "nic_bytes_per_s", "peak_memory_gib": "peak_memory_bytes"}
_REQUIRED = ("run_id", "family", "outcome", "consistent")
_EMPTY: Mapping[str, Any] = {f.name: "" if f.type == "str" else None for f in fields(PublishedRun)}


def read_runs(paths: Iterable[Path | str]) -> tuple[PublishedRun, ...]:
    """All rows of all files, in order. Raises one InputError with every fault of every file.

    Faults: a file that cannot be read, is too large or is not UTF-8 CSV; an unknown, missing or doubled column; a cell
    that is no number or no known word; a row without `run_id`; a `run_id` used twice.
    """
    complaints, rows = Complaints(), []
    seen: dict[str, str] = {}
    for path in paths:
        for row in _read_file(Path(path), complaints):
            if row.run_id in seen:
                complaints.add(f"run_id {row.run_id!r} was already used at {seen[row.run_id]}.", where=row.where)
            seen[row.run_id] = row.where
            rows.append(row)
    complaints.raise_if_any()
    return tuple(rows)


def _read_file(path: Path, complaints: Complaints) -> list[PublishedRun]:
    try:
        text = _text_of(path)
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(reader, None)
        if not header:
            complaints.add("the file is empty.", where=str(path), hint="Its first line names the columns.")
            return []
        if not _check_header(header, str(path), complaints):
            return []
        rows, line = [], reader.line_num + 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                row = _read_row(header, cells, f"{path}:{line}", complaints)
                rows.extend([row] if row else [])
            line = reader.line_num + 1
    except InputError as error:
        complaints.problems.extend(error.problems)
        return []
    except csv.Error as error:
        complaints.add(f"not CSV: {error}.", where=f"{path}:{reader.line_num}")
        return []
    return rows


def _text_of(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError([Problem(f"{size} bytes is more than the {MAX_FILE_BYTES} allowed.", str(path))])
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError([Problem(f"not UTF-8: {error.reason} at byte {error.start}.", str(path))]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError([Problem(f"cannot be read: {reason}.", str(path))]) from None


def _check_header(header: list[str], path: str, complaints: Complaints) -> bool:
    before, where = len(complaints.problems), f"{path}:1"
    for name in dict.fromkeys(header):
        if name not in COLUMNS:
            complaints.add(f"unknown column {name!r}.", where=where, hint=did_you_mean(name, COLUMNS))
        elif header.count(name) > 1:
            complaints.add(f"column {name!r} appears {header.count(name)} times.", where=where)
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        complaints.add(f"missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)}.", where=where,
                       hint="Leave a column's cells empty where the source does not say.")  # fmt: skip
    return len(complaints.problems) == before


def _read_row(header: list[str], cells: list[str], where: str, complaints: Complaints) -> PublishedRun | None:
    if len(cells) != len(header):
        complaints.add(f"{len(cells)} cells, but the header names {len(header)} columns.", where=where,
                       hint="Quote cells that hold a comma.")  # fmt: skip
        return None
    values: dict[str, Any] = dict(_EMPTY)
    values["where"] = where
    faults = len(complaints.problems)
    for column, cell in zip(header, cells, strict=True):
        text = cell.strip()
        if not text:
            complaints.require(column not in _REQUIRED, f"{column} is empty.", where=where)
            continue
        try:
            values[_FIELD_OF.get(column, column)] = _READERS[column](text)
        except (ValueError, OverflowError) as error:
            why = str(error) if str(error).startswith(("must", "is not known")) else "is not a number"
            complaints.add(f"{column} = {text[:60]!r} {why.rstrip('.')}.", where=where)
    return None if len(complaints.problems) > faults else PublishedRun(**values)


def flags(run: PublishedRun) -> tuple[str, ...]:
    """What in a row contradicts itself, with the failed arithmetic; empty when nothing does. Such rows are not scored.

    Degrees against devices: experts' replicas are sometimes printed as dp, then tp * cp * pp * dp * ep gives the
    devices and nothing contradicts. Stated rates (samples/GPU/s, aggregate PFLOP/s) against the step time.
    """
    found = [text for text in (_degrees(run), _batch(run), _samples_rate(run), _aggregate_rate(run)) if text]
    return tuple(found)


def _degrees(run: PublishedRun) -> str:
    if run.devices is None or run.tp is None or run.pp is None or run.dp is None:
        return ""
    product = run.tp * (run.cp or 1) * run.pp * run.dp
    if run.devices in (product, product * (run.ep or 1)):
        return ""
    return f"tp({run.tp}) * cp({run.cp or 1}) * pp({run.pp}) * dp({run.dp}) = {product}, not devices({run.devices})"


def _batch(run: PublishedRun) -> str:
    """A batch that is no whole number of sequences per replica cannot have been run."""
    if run.global_batch is None or run.dp is None or run.global_batch >= run.dp or run.train_kind != "pretrain":
        return ""
    return f"global_batch({run.global_batch}) is less than dp({run.dp})"


def _samples_rate(run: PublishedRun) -> str:
    stated = re.search(r"source states ([0-9.]+) samples/GPU/s", run.notes)
    if not stated or run.step_time_s is None or not run.global_batch or not run.devices:
        return ""
    ours = run.global_batch / run.step_time_s / run.devices
    return _differ(ours, float(stated.group(1)), "samples/GPU/s")


def _aggregate_rate(run: PublishedRun) -> str:
    """Narayanan 2021 eq 3: F = 96 B s L h^2 (1 + s/(6h) + V/(16 L h)), full recompute counted."""
    stated = re.search(r"aggregate ([0-9.]+) PFLOP/s; FLOPs formula 96BslL", run.notes)
    dims = (run.global_batch, run.seq_len, run.layers, run.hidden, run.vocab, run.step_time_s)
    if not stated or None in dims:
        return ""
    batch, seq, layers, hidden, vocab, step_s = (float(d) for d in dims if d is not None)
    flops = 96 * batch * seq * layers * hidden**2 * (1 + seq / (6 * hidden) + vocab / (16 * layers * hidden))
    return _differ(flops / step_s / 1e15, float(stated.group(1)), "PFLOP/s")


def _differ(ours: float, stated: float, unit: str, tolerance: float = 0.02) -> str:
    if abs(ours / stated - 1) <= tolerance:
        return ""
    return f"batch, step time and devices give {ours:.4g} {unit}, but the source states {stated:g}"
