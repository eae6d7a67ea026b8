"""Evolution in the search space: NSGA-II, and regularized evolution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from supersam.search.journal import Trial
from supersam.search.pareto import Costs, cost_matrix, crowding_distance, non_dominated
from supersam.search.searchers.base import Problem, Rng, Searcher, complete_only
from supersam.search.searchers.genes import gene_choices
from supersam.space import SearchSpace, SubnetSpec

_CROSSOVER = 0.9
_TOURNAMENT = 8


class Nsga2Searcher(Searcher):
    """NSGA-II (Deb et al. 2002): parents are the best of all so far, spread along the front."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._known: list[Trial] = []
        self._parents: list[SubnetSpec] | None = None
        """Best first; None until they are chosen."""

    def tell(self, trials: Sequence[Trial]) -> None:
        """Add trials to choose the next parents from."""
        self._known += complete_only(trials)
        self._parents = None

    def _propose(self, rng: Rng) -> SubnetSpec:
        if self._parents is None:
            costs = cost_matrix(self._known, self.problem.objectives)
            order = best_first(costs, self.problem.population)
            self._parents = [self._known[i].spec for i in order]
        if len(self._parents) < 2:
            return self.problem.sample(rng)
        return breed(self._parents, self.problem.space, rng)


class RegularizedSearcher(Searcher):
    """Regularized evolution (Real et al. 2019): the oldest parents die, however good they are."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._alive: list[Trial] = []

    def tell(self, trials: Sequence[Trial]) -> None:
        """The youngest complete trials are the population."""
        self._alive = (self._alive + complete_only(trials))[-self.problem.population :]

    def _propose(self, rng: Rng) -> SubnetSpec:
        space = self.problem.space
        if len(self._alive) < 2:
            return self.problem.sample(rng)
        drawn = rng.choice(len(self._alive), min(_TOURNAMENT, len(self._alive)), replace=False)
        some = [self._alive[i] for i in drawn]
        winner = drawn_winner(cost_matrix(some, self.problem.objectives), rng)
        return space.mutate(some[winner].spec, rng, probability=mutation_rate(space))


def drawn_winner(costs: Costs, rng: Rng) -> int:
    """The place of a row that no other one dominates, each of them with the same chance.

    Crowding does not decide: it is infinite at the ends of a front, so that the ends would win
    every tournament that they are in, and the middle of the front would never be bred from.
    """
    return int(rng.choice(np.flatnonzero(non_dominated(costs))))


def best_first(costs: Costs, count: int) -> NDArray[np.int64]:
    """Places of the best `count` rows (fewer where there are fewer), best first.

    Rows are ordered by front; on each front those with the most room around them come first.
    """
    order: list[int] = []
    left = np.arange(len(costs))
    while len(left) > 0 and len(order) < count:
        best = non_dominated(costs[left])
        front = left[best]
        room = crowding_distance(costs[front])
        order += front[np.argsort(-room, kind="stable")].tolist()
        left = left[~best]
    return np.array(order[:count], np.int64)


def breed(parents: Sequence[SubnetSpec], space: SearchSpace, rng: Rng) -> SubnetSpec:
    """A child of two winners of binary tournaments. parents: best first."""
    # The better of two is the one further to the front.
    first, second = (parents[int(rng.integers(len(parents), size=2).min())] for _ in range(2))
    cut = int(rng.integers(1, max(2, space.shape.depth)))  # a single layer cannot be cut
    child = splice(first, second, cut, rng) if rng.random() < _CROSSOVER else first
    return space.mutate(child, rng, probability=mutation_rate(space))


def splice(first: SubnetSpec, second: SubnetSpec, cut: int, rng: Rng) -> SubnetSpec:
    """One-point crossover: layers before `cut` of the first parent, the others of the second.

    Neighbouring layers work together and stay together; and a child shares its leading layers,
    and so their activations, with its first parent's other children. Residual width and resolution
    belong to no layer: where the parents differ in one, it is that of either.
    """
    genes = [gene for gene in _layers_of(first) if gene[0] < cut]
    genes += [gene for gene in _layers_of(second) if gene[0] >= cut]
    layers, widths, heads = zip(*genes, strict=True)
    dim = first.embed_dim
    if second.embed_dim != dim and rng.random() < 0.5:
        dim = second.embed_dim
    resolution = first.resolution
    if second.resolution != resolution and rng.random() < 0.5:
        resolution = second.resolution
    return SubnetSpec(layers, widths, heads, dim, resolution)


def _layers_of(spec: SubnetSpec) -> list[tuple[int, int, int]]:
    """(layer, MLP width, heads) of each kept layer."""
    return list(zip(spec.layers, spec.mlp_widths, spec.heads, strict=True))


def mutation_rate(space: SearchSpace) -> float:
    """One gene of a child is drawn anew, on average (Deb et al. 2002)."""
    return 1.0 / max(1, len(gene_choices(space)))
