"""OpenTuner's bandit over an ensemble of techniques (Ansel et al. 2014), as in the paper's fork.

OpenTuner minimises one number. A front needs several: one tuner for each of some weightings of the
objectives (weighted Chebyshev distance to the ideal), asked in turn.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from supersam.search.journal import Trial
from supersam.search.pareto import cost_row
from supersam.search.searchers.base import Problem, Rng, Searcher, complete_only
from supersam.search.searchers.genes import gene_choices, genes_of, spec_of
from supersam.search.searchers.opentuner_driver import TechniqueDriver
from supersam.space import SubnetSpec

_TUNERS = 4
_SCALED = 16
"""Complete trials after which the scale of the costs is settled."""
_EMPTY_GENERATIONS = 20
_WORST = 10.0
"""What an infeasible or hopeless subnet is said to cost; good ones are about 0 to 1."""
_ERA = 1024
"""Trials after which the tuners begin anew, from the best subnets so far."""


@dataclass
class _Known:
    """What the searcher stands on when its tuners begin anew."""

    num_asked: int
    proposed: set[SubnetSpec]
    trials: dict[SubnetSpec, Trial]
    num_scaled: int
    ideal: np.ndarray
    span: np.ndarray


class OpenTunerSearcher(Searcher):
    """Several tuners in turn; their memory lasts for an era, the journal is what lasts.

    Batches of the journal are taken without asking. Where a batch has to be asked for in an era of
    which some were taken, the whole era is gone through again: a restart asks for one era at most.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._weights = weightings(len(problem.objectives))
        self._ideal, self._span = np.zeros(1), np.ones(1)
        self._num_scaled = 0
        self._known: dict[SubnetSpec, Trial] = {}
        self._open: dict[SubnetSpec, tuple[int, Any]] = {}
        self._calls: list[int | Sequence[Trial]] = []
        """Of this era: how many subnets were asked for, and which trials were told, in order."""
        self._taken: set[SubnetSpec] = set()
        """Proposals of this era that the tuners do not know of."""

    def ask(self, count: int) -> list[SubnetSpec]:
        """Ask the tuners, as they would be had they been asked for everything of their era."""
        if self._is_era_due:
            self._begin_era()
            self._build_tuners()
        elif self._taken:
            self._catch_up()
        self._calls.append(count)
        return super().ask(count)

    def replay(self, specs: Sequence[SubnetSpec]) -> bool:
        """Leave the tuners alone, until they have to be asked."""
        if self._first:
            return False
        if self._is_era_due:
            self._begin_era()
        self._calls.append(len(specs))
        self._taken |= set(specs)
        return super().replay(specs)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Report each to the tuner that asked for it, on a scale that the first batches set."""
        self._calls.append(trials)
        self._known |= {trial.spec: trial for trial in trials}
        self._set_scale()
        for trial in trials:
            if trial.spec in self._open:
                self._report(*self._open.pop(trial.spec), trial)

    @property
    def _is_era_due(self) -> bool:
        return self._num_asked % max(1, _ERA // self.problem.population) == 0

    def _begin_era(self) -> None:
        self._start = _Known(
            self._num_asked, set(self._proposed), dict(self._known),
            self._num_scaled, self._ideal, self._span,
        )  # fmt: skip
        self._calls, self._taken, self._open = [], set(), {}

    def _build_tuners(self) -> None:
        """New ones, with randomness of their own, that go on from the best for each weighting."""
        self._turn, self._open = 0, {}
        seed, number = self.problem.seed, self._num_asked
        self._state = random.Random(f"{seed}/{number}" if number else seed).getstate()
        with self._own_randomness():
            choices = gene_choices(self.problem.space)
            self._tuners = [TechniqueDriver(choices) for _ in self._weights]
        if number == 0:
            return  # the references are no better than any start
        known = complete_only(list(self._known.values()))
        for place, tuner in enumerate(self._tuners):
            best = min(known, key=partial(self._cost, place), default=None)
            genes = genes_of(best.spec, self.problem.space) if best is not None else None
            if best is not None and genes is not None:
                tuner.begin_from(genes, self._cost(place, best))

    def _catch_up(self) -> None:
        """Go through the era again, so that the tuners know what they would have been told."""
        start, calls, taken = self._start, self._calls, self._taken
        self._num_asked, self._proposed = start.num_asked, set(start.proposed)
        self._known, self._num_scaled = dict(start.trials), start.num_scaled
        self._ideal, self._span = start.ideal, start.span
        if start.num_asked == 0:
            self._first.extend(self.problem.first)
        self._begin_era()
        self._build_tuners()
        for call in calls:
            if isinstance(call, int):
                self._calls.append(call)
                super().ask(call)
            else:
                self.tell(call)
        self._proposed |= taken  # another version may have proposed otherwise

    def _propose(self, rng: Rng) -> SubnetSpec:
        number = self._turn % len(self._tuners)
        self._turn += 1
        with self._own_randomness():
            request = self._next_request(number)
            if request is None:
                return self.problem.sample(rng)
            spec = spec_of(request.configuration.data, self.problem.space)
            if spec in self._known:
                self._report(number, request, self._known[spec])
            elif spec in self._proposed or not self.problem.is_feasible(spec):
                self._report(number, request, None)
            else:
                self._open[spec] = (number, request)
        return spec

    def _next_request(self, number: int) -> Any:
        for _ in range(_EMPTY_GENERATIONS):  # it repeats itself, and then has no request
            request = self._tuners[number].next_request()
            if request is not None:
                return request
        return None

    def _report(self, number: int, request: Any, trial: Trial | None) -> None:
        cost = _WORST
        if trial is not None and trial.status == "complete":
            cost = self._cost(number, trial)
        self._tuners[number].report(request, cost)

    def _cost(self, number: int, trial: Trial) -> float:
        """Weighted Chebyshev distance to the ideal."""
        row = (cost_row(trial.metrics, self.problem.objectives) - self._ideal) / self._span
        weighted = row * self._weights[number]
        return float(weighted.max() + 0.05 * weighted.sum())

    def _set_scale(self) -> None:
        """The costs of complete trials span 0 to 1, once there are enough of them to tell.

        Two references are not enough: their mIoU may differ far less than that of the subnets.
        Afterwards the scale stays, as the tuners compare each cost with those told before.
        """
        if self._num_scaled >= _SCALED:
            return
        rows = [
            cost_row(t.metrics, self.problem.objectives)
            for t in self._known.values()
            if t.status == "complete"
        ]
        if len(rows) >= 2:
            self._num_scaled = len(rows)
            self._ideal = np.min(rows, axis=0)
            span = np.max(rows, axis=0) - self._ideal
            self._span = np.where(span > 0, span, 1.0)

    @contextlib.contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """OpenTuner draws from the process's generator: lend it one that only it uses."""
        others = random.getstate()
        random.setstate(self._state)
        try:
            yield
        finally:
            self._state = random.getstate()
            random.setstate(others)


def weightings(objectives: int) -> np.ndarray:
    """(T, K) weights of the tuners, each summing to 1, none of them below 0.1."""
    if objectives == 1:
        return np.ones((1, 1))
    if objectives == 2:
        first = np.linspace(0.2, 0.8, _TUNERS)
        return np.stack((first, 1 - first), axis=1)
    shares = np.random.default_rng(0).dirichlet(np.ones(objectives) * 2, _TUNERS)
    return 0.1 + (1 - 0.1 * objectives) * shares
