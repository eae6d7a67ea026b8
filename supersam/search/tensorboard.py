"""A search on TensorBoard while it goes on: size and volume of the front, and its picture."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from supersam.config import SearchRun
from supersam.runtime.metrics import MetricWriter
from supersam.search.front import SearchResult
from supersam.search.journal import Trial
from supersam.search.pareto import MAXIMIZED, cost_matrix, hypervolume
from supersam.search.report.figures import front_picture

_PICTURE_S = 5.0
"""Least seconds between two pictures."""
_CORNERS = ("largest", "smallest")


class TensorBoard:
    """Writes to the search's folder, over all its restarts."""

    def __init__(self, search: SearchRun, *, first_trial: int) -> None:
        """first_trial: trials that the journal held at the start."""
        self._search = search
        self._writer = MetricWriter(search.folder, first_step=first_trial)
        self._last_picture = 0.0

    def show(
        self, trials: Sequence[Trial], front: Sequence[Trial], references: Mapping[str, Trial]
    ) -> None:
        """The state after some trials."""
        complete = [trial for trial in trials if trial.status == "complete"]
        values = {
            **self._summary(front, references),
            "search/complete": float(len(complete)),
            "search/evaluation_s": sum(trial.seconds for trial in trials),
        }
        self._writer.scalars(values, len(trials))
        if time.monotonic() - self._last_picture > _PICTURE_S:
            self._draw(trials, front, references)
            self._last_picture = time.monotonic()

    def finish(self, trials: Sequence[Trial], result: SearchResult) -> None:
        """The last pictures, and a line of settings and results for the searches' comparison.

        What was selected on and what was measured on other images have names of their own.
        """
        search = self._search
        front, references = result.front, result.references
        measured = list(result.measured.values())
        if any(trial.status == "complete" for trial in trials):
            self._draw(trials, front, references)
            settings: dict[str, float | str | bool] = {
                "searcher": search.searcher,
                "seed": search.seed,
                "trials": search.trials,
                "population": search.population,
                "objectives": " ".join(search.objectives),
                "constraint": " ".join(search.constraint) or "none",
            }
            values = self._summary(front, references)
            if measured:
                values["search/final_best_miou"] = max(t.metrics["miou"] for t in measured)
                self._draw_final(len(trials), measured, result.measured_references)
            self._writer.hparams(settings, values)
        self._writer.close()

    def _summary(self, front: Sequence[Trial], references: Mapping[str, Trial]) -> dict[str, float]:
        values = {"search/front_size": float(len(front))}
        if "miou" in self._search.objectives and front:
            values["search/best_miou"] = max(trial.metrics["miou"] for trial in front)
        if set(_CORNERS) <= set(references):
            corners = [references[name] for name in _CORNERS]
            values["search/hypervolume"] = front_volume(front, corners, self._search.objectives)
        return values

    def _draw(
        self, trials: Sequence[Trial], front: Sequence[Trial], references: Mapping[str, Trial]
    ) -> None:
        complete = [trial for trial in trials if trial.status == "complete"]
        picture = front_picture(complete, front, references, self._search.objectives)
        self._writer.image("search/front_selected_on", picture, len(trials))

    def _draw_final(
        self, step: int, measured: Sequence[Trial], references: Mapping[str, Trial]
    ) -> None:
        picture = front_picture([], measured, references, self._search.objectives)
        self._writer.image("search/front_measured_on_final_data", picture, step)


def front_volume(
    front: Sequence[Trial], corners: Sequence[Trial], objectives: Sequence[str]
) -> float:
    """Hypervolume of the front in a box that stays while the search goes on: it never falls.

    The box reaches from 0 to 1 in mIoU, and between `corners`, the largest and the smallest subnet,
    in every other objective. So against one cost it is the best mIoU below a budget, on average
    over the budgets.
    """
    costs = cost_matrix(corners, objectives)
    low, high = costs.min(0), costs.max(0)
    for column, name in enumerate(objectives):
        if name in MAXIMIZED:
            low[column], high[column] = -1.0, 0.0
    span = np.where(high > low, high - low, 1.0)
    scaled = (cost_matrix(front, objectives) - low) / span
    return hypervolume(np.maximum(scaled, 0.0), np.ones(len(objectives)))
