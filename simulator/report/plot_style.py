"""The one style of every matplotlib picture, its colours, and pictures as bytes that do not change."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any, ParamSpec

from simulator.errors import InputError, Problem, did_you_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, RULE, BAD = "#16191d", "#58606b", "#d5d9df", "#b02a00"
BLUE, SKY, GREEN, ORANGE, RED, PURPLE, YELLOW = (
    "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#f0e442",
)  # fmt: skip
GREY, SLATE = "#9aa1aa", "#5f6771"
FAMILIES = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, SLATE)
"""Colours of things that have no colour of their own."""
COLOURS: Mapping[str, str] = {
    "gemm": BLUE, "weights": BLUE, "grouped_gemm": SKY, "gradients": SKY, "attention": GREEN,
    "gathered_parameters": GREEN, "pointwise": "#7fb8a4", "working_set": "#7fb8a4", "lookup": "#b5d6ca",
    "recompute": YELLOW, "logits": YELLOW, "optimizer": PURPLE, "tp": ORANGE, "activations": ORANGE, "cp": "#f3c969",
    "etp": "#f0b28a", "ep": "#b5541c", "dp": RED, "communication_buffers": RED, "pp": "#8a3d0c", "bubble": GREY,
    "fragmentation": GREY, "host": SLATE, "context": SLATE,
}  # fmt: skip
"""Colour of each part, as on the page and in the report (page.css)."""
FORMATS = ("png", "svg", "pdf")
P = ParamSpec("P")


@contextmanager
def style() -> Iterator[None]:
    """The style sheet, for as long as the block runs."""
    from matplotlib import rc_context

    with as_file(files("simulator.report") / "simulator.mplstyle") as sheet, rc_context(fname=sheet):
        yield


def styled(picture: Callable[P, Figure]) -> Callable[P, Figure]:
    """A function that draws a figure, drawing it in the style."""

    @wraps(picture)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style():
            return picture(*args, **kwargs)

    return drawn


def new_figure(width_inches: float = 7.2, height_inches: float = 4.0) -> Figure:
    """An empty figure that lays itself out. Belongs to no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def colour(part: str) -> str:
    """The colour of a part; grey for one that is not known."""
    return COLOURS.get(part, GREY)


def picture_bytes(figure: Figure, kind: str = "png") -> bytes:
    """The figure as a file's content, the same bytes for the same figure (no date, no random ids).

    kind: png, svg or pdf. Raises InputError for another.
    """
    if kind not in FORMATS:
        problem = f"{kind!r} is no kind of picture: {', '.join(FORMATS)}."
        raise InputError([Problem(problem, "--plot", did_you_mean(kind, FORMATS))])
    metadata: dict[str, Any] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None},
                                "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}[kind]  # fmt: skip
    held = io.BytesIO()
    with style():
        figure.savefig(held, format=kind, metadata=metadata)
    return held.getvalue()


def grid(axes: Axes, which: str = "both") -> None:
    """Quiet lines behind the data."""
    axes.grid(visible=True, axis=which)  # type: ignore[arg-type]


def legend_beside(axes: Axes, **options: Any) -> None:
    """The legend to the right of the axes, in the order of drawing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, **options)
