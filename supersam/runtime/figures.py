"""The door to matplotlib: empty figures and PNG files. No screen, no global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
    """Write a PNG file, whole or not at all."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
