"""What every searcher is: asked for new subnets, told what became of them, in a fixed order.

Proposals are a function of the problem and of what was told, never of time or of who finished
first: the same calls in the same order propose the same subnets. So a search that was killed is
repeated from its journal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from supersam.config import Constraint, SearchRun
from supersam.config.search import SamplingName
from supersam.search.costs import fit_limits, keeps_limits, known_costs
from supersam.search.journal import Trial
from supersam.space import SearchSpace, SubnetSpec, sample_by_size

Rng = np.random.Generator
_DRAWS_EACH = 200
"""Draws for a subnet that is new and keeps the limits, before a batch is left shorter."""
_PATIENCE = 20
"""Draws in vain after which one is taken at random instead, moved until it keeps the limits."""


@dataclass(frozen=True)
class Problem:
    """What is searched, and for what."""

    space: SearchSpace
    objectives: tuple[str, ...]
    limits: tuple[Constraint, ...] = ()
    """Hard constraints; the measured ones cannot be looked at before an evaluation."""
    seed: int = 0
    population: int = 32
    """Parents of an evolution, and subnets of a batch."""
    sampling: SamplingName = "genes"
    """How subnets are drawn at random."""
    first: tuple[SubnetSpec, ...] = ()
    """Proposed before anything else, in this order."""

    @classmethod
    def of(
        cls, search: SearchRun, space: SearchSpace, first: tuple[SubnetSpec, ...] = ()
    ) -> Problem:
        """What `search` is to find in `space`; `first` are the first proposals."""
        return cls(
            space=space,
            objectives=search.objectives,
            limits=search.constraints,
            seed=search.seed,
            population=search.population,
            sampling=search.sampling,
            first=first,
        )

    def sample(self, rng: Rng) -> SubnetSpec:
        """A random subnet of the space: its genes drawn one by one, or its size first."""
        if self.sampling == "genes":
            return self.space.sample(rng)
        return sample_by_size(self.space, rng, metric=self.sampling)

    def is_feasible(self, spec: SubnetSpec) -> bool:
        """Whether `spec` keeps the limits that are known in closed form."""
        return keeps_limits(known_costs(spec, self.space), self.limits)


class Searcher(ABC):
    """Proposes subnets, each once."""

    _can_replay = True
    """Whether `ask` changes nothing but what was proposed."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._proposed: set[SubnetSpec] = set()
        self._num_asked = 0
        self._first = deque(problem.first)

    def ask(self, count: int) -> list[SubnetSpec]:
        """Up to `count` feasible subnets not proposed before; fewer where few are left.

        A smaller `count` gives the first of them.
        """
        rng = np.random.default_rng([self.problem.seed, self._num_asked])
        self._num_asked += 1
        batch: list[SubnetSpec] = []
        in_vain = 0
        for _ in range(_DRAWS_EACH * count):
            if len(batch) == count:
                break
            stuck = in_vain % _PATIENCE == _PATIENCE - 1
            if self._first:
                spec = self._first.popleft()
            else:
                spec = self._draw_fitting(rng) if stuck else self._propose(rng)
            if spec in self._proposed or not self.problem.is_feasible(spec):
                in_vain += 1
                continue
            in_vain = 0
            self._proposed.add(spec)
            batch.append(spec)
        return batch

    def replay(self, specs: Sequence[SubnetSpec]) -> bool:
        """Take a whole batch as asked for, instead of asking again.

        False where asking alone brings a searcher's state back; then nothing is changed.
        """
        if not self._can_replay or self._first:
            return False
        self._num_asked += 1
        self._proposed |= set(specs)
        return True

    def tell(self, trials: Sequence[Trial]) -> None:
        """What became of a batch, in the order of its proposals; or reference subnets."""
        return

    @abstractmethod
    def _propose(self, rng: Rng) -> SubnetSpec:
        """One draw; it may be infeasible or known."""

    def _draw_fitting(self, rng: Rng) -> SubnetSpec:
        problem = self.problem
        return fit_limits(problem.sample(rng), problem.space, problem.limits, rng)


def complete_only(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that were seen on all images."""
    return [trial for trial in trials if trial.status == "complete"]
