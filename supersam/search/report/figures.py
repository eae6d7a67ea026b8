"""Figures of searches: fronts with their intervals, contributions, hypervolume over trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from supersam.runtime.figures import figure_pixels, new_figure, save_figure
from supersam.search.journal import Trial
from supersam.search.report.contributions import Contribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "miou": "mIoU",
    "params_m": "parameters, millions",
    "flops_g": "GFLOPs, one image and prompt",
    "latency_ms": "latency, ms",
    "peak_mem_mib": "peak memory, MiB",
}
SHORT = {
    "miou": "mIoU",
    "params_m": "M parameters",
    "flops_g": "GFLOPs",
    "latency_ms": "latency ms",
    "peak_mem_mib": "memory MiB",
}
NAMES = {
    "miou": "mIoU",
    "params_m": "parameters",
    "flops_g": "FLOPs",
    "latency_ms": "latency",
    "peak_mem_mib": "peak memory",
}
_WIDTH_IN, _HEIGHT_IN = 5.2, 3.6  # narrow: a phone scales it down, and letters with it
_FRONT, _TRIAL = "#2f6f9f", "#9aa5b1"
_MARKS = {"pretrained": ("*", "#7c3aed"), "largest": ("s", "#b45309"), "smallest": ("^", "#0f766e")}
_OTHER = ("D", "#334155")
_RINGS = {"cheapest": "#0891b2", "knee": "#d97706", "best": "#dc2626"}


def draw_trials(path: Path, trials: Sequence[Trial], objectives: Sequence[str]) -> None:
    """Every complete trial as the search saw it, coloured by when it was proposed."""
    figure, (axes,) = new_figure(width_in=_WIDTH_IN, height_in=_HEIGHT_IN)
    x, y = objectives[-1], objectives[0]
    points = axes.scatter(
        [t.metrics[x] for t in trials],
        [t.metrics[y] for t in trials],
        c=np.arange(len(trials)),
        cmap="viridis",
        s=18,
    )
    figure.colorbar(points, ax=axes, label="trial")
    _name(axes, x, y)
    save_figure(figure, path)


def front_picture(
    trials: Sequence[Trial],
    front: Sequence[Trial],
    references: Mapping[str, Trial],
    objectives: Sequence[str],
) -> NDArray[np.uint8]:
    """The state of a search while it goes on, (H, W, 3) uint8."""
    figure, (axes,) = new_figure(width_in=_WIDTH_IN, height_in=_HEIGHT_IN)
    x, y = objectives[-1], objectives[0]
    ordered = sorted(front, key=lambda trial: trial.metrics[x])
    marks = [("trials", trials, ".", _TRIAL), ("front", ordered, "o-", _FRONT)]
    marks += [(n, [trial], *_MARKS.get(n, _OTHER)) for n, trial in references.items()]
    for name, some, mark, colour in marks:
        values = ([trial.metrics[axis] for trial in some] for axis in (x, y))
        axes.plot(*values, mark, color=colour, label=name)
    _name(axes, x, y)
    _legend(axes)
    return figure_pixels(figure)


def draw_front(
    path: Path,
    front: Sequence[Trial],
    references: Mapping[str, Trial],
    picks: Mapping[str, Trial],
    objectives: Sequence[str],
) -> None:
    """The front and the fixed subnets, with the intervals of mIoU."""
    figure, (axes,) = new_figure(width_in=_WIDTH_IN, height_in=_HEIGHT_IN)
    x, y = objectives[-1], objectives[0]
    ordered = sorted(front, key=lambda trial: trial.metrics[x])
    _plot(axes, ordered, x, y, fmt="o-", color=_FRONT, label="front")
    for name, trial in references.items():
        mark, colour = _MARKS.get(name, _OTHER)
        _plot(axes, [trial], x, y, fmt=mark, color=colour, label=name)
    for name, trial in picks.items():  # rings: words beside points would cross the intervals
        axes.plot(
            trial.metrics[x],
            trial.metrics[y],
            "o",
            markersize=12,
            markerfacecolor="none",
            markeredgewidth=1.8,
            markeredgecolor=_RINGS.get(name, _OTHER[1]),
            label=name,
            zorder=3,
        )
    _name(axes, x, y)
    _legend(axes)
    save_figure(figure, path)


def draw_contributions(path: Path, found: Sequence[Contribution]) -> None:
    """Predicted change of mIoU of each dimension, with intervals, the largest loss on top."""
    height = 0.8 + 0.22 * len(found)
    figure, (axes,) = new_figure(width_in=_WIDTH_IN, height_in=height)
    place = np.arange(len(found))[::-1]
    change = np.array([each.miou for each in found])
    low, high = np.array([each.interval for each in found]).T
    errors = np.abs(np.stack((change - np.minimum(low, change), np.maximum(high, change) - change)))
    colours = [_FRONT if each.is_resolved else _TRIAL for each in found]
    axes.barh(place, change, color=colours, height=0.66)
    axes.errorbar(change, place, xerr=errors, fmt="none", ecolor="#334155", elinewidth=0.9)
    axes.set_yticks(place, [f"{each.dimension}, {each.change}" for each in found], fontsize=8)
    axes.axvline(0, color="#334155", linewidth=0.8)
    axes.set_xlabel("change of mIoU")
    axes.locator_params(axis="x", nbins=6)
    axes.grid(alpha=0.3, axis="x")
    axes.set_ylim(-0.7, len(found) - 0.3)
    save_figure(figure, path)


def draw_volumes(path: Path, curves: Mapping[str, Sequence[Sequence[float]]], title: str) -> None:
    """Hypervolume after each trial: a line a seed, a colour a searcher."""
    figure, (axes,) = new_figure(width_in=_WIDTH_IN, height_in=_HEIGHT_IN)
    for index, (name, lines) in enumerate(curves.items()):
        for number, line in enumerate(lines):
            label = name if number == 0 else None
            axes.plot(np.arange(1, len(line) + 1), line, color=f"C{index}", label=label, alpha=0.85)
    axes.set_xlabel("trials")
    axes.set_ylabel("hypervolume, share of all together")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def _plot(
    axes: Axes, trials: Sequence[Trial], x: str, y: str, *, fmt: str, color: str, label: str
) -> None:
    values = np.array([t.metrics[y] for t in trials])
    errors = None
    if y == "miou" and all("miou_lo" in t.metrics for t in trials):
        low, high = (np.array([t.metrics[n] for t in trials]) for n in ("miou_lo", "miou_hi"))
        errors = np.stack((values - low, high - values))
    axes.errorbar(
        [t.metrics[x] for t in trials],
        values,
        yerr=errors,
        fmt=fmt,
        color=color,
        label=label,
        markersize=6,
        linewidth=1.2,
        elinewidth=0.8,
        capsize=2,
    )


def _legend(axes: Axes) -> None:
    """Above the axes: intervals fill the frame, and nothing inside it stays free."""
    axes.legend(
        frameon=False,
        fontsize=8,
        ncols=4,
        labelspacing=0.9,
        loc="lower left",
        bbox_to_anchor=(0, 1),
    )


def _name(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(LABELS[x])
    axes.set_ylabel(LABELS[y])
    axes.grid(alpha=0.3)
