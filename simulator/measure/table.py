"""Measured steps as a table: one row a case, medians over interleaved rounds with their spread, and the load.

The first columns are those of the table of published runs (simulator/validate/runs.py), the others follow them: without
those a file is a table of runs. Elapsed seconds stand in `step_time_s`, ranks in `devices`, the peak in
`peak_memory_gib`.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import InputError, Problem
from simulator.measure.suite import Case, case_of, device_for, model_of
from simulator.validate.runs import COLUMNS, GIB, PublishedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One case. Times are of one step; `cpu` times are processor seconds summed over ranks, a GPU's own on a GPU."""

    suite: str
    case: str
    ranks: int
    rounds: int
    cpu_s: float
    cpu_low_s: float
    cpu_high_s: float
    """Quartiles of the rounds."""
    wall_s: float
    wall_low_s: float
    wall_high_s: float
    product_s: float
    memory_s: float
    """Processor seconds of the two reference kernels beside these steps: how fast the machine was."""
    peak_memory_bytes: float
    """Of rank 0, by torch's memory tracker (a GPU's by its allocator); 0 where it was not asked."""
    load: float
    """Runnable processes besides the ranks (one-minute load average less the ranks, at least 0) when it ended."""

    @property
    def spread_fraction(self) -> float:
        """Interquartile range of the rounds' processor time over its median."""
        return (self.cpu_high_s - self.cpu_low_s) / self.cpu_s


def measured_case(
    suite: str, case: str, answers: Sequence[Mapping[str, Any]], *, load: float, peak_memory_bytes: float
) -> Measured:
    """A row from what every rank timed: processor seconds are summed over ranks, elapsed ones those of the slowest."""
    rounds = len(answers[0][case])
    cpu = [sum(answer[case][turn]["cpu"] for answer in answers) for turn in range(rounds)]
    wall = [max(answer[case][turn]["wall"] for answer in answers) for turn in range(rounds)]
    low, high = (float(x) for x in np.percentile(cpu, (25, 75)))
    wall_low, wall_high = (float(x) for x in np.percentile(wall, (25, 75)))
    return Measured(
        suite=suite, case=case, ranks=len(answers), rounds=rounds, cpu_s=statistics.median(cpu), cpu_low_s=low,
        cpu_high_s=high, wall_s=statistics.median(wall), wall_low_s=wall_low, wall_high_s=wall_high,
        product_s=_middle(answers, case, "product"), memory_s=_middle(answers, case, "memory"),
        peak_memory_bytes=peak_memory_bytes, load=load,
    )  # fmt: skip


def _middle(answers: Sequence[Mapping[str, Any]], case: str, name: str) -> float:
    return statistics.median(turn[name] for answer in answers for turn in answer[case])


EXTRA = ("suite", "case", "rounds", "cpu_s", "cpu_low_s", "cpu_high_s", "wall_low_s", "wall_high_s", "product_s",
         "memory_s", "load")  # fmt: skip
"""Columns after those of a run."""
_COLUMN_OF = {"nic_bytes_per_s": "nic_gbps_per_device", "peak_memory_bytes": "peak_memory_gib"}
RUN = tuple(name for entry in fields(PublishedRun) if (name := _COLUMN_OF.get(entry.name, entry.name)) in COLUMNS)
HEADER = (*RUN, *EXTRA)


def table_text(rows: Iterable[Measured]) -> str:
    """The rows as CSV, times to six digits. Raises InputError for a case that its suite has not."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, HEADER, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        extra = {name: getattr(row, name) for name in EXTRA}
        cells = run_columns(row, case_of(row.suite, row.case)) | extra
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in cells.items()})
    return stream.getvalue()


def run_columns(row: Measured, case: Case) -> dict[str, Any]:
    """What the table of runs says of a measured case, empty cells left out."""
    s, run = case.strategy, case.run
    return {
        **_dimensions(case), "run_id": f"{row.suite}/{row.case}", "family": "measured", "source": "shardwise measure",
        "table": row.suite, "system": f"torch ({run.framework})", "train_kind": "pretrain", "model": case.model,
        "seq_len": run.seq_len, "device": device_for(row.suite), "devices": row.ranks, "devices_per_node": row.ranks,
        "tp": s.tp, "sp": int(s.sequence_parallel), "cp": s.cp, "pp": s.pp, "vp": s.vp, "dp": s.dp, "zero": s.zero,
        "ep": s.ep, "etp": s.etp, "schedule": s.schedule if s.pp > 1 else "", "micro_batch": s.micro_batch,
        "global_batch": run.global_batch, "recompute": s.recompute, "precision": run.precision,
        "attention": run.attention or "fused", "step_time_s": row.wall_s,
        "step_time_from": "median over rounds of the slowest rank's elapsed time",
        "peak_memory_gib": f"{row.peak_memory_bytes / GIB:.12g}" if row.peak_memory_bytes else "",
        "outcome": "ok", "grade": "A", "consistent": True,
    }  # fmt: skip


def _dimensions(case: Case) -> dict[str, Any]:
    model = model_of(case.model)
    layers = [layer for stack in model.stacks for layer, _ in stack.runs]
    attention = next(layer.attention for layer in layers if layer.attention is not None)
    inner = next(layer.feed_forward for layer in layers if layer.feed_forward is not None)
    experts = next((layer.experts for layer in layers if layer.experts is not None), None)
    roles = [stack.role for stack in model.stacks]
    found: dict[str, Any] = {
        "arch": roles[0] if len(roles) == 1 else "encoder-decoder",
        "layers": sum(stack.layers for stack in model.stacks), "hidden": model.hidden, "heads": attention.heads,
        "kv_heads": attention.kv_heads, "ffn_hidden": inner.hidden, "gated": int(inner.gated),
        "vocab": model.embedding.vocab,
    }  # fmt: skip
    if experts is not None:
        found |= {"experts": experts.count, "topk": experts.top_k, "capacity_factor": experts.capacity_factor}
    return found


def is_measured(path: Path) -> bool:
    """Whether a file begins with the columns of measured steps."""
    try:
        with path.open(encoding="utf-8") as stream:
            return stream.readline().strip().split(",") == list(HEADER)
    except (OSError, UnicodeDecodeError):
        return False


def read_table(path: Path) -> list[Measured]:
    """Rows of a table that `table_text` wrote. Raises InputError with the line of what cannot be read."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            if set(reader.fieldnames or ()) != set(HEADER):
                raise InputError([Problem(f"its columns must be {', '.join(HEADER)}.", f"{path}:1")])
            return [_measured(row) for row in reader]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError([Problem(f"cannot be read as measured steps: {error}.", str(path))]) from None


def _measured(row: Mapping[str, str]) -> Measured:
    convert = {"str": str, "int": int, "float": float}
    kinds = {entry.name: str(entry.type) for entry in fields(Measured)}
    return Measured(
        ranks=int(row["devices"]), wall_s=float(row["step_time_s"]),
        peak_memory_bytes=float(row["peak_memory_gib"] or 0.0) * GIB,
        **{name: convert[kinds[name]](row[name]) for name in EXTRA},
    )  # fmt: skip
