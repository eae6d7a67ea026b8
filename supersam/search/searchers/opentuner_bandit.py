"""OpenTuner's bandit over an ensemble of techniques (Ansel et al. 2014), as in the paper's fork.

OpenTuner minimises one number. A front needs several: one tuner for each of some weightings of the
objectives (weighted Chebyshev distance to the ideal), asked in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from supersam.search.journal import Trial
from supersam.search.pareto import cost_row
from supersam.search.searchers.base import Problem, Rng, Searcher
from supersam.search.searchers.genes import gene_choices, spec_of
from supersam.space import SubnetSpec

# OpenTuner replaces the standard library's class of log lines when imported: it is put back below.
_FORMATTER = logging.Formatter
import opentuner  # noqa: E402 - so the imports cannot come first
from opentuner import tuningrunmain  # noqa: E402 - as above
from opentuner.api import TuningRunManager  # noqa: E402 - as above
from opentuner.measurement.interface import DefaultMeasurementInterface  # noqa: E402 - as above
from opentuner.resultsdb.models import DesiredResult, Result  # noqa: E402 - as above

logging.Formatter = _FORMATTER  # type: ignore[misc]  # mypy takes a class for a constant

_TUNERS = 4
_SCALED = 16
"""Complete trials after which the scale of the costs is settled."""
_EMPTY_GENERATIONS = 20
_WORST = 10.0
"""What an infeasible or hopeless subnet is said to cost; good ones are about 0 to 1."""


class OpenTunerSearcher(Searcher):
    """Several tuners in turn; their databases live in memory, the journal is what lasts."""

    _can_replay = False

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._weights = weightings(len(problem.objectives))
        self._ideal, self._span = np.zeros(1), np.ones(1)
        self._num_scaled = 0
        self._known: dict[SubnetSpec, Trial] = {}
        self._open: dict[SubnetSpec, tuple[int, DesiredResult]] = {}
        self._turn = 0
        self._state = random.Random(problem.seed).getstate()
        with self._own_randomness():
            self._tuners = [_build_tuner(problem) for _ in self._weights]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Report each to the tuner that asked for it, on a scale that the first batches set."""
        self._known |= {trial.spec: trial for trial in trials}
        self._set_scale()
        with self._own_randomness():
            for trial in trials:
                if trial.spec in self._open:
                    self._report(*self._open.pop(trial.spec), trial)

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

    def _next_request(self, number: int) -> DesiredResult | None:
        for _ in range(_EMPTY_GENERATIONS):  # it repeats itself, and then has no request
            request = self._tuners[number].get_next_desired_result()
            if request is not None:
                return request
        return None

    def _report(self, number: int, request: DesiredResult, trial: Trial | None) -> None:
        cost = _WORST
        if trial is not None and trial.status == "complete":
            row = (cost_row(trial.metrics, self.problem.objectives) - self._ideal) / self._span
            weighted = row * self._weights[number]
            cost = float(weighted.max() + 0.05 * weighted.sum())
        self._tuners[number].report_result(request, Result(time=cost))

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


def _build_tuner(problem: Problem) -> Any:
    tuningrunmain.init_logging = _leave_logging_alone
    arguments = argparse.ArgumentParser(parents=opentuner.argparsers()).parse_args(
        ["--no-dups", "--quiet", "--database=sqlite://", "--parallelism=1"]
    )
    manipulator = opentuner.ConfigurationManipulator()
    for name, count in gene_choices(problem.space).items():
        manipulator.add_parameter(opentuner.IntegerParameter(name, 0, count - 1))
    interface = DefaultMeasurementInterface(
        args=arguments, manipulator=manipulator, project_name="supersam", program_name="search"
    )
    return TuningRunManager(interface, arguments)


def _leave_logging_alone() -> None:
    """OpenTuner would send the whole process's log to a file of its own."""
