"""Optuna's multi-objective tree-structured Parzen estimator (Ozaki et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import optuna
from optuna.distributions import IntDistribution
from typing_extensions import Self

from supersam.search.journal import Trial
from supersam.search.pareto import cost_row
from supersam.search.searchers.base import Problem, Rng, Searcher, complete_only
from supersam.search.searchers.genes import gene_choices, genes_of, spec_of
from supersam.space import SubnetSpec

optuna.logging.set_verbosity(optuna.logging.WARNING)


class _Genes(dict[str, Any]):
    """By a gene's name its value, or its choices.

    A study copies them for each trial, but nothing changes them: the copy is the original.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class OptunaSearcher(Searcher):
    """Asks a study that lives in memory; the journal is what lasts.

    What it proposes follows from the complete trials and the number of the batch alone, so that
    a restart hands the study its trials and asks for nothing again.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._choices = gene_choices(problem.space)
        self._genes = _Genes(
            {name: IntDistribution(0, count - 1) for name, count in self._choices.items()}
        )
        self._study = optuna.create_study(directions=["minimize"] * len(problem.objectives))

    def ask(self, count: int) -> list[SubnetSpec]:
        """Begin the batch with randomness of its own."""
        words = np.random.SeedSequence([self.problem.seed, self._num_asked]).generate_state(1)
        # All genes at once: one by one, the trials would be ranked anew for each of them.
        self._study.sampler = optuna.samplers.TPESampler(seed=int(words[0]), multivariate=True)
        return super().ask(count)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Add what was seen on all images, whoever proposed it."""
        for trial in complete_only(trials):
            genes = self._genes_of(trial.spec)
            if genes is not None:
                values = cost_row(trial.metrics, self.problem.objectives).tolist()
                self._study.add_trial(self._complete(genes, values))

    def _complete(self, genes: dict[str, int], values: list[float]) -> optuna.trial.FrozenTrial:
        """A trial of the study. `optuna.create_trial` would copy and check the genes of each."""
        now = datetime.now()
        return optuna.trial.FrozenTrial(
            number=-1, trial_id=-1, state=optuna.trial.TrialState.COMPLETE, value=None,
            values=values, datetime_start=now, datetime_complete=now, params=_Genes(genes),
            distributions=self._genes, user_attrs={}, system_attrs={}, intermediate_values={},
        )  # fmt: skip

    def _propose(self, rng: Rng) -> SubnetSpec:
        request = self._study.ask(self._genes)
        # It is told as a trial of its own; one that failed is never looked at.
        self._study.tell(request, state=optuna.trial.TrialState.FAIL)
        return spec_of(request.params, self.problem.space)

    def _genes_of(self, spec: SubnetSpec) -> dict[str, int] | None:
        """The genes of a subnet; those of removed layers, which say nothing, are drawn."""
        genes = genes_of(spec, self.problem.space)
        if genes is None:
            return None
        drawn = np.random.default_rng(int(spec.key(), 16))
        for layer in set(range(self.problem.space.shape.depth)) - set(spec.layers):
            for name in (f"width{layer}", f"heads{layer}"):
                if name in genes:
                    genes[name] = int(drawn.integers(self._choices[name]))
        return genes
