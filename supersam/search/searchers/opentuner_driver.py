"""OpenTuner's techniques without its database, which takes 20 ms and more for each request.

The techniques and the bandit over them are OpenTuner's. What they ask of a tuning run is kept in
dictionaries here, and their draws follow from the random numbers alone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def _log_lines_kept() -> Iterator[None]:
    """Put the standard library's class of log lines back, which OpenTuner's import replaces."""
    formatter = logging.Formatter
    yield
    logging.Formatter = formatter  # type: ignore[misc]  # mypy takes a class for a constant


with _log_lines_kept():
    import opentuner
    from opentuner.resultsdb.models import Configuration, Result
    from opentuner.search.bandittechniques import AUCBanditMetaTechnique
    from opentuner.search.differentialevolution import DifferentialEvolutionAlt, PopulationMember
    from opentuner.search.evolutionarytechniques import NormalGreedyMutation, UniformGreedyMutation
    from opentuner.search.objective import MinimizeTime
    from opentuner.search.simplextechniques import RandomNelderMead

Genes = dict[str, int]
OnResult = Callable[[Any], None]


class TechniqueDriver:
    """Asks OpenTuner's default bandit for genes to try, one request at a time.

    It is also the driver that the techniques know: they call its other public methods.
    """

    generation = 0
    tuning_run = None

    def __init__(self, choices: Mapping[str, int]) -> None:
        """choices: number of choices of each gene."""
        self.manipulator = _Genes()
        for name, count in choices.items():
            self.manipulator.add_parameter(opentuner.IntegerParameter(name, 0, count - 1))
        self.objective = _LeastCost()
        self.objective.set_driver(self)
        self.best_result: Any = None
        self.costs: dict[Any, float] = {}
        """Of each configuration that was reported."""
        self._configurations: dict[tuple[tuple[str, int], ...], Any] = {}
        self._first: dict[Any, Any] = {}
        self._results: dict[Any, Any] = {}
        self._new: list[Any] = []
        self._waiting: list[tuple[Any, OnResult]] = []
        self._bandit = _default_bandit()
        self._bandit.set_driver(self)

    def next_request(self) -> Any:
        """A request whose `configuration.data` are genes to try; None where nothing new came."""
        self._tell_techniques()
        request = self._bandit.desired_result()
        if not request:
            return None
        first = self._first.setdefault(request.configuration, request)
        if first is request:
            return request
        self.register_result_callback(
            first, lambda result: self._results.__setitem__(request, result)
        )
        return None

    def report(self, request: Any, cost: float) -> None:
        """What came of a request: less is better."""
        result = Result(configuration=request.configuration, time=cost, state="OK")
        self.costs[request.configuration] = cost
        self._results[request] = result
        self._new.append(result)

    def begin_from(self, genes: Genes, cost: float) -> None:
        """Let the techniques improve on `genes`, before the first request."""
        self.best_result = Result(
            configuration=self.get_configuration(genes), time=cost, state="OK"
        )
        self.costs[self.best_result.configuration] = cost

    def _tell_techniques(self) -> None:
        for result in self._new:
            result.was_new_best = self.best_result is None or result.time < self.best_result.time
            if result.was_new_best:
                self.best_result = result
        self._new = []
        waiting, self._waiting = self._waiting, []
        for request, callback in waiting:
            self.register_result_callback(request, callback)

    def register_result_callback(self, request: Any, callback: OnResult) -> None:
        """Call `callback` with the result of a request, once it is known."""
        if request in self._results:
            callback(self._results[request])
        else:
            self._waiting.append((request, callback))

    def get_configuration(self, genes: Genes) -> Any:
        """The one object that stands for these genes."""
        key = self.manipulator.hash_config(genes)
        if key not in self._configurations:
            self._configurations[key] = Configuration(data=genes)
        return self._configurations[key]

    def has_results(self, configuration: Any) -> bool:
        """Whether a cost was reported."""
        return configuration in self.costs

    def add_plugin(self, plugin: Any) -> None:
        """Do nothing: the techniques here want no notices."""


class _Genes(opentuner.ConfigurationManipulator):  # type: ignore[misc]  # OpenTuner is untyped
    """Genes are a flat dictionary of numbers: quick to compare and to copy."""

    def hash_config(self, config: Genes) -> tuple[tuple[str, int], ...]:
        return tuple(sorted(config.items()))  # by name: techniques shuffle the parameters

    def copy(self, config: Genes) -> Genes:
        return dict(config)


class _LeastCost(MinimizeTime):  # type: ignore[misc]  # OpenTuner is untyped
    """Compares what was reported; what was not is worse than everything."""

    def config_compare(self, config1: Any, config2: Any) -> int:
        costs = self.driver.costs
        one, other = (costs.get(config, float("inf")) for config in (config1, config2))
        return int(one > other) - int(one < other)

    def limit_from_config(self, config: Any) -> None:
        """No evaluation is cut short."""


class _Member(PopulationMember):  # type: ignore[misc]  # OpenTuner is untyped
    """A member with a hash of its own.

    Differential evolution draws from a set of members, and sets are ordered by hashes. By default
    those are addresses, which differ in a second process.
    """

    def __init__(self, config: Any, number: int) -> None:
        super().__init__(config, submitted=False)
        self._number = number

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _DifferentialEvolution(DifferentialEvolutionAlt):  # type: ignore[misc]  # as above
    def initial_population(self) -> None:
        self.population = [
            _Member(self.driver.get_configuration(self.manipulator.random()), number)
            for number in range(self.population_size)
        ]


def _default_bandit() -> Any:
    """OpenTuner's AUCBanditMetaTechniqueA."""
    return AUCBanditMetaTechnique([
        _DifferentialEvolution(name="DifferentialEvolutionAlt"),
        UniformGreedyMutation(),
        NormalGreedyMutation(mutation_rate=0.3),
        RandomNelderMead(),
    ])  # fmt: skip
