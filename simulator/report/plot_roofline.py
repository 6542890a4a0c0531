"""The roofline of a device with every kernel of a layer on it (Williams, Waterman, Patterson 2009)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simulator import catalog
from simulator.arch.flops import work_flops
from simulator.arch.operations import DTYPE_BYTES, AttentionCore, Gemm, GroupedGemm, Lookup, Pointwise, Work
from simulator.cluster.device import peak_flops_per_s
from simulator.cluster.members import is_unequal, plain_if_equal
from simulator.lowered import cost_step
from simulator.parallel.lower import Program
from simulator.parallel.setting import Setting
from simulator.parallel.timing import KIND_OF, PHASES, work_times_s
from simulator.report.plot_style import INK, QUIET, RULE, colour, grid, new_figure, styled
from simulator.report.svg_bars import word
from simulator.spec.hardware import Cluster
from simulator.spec.model import ModelSpec
from simulator.spec.run import Framework, Run
from simulator.spec.strategy import Strategy
from simulator.unequal import cost_unequal, slowest_seat
from simulator.units import format_bandwidth, format_flop_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE_DECADES = 0.13
"""Between two names, in decades of FLOP/s."""
SHORT = {"forward": "", "input_grad": " B", "weight_grad": " W"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPoint:
    """One kernel of a layer: what it does, moves and takes."""

    name: str
    kind: str
    flops: float
    moved_bytes: float
    time_s: float

    @property
    def flops_per_byte(self) -> float:
        """Arithmetic intensity."""
        return self.flops / self.moved_bytes

    @property
    def flops_per_s(self) -> float:
        return self.flops / self.time_s


def work_bytes(work: Work) -> float:
    """Bytes that a kernel must move: each operand once [B]. Fused attention: Q, K, V, O (and their gradients).

    >>> work_bytes(Gemm(m=2, n=3, k=4))
    52.0
    """
    match work:
        case Gemm():
            each = DTYPE_BYTES[work.dtype]
            out = max(each, 2.0)
            return float(work.batch * work.repeat * (each * (work.m + work.n) * work.k + out * work.m * work.n))
        case GroupedGemm():
            each = DTYPE_BYTES[work.dtype]
            return float(each * (work.tokens * (work.n + work.k) + work.experts * work.n * work.k))
        case AttentionCore():
            queries = work.batch * work.heads * work.q_len * (work.head_dim + work.value_head_dim)
            keys = work.batch * work.kv_heads * work.kv_len * (work.head_dim + work.value_head_dim)
            return float(DTYPE_BYTES[work.dtype] * (queries + keys) * (2 if work.backward else 1))
        case Pointwise():
            return float(work.bytes)
        case Lookup():
            return float(2 * work.rows * work.width_bytes)
    return 0.0


def layer_kernels(
    model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy, *, framework: Framework | None = None
) -> tuple[KernelPoint, ...]:
    """Every kernel of the model's most common layer on one rank, forward and backward, with its time.

    Pointwise kernels whose FLOPs are not counted are left out. Of unequal nodes it is the slowest rank.
    Raises InputError as `estimate` does.
    """
    return _kernels(*_one_rank(model, cluster, run, strategy, framework))


def _one_rank(
    model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy, framework: Framework | None
) -> tuple[Program, Setting]:
    """The program and what it runs on: of unequal nodes, the rank whose stage takes longest."""
    software = framework if framework is not None else catalog.load_framework(run.framework)
    cluster = plain_if_equal(cluster)
    if not is_unequal(cluster):
        costed = cost_step(model, cluster, run, strategy, software)
        return costed.program, costed.setting
    step = cost_unequal(model, cluster, run, strategy, software)
    return step.program, step.settings[slowest_seat(step, range(strategy.pp))]


def _kernels(program: Program, setting: Setting) -> tuple[KernelPoint, ...]:
    counts = {segment.name: (count, segment) for stage in program.stages for segment, count in stage.parts
              if segment.recomputable}  # fmt: skip
    segment = max(counts.values(), key=lambda held: held[0])[1]
    named = [
        (f"{operation.name}{SHORT[phase]}", work)
        for operation in segment.operations
        for phase in PHASES
        for work in getattr(operation, phase)
        if type(work) in KIND_OF
    ]
    seconds = work_times_s([work for _, work in named], setting.cluster, setting.groups)
    points = []
    for (name, work), time_s in zip(named, seconds, strict=True):
        flops = float(work.flops) if isinstance(work, Pointwise) else float(work_flops(work))
        if flops and work_bytes(work):
            points.append(KernelPoint(name=name, kind=KIND_OF[type(work)], flops=flops, moved_bytes=work_bytes(work),
                                      time_s=float(time_s)))  # fmt: skip
    return tuple(points)


@styled
def roofline_picture(
    model: ModelSpec, cluster: Cluster, run: Run, strategy: Strategy, *, framework: Framework | None = None
) -> Figure:
    """Intensity against achieved rate of every kernel of one layer, under the device's two roofs."""
    program, setting = _one_rank(model, cluster, run, strategy, framework)
    points, device = _kernels(program, setting), setting.cluster.device
    peak = peak_flops_per_s(device, run.precision)
    bandwidth = device.memory_bandwidth_bytes_per_s
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    least = min([*(p.flops_per_byte for p in points), 1.0]) / 2
    most = max([*(p.flops_per_byte for p in points), peak / bandwidth]) * 9
    roof = np.geomspace(least, most, 400)
    axes.loglog(roof, np.minimum(roof * bandwidth, peak), color=INK, linewidth=1.6)
    axes.axvline(peak / bandwidth, color=QUIET, linewidth=0.8, linestyle=":")
    axes.annotate(f"{peak / bandwidth:.0f} FLOP/byte", (peak / bandwidth, 0.0), xycoords=("data", "axes fraction"),
                  xytext=(4, 5), textcoords="offset points", color=QUIET, fontsize=8)  # fmt: skip
    axes.annotate(f"{format_flop_rate(peak)} {run.precision}", (most, peak), xytext=(0, 5), ha="right",
                  textcoords="offset points", fontsize=8.5)  # fmt: skip
    axes.annotate(format_bandwidth(bandwidth), (least * 1.3, least * 1.3 * bandwidth), xytext=(-2, 8), rotation=38,
                  textcoords="offset points", fontsize=8.5)  # fmt: skip
    for kind in dict.fromkeys(point.kind for point in points):
        mine = [point for point in points if point.kind == kind]
        axes.scatter([p.flops_per_byte for p in mine], [p.flops_per_s for p in mine], s=34, color=colour(kind),
                     edgecolor=INK, linewidth=0.5, label=word(kind), zorder=3)  # fmt: skip
    _name(axes, points, peak / bandwidth)
    slow = min([*(p.flops_per_s for p in points), peak / 10])
    axes.set_xlim(least, most)
    axes.set_ylim(slow / 2.5, peak * 2.2)
    axes.set(xlabel="FLOP per byte moved", ylabel="FLOP/s achieved")
    axes.set_title(f"Roofline of {device.title}: one layer of {model.name} on one rank")
    axes.legend(loc="upper left")
    grid(axes)
    return figure


def _name(axes: Axes, points: tuple[KernelPoint, ...], ridge: float) -> None:
    """Names of the forward kernels in a column beside each cloud, below and above the ridge."""
    named = [point for point in points if not point.name.endswith((" B", " W"))]
    for cloud in ([p for p in named if p.flops_per_byte < ridge], [p for p in named if p.flops_per_byte >= ridge]):
        if not cloud:
            continue
        column = 1.7 * max(point.flops_per_byte for point in cloud)
        level = math.inf
        for point in sorted(cloud, key=lambda p: -p.flops_per_s):
            level = min(math.log10(point.flops_per_s), level - LINE_DECADES)
            axes.annotate(
                point.name, (point.flops_per_byte, point.flops_per_s), xytext=(column, 10.0**level), va="center",
                textcoords="data", fontsize=7.5, color=QUIET,
                arrowprops={"arrowstyle": "-", "color": RULE, "linewidth": 0.7, "shrinkB": 3},
            )  # fmt: skip
