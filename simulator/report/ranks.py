"""A step rank by rank: what each pipeline rank does, waits for and holds, as rows and as text."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.report.memory_curve import memory_curve
from simulator.report.svg_bars import shown_ranks
from simulator.report.text import rendered, table
from simulator.result import Estimate
from simulator.units import format_bytes, format_percent, format_time


def timeline_dict(answer: Estimate) -> dict[str, Any]:
    """The JSON document of `shardwise timeline`: the pipeline's makespan and one row for each rank.

    busy_s and idle_s of a rank sum to makespan_s; exposed_s is the part of busy_s that is not computing; in_flight
    counts stage-micro-batches held at the peak, at peak_time_s.
    """
    line, curve = answer.timeline(), memory_curve(answer)
    # Less is what rounding leaves of a difference.
    exposed_s = np.where(line.exposed_s > 1e-12 * line.makespan_s, line.exposed_s, 0.0)
    columns = zip(line.busy_s, line.idle_s, exposed_s, line.in_flight, curve.peak_bytes, curve.peak_time_s,
                  strict=True)  # fmt: skip
    names = ("busy_s", "idle_s", "exposed_s", "in_flight", "peak_memory_bytes", "peak_time_s")
    return {
        "model": answer.model,
        "cluster": answer.cluster,
        "schedule": line.order.schedule,
        "micro_batches": line.order.micro_batches,
        "tasks": line.order.tasks,
        "step_time_s": answer.step_time_s,
        "makespan_s": line.makespan_s,
        "bubble_fraction": line.bubble_fraction,
        "ranks": [
            {"rank": rank, **{name: value.item() for name, value in zip(names, row, strict=True)}}
            for rank, row in enumerate(columns)
        ],
    }


def timeline_text(answer: Estimate) -> str:
    """The same for people; of many ranks some, evenly spaced."""
    found = timeline_dict(answer)
    ranks = [found["ranks"][rank] for rank in shown_ranks(len(found["ranks"]))]
    rows = [
        (str(r["rank"]), format_time(r["busy_s"]), format_time(r["idle_s"]), format_time(r["exposed_s"]),
         str(r["in_flight"]), format_bytes(r["peak_memory_bytes"]), format_time(r["peak_time_s"]))
        for r in ranks
    ]  # fmt: skip
    head = (
        f"{found['model']} on {found['cluster']}: {found['schedule']}, {found['micro_batches']} micro-batches, "
        f"{found['tasks']:,} tasks\npipeline {format_time(found['makespan_s'])} of a step of "
        f"{format_time(found['step_time_s'])}; ranks wait {format_percent(found['bubble_fraction'])} of it\n"
    )
    columns = ("rank", "busy", "waiting", "exposed", "in flight", "peak memory", "at")
    return rendered([head, table("Pipeline ranks", columns, rows)])
