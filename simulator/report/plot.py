"""Pictures of estimates, plans, timelines and clusters: which there are, and how they are written.

    from simulator.report.plot import save
    save(estimate.plot("waterfall"), "step.svg")

Estimate: overview, memory, waterfall, timeline. Plan: pareto, compare. Scaling: scaling. Deadline: deadline. Front:
front. Timeline: timeline. Cluster: topology (with `answer=` an estimate, the bytes on every link). Of several values:
`roofline_picture`, `scaling_picture`, `curves_picture`, `pareto_picture`, `compare_picture`, `measured_picture`,
`switch_picture`, `lines_picture`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.errors import InputError, Problem, did_you_mean
from simulator.io.files import write_bytes
from simulator.pictures import Drawable
from simulator.plan.front import Front
from simulator.plan.result import Plan
from simulator.plan.scaling import Deadline, Scaling
from simulator.report.plot_bars import compare_picture, memory_picture, overview_picture, waterfall_picture
from simulator.report.plot_curves import lines_picture, measured_picture, pareto_picture
from simulator.report.plot_front import front_picture
from simulator.report.plot_roofline import layer_kernels, roofline_picture
from simulator.report.plot_scaling import curves_picture, deadline_picture, knee, scaling_picture
from simulator.report.plot_style import picture_bytes, style
from simulator.report.plot_switch import switch_picture
from simulator.report.plot_timeline import timeline_picture
from simulator.report.plot_topology import topology_picture
from simulator.result import Estimate
from simulator.schedule.timeline import Timeline
from simulator.spec.hardware import Cluster

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "compare_picture", "curves_picture", "deadline_picture", "front_picture", "knee", "layer_kernels", "lines_picture",
    "measured_picture", "memory_picture", "overview_picture", "pareto_picture", "picture_bytes", "plot",
    "roofline_picture", "save", "scaling_picture", "style", "switch_picture", "timeline_picture", "topology_picture",
    "waterfall_picture",
]  # fmt: skip


def _planned(plan: Plan, **options: Any) -> Figure:
    return pareto_picture([entry.estimate for entry in plan], title=f"{plan.model} on {plan.cluster}", **options)


def _compared(plan: Plan, **options: Any) -> Figure:
    return compare_picture([entry.estimate for entry in plan], **options)


PICTURES: Mapping[type, Mapping[str, Callable[..., Figure]]] = {
    Estimate: {"overview": overview_picture, "memory": memory_picture, "waterfall": waterfall_picture,
               "timeline": timeline_picture},
    Plan: {"pareto": _planned, "compare": _compared},
    Scaling: {"scaling": lambda curve: curves_picture([curve])},
    Deadline: {"deadline": deadline_picture},
    Front: {"front": front_picture},
    Timeline: {"timeline": timeline_picture},
    Cluster: {"topology": topology_picture},
}  # fmt: skip
"""Pictures of each kind of value; the first is the one that `plot()` draws."""


def plot(thing: Drawable, picture: str = "", **options: Any) -> Figure:
    """A picture of a value: what its `.plot()` method calls. Raises InputError for a picture that there is not."""
    known = PICTURES[type(thing)]
    name = picture or next(iter(known))
    if name not in known:
        kinds = f"{name!r} is no picture of this: {', '.join(known)}."
        raise InputError([Problem(kinds, "picture", did_you_mean(name, known))])
    return known[name](thing, **options)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a picture as PNG, SVG or PDF, by the name's ending; an older one of that name is replaced.

    Raises InputError for another ending, or where the file cannot be written.
    """
    target = Path(path)
    write_bytes(target, picture_bytes(figure, target.suffix.removeprefix(".").lower()), force=True)
    return target
