"""A searcher by its name; the libraries of the others are not imported."""

from __future__ import annotations

from supersam.config import SearchRun, UserError
from supersam.runtime.extensions import is_extension, load_extension
from supersam.search.searchers.base import Problem, Searcher
from supersam.search.searchers.baselines import ExhaustiveSearcher, RandomSearcher
from supersam.search.searchers.budget import (
    BudgetSearcher,
    greedy_path,
    read_sensitivities,
    spread,
)
from supersam.search.searchers.evolution import Nsga2Searcher, RegularizedSearcher
from supersam.search.searchers.surrogate import PredictorSearcher
from supersam.space import SearchSpace

_OWN: dict[str, type[Searcher]] = {
    "random": RandomSearcher,
    "exhaustive": ExhaustiveSearcher,
    "nsga2": Nsga2Searcher,
    "regularized": RegularizedSearcher,
    "predictor": PredictorSearcher,
    "budget": BudgetSearcher,
}


def pose_problem(search: SearchRun, space: SearchSpace) -> Problem:
    """What `search` is to find in `space`. Raises UserError where its evidence cannot be read."""
    if search.evidence is None:
        return Problem.of(search, space)
    some = spread(greedy_path(space, read_sensitivities(search.evidence, space)), space)
    count = len(some) if search.searcher == "budget" else search.population
    return Problem.of(search, space, tuple(some[:count]))


def build_searcher(name: str, problem: Problem) -> Searcher:
    """The searcher `name`, or module:class of the user. Raises UserError where it is missing."""
    if is_extension(name):
        own = load_extension(name, "--searcher")
        if not (isinstance(own, type) and issubclass(own, Searcher)):
            raise UserError(
                f"--searcher {name} is not a subclass of supersam.search.searchers.base.Searcher; "
                "docs/extending.md shows one"
            )
        return own(problem)
    if name in _OWN:
        return _OWN[name](problem)
    try:
        if name == "optuna":
            from supersam.search.searchers.optuna_tpe import OptunaSearcher

            return OptunaSearcher(problem)
        from supersam.search.searchers.opentuner_bandit import OpenTunerSearcher

        return OpenTunerSearcher(problem)
    except ModuleNotFoundError as fault:
        raise UserError(
            f"--searcher {name} needs {fault.name}; install it with pip install 'supersam[search]'"
        ) from fault
