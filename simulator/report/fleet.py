"""A fleet as text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from simulator.fleet import FleetView
from simulator.report.text import rendered, table
from simulator.units import format_time


def fleet_text(answer: FleetView) -> str:
    """Every placement with its jobs, the best one first."""
    order = sorted(answer.placements, key=lambda name: name != answer.best)
    head = f"{len(answer.placements[answer.best])} jobs on {answer.nodes} nodes of {answer.cluster}, "
    tables = [
        table(
            f"{name} (best)" if name == answer.best else name,
            ("job", "nodes", "alone", "worst", "axis", "placement", "contention"),
            [
                (view.name, _ranges(view.nodes), format_time(view.step_time_s), format_time(view.worst_step_time_s),
                 view.axis or "-", f"x{view.placement_ratio:.3g}", f"x{view.contention_ratio:.3g}")
                for view in answer.placements[name]
            ],
        )
        for name in order
    ]  # fmt: skip
    return rendered([f"{head}{answer.idle_nodes} idle", *tables])


def _ranges(nodes: Sequence[int]) -> str:
    """Node numbers, neighbours joined: 0-3,8."""
    runs = [[node for _, node in run] for _, run in groupby(enumerate(sorted(nodes)), lambda pair: pair[1] - pair[0])]
    shown = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs[:4])
    return shown + (",..." if len(runs) > 4 else "")
