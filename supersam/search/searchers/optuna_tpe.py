"""Optuna's multi-objective tree-structured Parzen estimator (Ozaki et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, IntDistribution

from supersam.search.journal import Trial
from supersam.search.pareto import cost_row
from supersam.search.searchers.base import Problem, Rng, Searcher
from supersam.search.searchers.genes import gene_choices, genes_of, spec_of
from supersam.space import SubnetSpec

optuna.logging.set_verbosity(optuna.logging.WARNING)


class OptunaSearcher(Searcher):
    """Asks and tells a study that lives in memory; the journal is what lasts."""

    _can_replay = False

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        choices = gene_choices(problem.space)
        self._genes: dict[str, BaseDistribution] = {
            name: IntDistribution(0, count - 1) for name, count in choices.items()
        }
        self._study = optuna.create_study(
            directions=["minimize"] * len(problem.objectives),
            # All genes at once: one by one, the trials would be ranked anew for each of them.
            sampler=optuna.samplers.TPESampler(seed=problem.seed % 2**32, multivariate=True),
        )
        self._open: dict[SubnetSpec, optuna.Trial] = {}
        self._values: dict[SubnetSpec, list[float]] = {}

    def tell(self, trials: Sequence[Trial]) -> None:
        """Complete what was asked for; add what comes from elsewhere."""
        for trial in trials:
            request = self._open.pop(trial.spec, None)
            values = None
            if trial.status == "complete":
                values = cost_row(trial.metrics, self.problem.objectives).tolist()
            if values is not None:
                self._values[trial.spec] = values
            if request is not None:
                self._close(request, values)
            elif values is not None:
                self._add(trial.spec, values)

    def _propose(self, rng: Rng) -> SubnetSpec:
        request = self._study.ask(self._genes)
        spec = spec_of(request.params, self.problem.space)
        if spec in self._proposed or not self.problem.is_feasible(spec):
            self._close(request, self._values.get(spec))
        else:
            self._open[spec] = request
        return spec

    def _close(self, request: optuna.Trial, values: list[float] | None) -> None:
        failed = optuna.trial.TrialState.FAIL
        self._study.tell(request, values, state=failed if values is None else None)

    def _add(self, spec: SubnetSpec, values: list[float]) -> None:
        """A subnet that was moved within the limits, or a reference."""
        genes = genes_of(spec, self.problem.space)
        if genes is not None:
            self._study.add_trial(
                optuna.create_trial(params=genes, distributions=self._genes, values=values)
            )
