"""Values that can be drawn. Who draws them is said by the roof (`simulator/__init__.py`), so that no lower floor knows
what a picture is made with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Painter = Callable[..., Any]
_painter: list[Painter] = []


def drawn_by(painter: Painter) -> None:
    """Say who draws: `painter(thing, picture, **options)` returns a matplotlib Figure."""
    _painter[:] = [painter]


class Drawable:
    """A value with pictures of it."""

    __slots__ = ()

    def plot(self, picture: str = "", **options: Any) -> Figure:
        """A picture of this value as a matplotlib Figure; without a name, the one that says most.

        `simulator.report.plot` lists the pictures of each kind of value and writes them to files. Raises InputError for
        a picture that there is not.
        """
        figure: Figure = _painter[0](self, picture, **options)
        return figure
