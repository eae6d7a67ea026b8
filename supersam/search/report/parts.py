"""What a page is made of, and the page as text: `page.html` is its one template."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from supersam.search.report.drawing import SubnetDrawing


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    look: Literal["", "note", "warning"] = ""
    code: str = ""
    """A command at its end."""
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Chart:
    """Points and lines that a reader can point at; `page.js` draws them."""

    data: dict[str, Any]
    """Plain values: labels `x` and `y`, and `series` of points; see `chart_series`."""
    caption: str
    fallback: str = ""
    """A picture of the same where scripts are off."""
    kind: ClassVar[str] = "chart"


@dataclass(frozen=True)
class Bar:
    """A number and its interval as a bar, px of 150."""

    value: float
    zero: float
    left: float
    width: float
    low: float
    high: float
    resolved: bool


@dataclass(frozen=True)
class Cell:
    """A cell of a table; `value` orders it, where its text does not."""

    text: str
    value: float | None = None
    bar: Bar | None = None


@dataclass(frozen=True)
class Row:
    """A line of a table; dots of charts with its id point at it."""

    cells: Sequence[Cell]
    id: str = ""


@dataclass(frozen=True)
class Table:
    """A table that sorts by any column."""

    head: Sequence[str]
    rows: Sequence[Row]
    sortable: bool = True
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    rows: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Drawings:
    """Subnets side by side."""

    drawings: Sequence[SubnetDrawing]
    kind: ClassVar[str] = "drawings"


@dataclass(frozen=True)
class Picture:
    """A picture with a line below it."""

    image: str
    """See `png_uri`."""
    caption: str


@dataclass(frozen=True)
class Panels:
    """Pictures in columns, row by row."""

    heads: Sequence[str]
    panels: Sequence[Picture]
    caption: str
    kind: ClassVar[str] = "panels"


Part = Text | Chart | Table | Facts | Drawings | Panels


@dataclass(frozen=True)
class Section:
    """A part of a page with a title; an empty one for the beginning."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    headline: str
    """One sentence that says what was found."""
    sections: Sequence[Section]


def render(page: Page) -> str:
    """The page as HTML. Every text in it is escaped."""
    return _templates().get_template("page.html").render(page=page)


def render_drawing(drawing: SubnetDrawing) -> str:
    """A drawing as an SVG file of its own."""
    return _templates().get_template("subnet.svg").render(drawing=drawing)


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("supersam.search", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def svg_uri(file: Path) -> str:
    """An SVG file as an address that holds it."""
    return f"data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode()}"


def png_uri(pixels: NDArray[np.uint8]) -> str:
    """Pixels, (H, W, 3) uint8 RGB, as an address that holds them as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
