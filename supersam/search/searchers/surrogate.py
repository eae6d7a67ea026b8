"""A searcher that evolves on an accuracy predictor, and evaluates what looks best there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from supersam.search.costs import fit_limits, known_costs
from supersam.search.journal import Trial
from supersam.search.pareto import MAXIMIZED, Costs
from supersam.search.predictor import FEWEST, GenePredictor
from supersam.search.searchers.base import Problem, Rng, Searcher, complete_only
from supersam.search.searchers.evolution import best_first, breed
from supersam.space import SubnetSpec

_GENERATIONS = 20
_EXPLORE = 0.2
"""Share of plain random draws among the proposals."""


class PredictorSearcher(Searcher):
    """NSGA-II whose children are judged by a predictor; the best of many are evaluated.

    It is fitted anew for each batch, on the trials of the batches told, in their order: a restart
    fits on the same numbers. Another library or processor may sum them otherwise in the last digit.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._known: list[Trial] = []
        self._promising: list[SubnetSpec] = []

    def ask(self, count: int) -> list[SubnetSpec]:
        """Evolve on the predictor first."""
        rng = np.random.default_rng([self.problem.seed, self._num_asked, 1])
        self._promising = self._evolve(rng) if len(self._known) >= FEWEST else []
        return super().ask(count)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Add trials to fit the predictor on."""
        self._known += complete_only(trials)

    def _propose(self, rng: Rng) -> SubnetSpec:
        if not self._promising or rng.random() < _EXPLORE:
            return self.problem.sample(rng)
        return self._promising.pop(0)

    def _evolve(self, rng: Rng) -> list[SubnetSpec]:
        """New subnets whose predicted costs are best, best first."""
        problem, models = self.problem, self._fit()
        size = 4 * problem.population
        pool = list(dict.fromkeys(trial.spec for trial in self._known))
        for _ in range(_GENERATIONS):
            parents = [pool[i] for i in best_first(self._costs(pool, models), size)]
            children = (breed(parents, problem.space, rng) for _ in range(size))
            fitting = (fit_limits(child, problem.space, problem.limits, rng) for child in children)
            pool = list(dict.fromkeys((*parents, *fitting)))
        order = best_first(self._costs(pool, models), len(pool))
        return [pool[i] for i in order if pool[i] not in self._proposed]

    def _fit(self) -> dict[str, GenePredictor]:
        """A predictor of every objective that no formula gives."""
        specs = [trial.spec for trial in self._known]
        closed = known_costs(specs[0], self.problem.space)
        return {
            name: GenePredictor(
                self.problem.space,
                specs,
                np.array([trial.metrics[name] for trial in self._known]),
            )
            for name in self.problem.objectives
            if name not in closed
        }

    def _costs(self, specs: list[SubnetSpec], models: dict[str, GenePredictor]) -> Costs:
        """(N, K) predicted objectives as costs."""
        # Rounded: sums differ in their last digits by where arrays lie, and equals would not tie.
        predicted = {name: model.predict(specs).round(9) for name, model in models.items()}
        closed = [known_costs(spec, self.problem.space) for spec in specs]
        columns = [
            predicted[name] if name in predicted else np.array([c[name] for c in closed])
            for name in self.problem.objectives
        ]
        signs = [-1.0 if name in MAXIMIZED else 1.0 for name in self.problem.objectives]
        return np.stack(columns, axis=1) * signs
