"""The door to matplotlib: empty figures, and files of them. No screen, no global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from supersam.runtime.atomic import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120


def new_figure(
    rows: int = 1, columns: int = 1, *, width_in: float = 8.0, height_in: float = 4.0
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row; sizes in inches."""
    from matplotlib.figure import Figure  # slow to import; not every process draws

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [axis for row in axes for axis in row]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG or SVG file, as the name says, whole or not at all."""
    from matplotlib import rc_context

    kind = path.suffix.removeprefix(".")
    # Without a date, and with names that are no random draws, equal figures are equal files.
    metadata: dict[str, str | None] = {"Date": None} if kind == "svg" else {}
    with rc_context({"svg.hashsalt": "supersam"}), atomic_file(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)


def figure_pixels(figure: Figure) -> NDArray[np.uint8]:
    """The figure as a picture, (H, W, 3) uint8 RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]  # no type in matplotlib
    pixels: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]  # no type in matplotlib
    picture: NDArray[np.uint8] = pixels[..., :3].copy()
    return picture


def save_pixels(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write a picture, (H, W, 3) uint8 RGB, as a PNG file, whole or not at all."""
    from matplotlib.image import imsave

    with atomic_file(path) as temporary:
        imsave(temporary, pixels, format="png")
