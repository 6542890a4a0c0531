"""Options that take a quantity with its unit, as files do: "2.50 USD/h", "90 s", "300B"."""

from __future__ import annotations

from typing import Any

import click

from simulator.errors import InputError
from simulator.units import parse_quantity


class Quantity(click.ParamType):  # type: ignore[type-arg]
    """A quantity of one dimension of `simulator.units`, as an SI float."""

    def __init__(self, dimension: str) -> None:
        self.dimension = dimension
        self.name = dimension

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return parse_quantity(value, self.dimension)
        except InputError as error:
            self.fail(str(error), param, ctx)


class FiniteRange(click.FloatRange):
    """A float between bounds; neither NaN nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if number != number or number in (float("inf"), float("-inf")):  # noqa: PLR0124 (NaN is no number)
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number
