"""Pictures as values: a scene is a list of shapes, which a page draws as live SVG and a report as SVG text.

Colours are classes (`k-gemm`, `k-F`), defined once in `page.css` for light and dark. Every text goes through
`escape` here and through `textContent` on the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, TypeAlias

Pixels: TypeAlias = float
"""A place or a size on a picture, in CSS pixels."""
ATTRIBUTES = frozenset({
    "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "width", "height", "d", "points", "class", "text-anchor", "rx",
    "transform",
})  # fmt: skip
"""All that a shape may say; the page refuses others."""
TAGS = frozenset({"rect", "line", "path", "polyline", "circle", "text"})


@dataclass(frozen=True, slots=True)
class Shape:
    """One SVG element. `tip` is shown on hover; `data` says what a click on it means, as {"term": "time.tp"}."""

    tag: str
    attributes: Mapping[str, str | float]
    text: str = ""
    tip: str = ""
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture: its size in CSS pixels, what it says in words, its shapes from back to front."""

    name: str
    title: str
    words: str
    width: int
    height: int
    shapes: tuple[Shape, ...]


def scene_json(scene: Scene) -> dict[str, Any]:
    """The scene as the page reads it: each shape is [tag, attributes, text, tip, data]."""
    shapes = [[s.tag, dict(s.attributes), s.text, s.tip, dict(s.data)] for s in scene.shapes]
    return {"name": scene.name, "title": scene.title, "words": scene.words, "width": scene.width,
            "height": scene.height, "shapes": shapes}  # fmt: skip


def svg_text(scene: Scene) -> str:
    """The scene as an <svg> element for a page that has `page.css`."""
    size = f'viewBox="0 0 {scene.width} {scene.height}" width="{scene.width}" height="{scene.height}"'
    opening = f'<svg class="picture" role="img" {size} aria-label="{escape(scene.words)}">'
    return "\n".join([opening, *(_element(shape) for shape in scene.shapes), "</svg>"])


def _element(shape: Shape) -> str:
    attributes = "".join(f' {name}="{escape(_plain(value))}"' for name, value in shape.attributes.items())
    tip = f"<title>{escape(shape.tip)}</title>" if shape.tip else ""
    return f"<{shape.tag}{attributes}>{tip}{escape(shape.text)}</{shape.tag}>"


def _plain(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def rect(x: Pixels, y: Pixels, width: Pixels, height: Pixels, kind: str, *, tip: str = "", **data: str) -> Shape:
    """A filled box of class `kind`; sizes below nothing are nothing."""
    box = {"x": _round(x), "y": _round(y), "width": _round(max(width, 0.0)), "height": _round(max(height, 0.0))}
    return Shape("rect", {**box, "class": kind}, "", tip, data)


def text(x: Pixels, y: Pixels, words: str, kind: str = "label", anchor: str = "start", **data: str) -> Shape:
    """Words whose baseline starts, ends or is centred at (x, y)."""
    return Shape("text", {"x": _round(x), "y": _round(y), "class": kind, "text-anchor": anchor}, words, "", data)


def line(x1: Pixels, y1: Pixels, x2: Pixels, y2: Pixels, kind: str = "grid", *, tip: str = "") -> Shape:
    """A straight line of class `kind`."""
    ends = {"x1": _round(x1), "y1": _round(y1), "x2": _round(x2), "y2": _round(y2)}
    return Shape("line", {**ends, "class": kind}, "", tip)


def path(drawing: str, kind: str, *, tip: str = "") -> Shape:
    """An SVG path of class `kind`."""
    return Shape("path", {"d": drawing, "class": kind}, "", tip)


def circle(x: Pixels, y: Pixels, radius: Pixels, kind: str, *, tip: str = "", **data: str) -> Shape:
    """A point of class `kind`."""
    return Shape("circle", {"cx": _round(x), "cy": _round(y), "r": radius, "class": kind}, "", tip, data)


def _round(value: float) -> float:
    """Tenths of a pixel, as a screen shows them."""
    return round(float(value), 1)


def ticks(largest: float, count: int = 5) -> list[float]:
    """Round numbers from 0 to at most `largest`: about `count` steps of 1, 2 or 5 times a power of ten.

    >>> ticks(94.0)
    [0.0, 20.0, 40.0, 60.0, 80.0]
    """
    if largest <= 0:
        return [0.0]
    rough = largest / count
    power = 10.0 ** (len(f"{int(rough)}") - 1) if rough >= 1 else 10.0 ** -len(f"{int(1 / rough)}")
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor >= rough)
    return [i * step for i in range(int(largest / step + 1e-9) + 1)]
