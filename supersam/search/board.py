"""A search on TensorBoard while it goes on: size and volume of the front, and its picture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from supersam.config import SearchRun
from supersam.runtime.metrics import MetricWriter
from supersam.search.journal import Trial
from supersam.search.pareto import MAXIMIZED, cost_matrix, hypervolume

_PICTURE_S = 5.0
"""Least seconds between two pictures."""


class Board:
    """Writes to the search's folder, over all its restarts."""

    def __init__(self, asked: SearchRun, folder: Path, *, first_trial: int) -> None:
        """first_trial: trials that the journal held at the start."""
        self._asked = asked
        self._writer = MetricWriter(folder, first_step=first_trial)
        self._last_picture = 0.0

    def show(self, trials: Sequence[Trial], front: Sequence[Trial]) -> None:
        """The state after some trials."""
        done = len(trials)
        complete = [trial for trial in trials if trial.status == "complete"]
        values = {
            "search/front_size": float(len(front)),
            "search/complete": float(len(complete)),
            "search/seconds": sum(trial.seconds for trial in trials),
        }
        if "miou" in self._asked.objectives and front:
            values["search/best_miou"] = max(trial.metrics["miou"] for trial in front)
        if complete:
            volume = front_volume(front, complete, self._asked.objectives)
            values["search/hypervolume"] = volume
        self._writer.scalars(values, done)
        if front and time.monotonic() - self._last_picture > _PICTURE_S:
            picture = draw_front(complete, front, self._asked.objectives)
            self._writer.image("search/front", picture, done)
            self._last_picture = time.monotonic()

    def finish(self, trials: Sequence[Trial], front: Sequence[Trial]) -> None:
        """The last picture, and a line of settings and results for the searches' comparison."""
        complete = [trial for trial in trials if trial.status == "complete"]
        asked = self._asked
        if complete:
            picture = draw_front(complete, front, asked.objectives)
            self._writer.image("search/front", picture, len(trials))
            results = {
                "search/front_size": float(len(front)),
                "search/hypervolume": front_volume(front, complete, asked.objectives),
            }
            settings = {
                "searcher": asked.searcher,
                "seed": asked.seed,
                "trials": asked.trials,
                "population": asked.population,
                "objectives": " ".join(asked.objectives),
                "constraint": " ".join(asked.constraint),
            }
            self._writer.hparams(settings, results)
        self._writer.close()


def front_volume(
    front: Sequence[Trial], trials: Sequence[Trial], objectives: Sequence[str]
) -> float:
    """Hypervolume of the front up to the worst trial, as a share of the box of all trials."""
    costs = cost_matrix(trials, objectives)
    best, span = costs.min(0), np.ptp(costs, axis=0)
    scaled = (cost_matrix(front, objectives) - best) / np.where(span > 0, span, 1.0)
    return hypervolume(scaled, np.ones(len(objectives)) * (1 + 1e-9))


def draw_front(
    trials: Sequence[Trial], front: Sequence[Trial], objectives: Sequence[str]
) -> NDArray[np.uint8]:
    """All trials and the front in the first objective against the last. (H, W, 3) uint8."""
    figure = Figure(figsize=(7, 4.5), dpi=90, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    x, y = objectives[-1], objectives[0]
    for some, style, label in ((trials, ".", "trials"), (front, "o-", "front")):
        ordered = sorted(some, key=lambda trial: trial.metrics[x])
        axes.plot(
            [t.metrics[x] for t in ordered], [t.metrics[y] for t in ordered], style, label=label
        )
    axes.set_xlabel(f"{x} ({'more' if x in MAXIMIZED else 'less'} is better)")
    axes.set_ylabel(f"{y} ({'more' if y in MAXIMIZED else 'less'} is better)")
    axes.legend()
    axes.grid(alpha=0.3)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    picture: NDArray[np.uint8] = pixels[..., :3].copy()
    return picture
