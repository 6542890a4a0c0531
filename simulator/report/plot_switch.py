"""The five partitionings of Switch Transformer (Fedus 2022, Figure 9): which core holds which weights and tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.report.plot_style import BLUE, GREEN, INK, ORANGE, PURPLE, QUIET, RED, SKY, YELLOW, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("data", "model", "model and data", "expert and data", "expert, model and data")
SIDE = 4
_SHADES = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, "#8a3d0c", "#7fb8a4", "#f0b28a", "#b5541c", "#5f6771",
           "#b5d6ca", "#f3c969", "#004d7a", "#e6c8d8")  # fmt: skip


def weights_of(kind: str, core: int) -> tuple[int, int]:
    """Which tensor's weights core `core` of 16 holds, and which slice of them."""
    row, column = divmod(core, SIDE)
    return {
        "data": (0, 0), "model": (0, core), "model and data": (0, column), "expert and data": (core, 0),
        "expert, model and data": (row, column),
    }[kind]  # fmt: skip


def tokens_of(kind: str, core: int) -> int:
    """Which share of the batch core `core` of 16 works on."""
    row = core // SIDE
    return {
        "data": core, "model": 0, "model and data": row, "expert and data": core, "expert, model and data": row,
    }[kind]  # fmt: skip


@styled
def switch_picture() -> Figure:
    """Sixteen cores, five ways: above how weights are split, beneath how the batch is. Equal colours are equal data.

    Four-way model parallelism splits a tensor in four; with experts every colour is another expert's weights, and
    more cores hold more parameters.
    """
    figure = new_figure(8.2, 3.9)
    rows = figure.subplots(2, len(KINDS))
    for column, kind in enumerate(KINDS):
        upper, lower = rows[0][column], rows[1][column]
        _cores(upper, [_weight_square(kind, core) for core in range(SIDE * SIDE)])
        _cores(lower, [(tokens_of(kind, core), (0.0, 0.0, 1.0, 1.0)) for core in range(SIDE * SIDE)])
        upper.set_title(kind.replace(", ", ",\n").replace(" and ", "\n+ "), fontsize=9, loc="center")
    rows[0][0].set_ylabel("weights of a core", color=INK)
    rows[1][0].set_ylabel("tokens of a core", color=INK)
    return figure


def _weight_square(kind: str, core: int) -> tuple[int, tuple[float, float, float, float]]:
    """Colour and (x, y, width, height) of the share of a tensor that a core holds, inside its unit square."""
    tensor, part = weights_of(kind, core)
    if kind == "model":
        row, column = divmod(part, SIDE)
        return tensor, (column / SIDE, row / SIDE, 1 / SIDE, 1 / SIDE)
    if "model" in kind:
        return tensor, (part / SIDE, 0.0, 1 / SIDE, 1.0)
    return tensor, (0.0, 0.0, 1.0, 1.0)


def _cores(axes: Axes, held: list[tuple[int, tuple[float, float, float, float]]]) -> None:
    from matplotlib.patches import Rectangle

    for core, (shade, (x, y, width, height)) in enumerate(held):
        row, column = divmod(core, SIDE)
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor="#f5f6f8", edgecolor=QUIET, linewidth=0.6))
        axes.add_patch(Rectangle((column + 0.08 + 0.84 * x, row + 0.08 + 0.84 * y), 0.84 * width, 0.84 * height,
                                 facecolor=_SHADES[shade % len(_SHADES)]))  # fmt: skip
    axes.set(xlim=(-0.05, SIDE + 0.05), ylim=(SIDE + 0.05, -0.05), xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)
