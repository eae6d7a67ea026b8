"""Searchers that learn nothing: random draws, and every subnet of a small space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, combinations, islice, product

from supersam.config import UserError
from supersam.search.searchers.base import Problem, Rng, Searcher
from supersam.space import SearchSpace, SubnetSpec

_MOST = 100_000


class RandomSearcher(Searcher):
    """Random draws: gene by gene, as a supernet is trained by default, or spread over sizes."""

    def _propose(self, rng: Rng) -> SubnetSpec:
        return self.problem.sample(rng)


class ExhaustiveSearcher(Searcher):
    """All subnets, one after another: the truth in a space small enough."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        count = problem.space.num_subnets()
        if count > _MOST:
            raise UserError(
                f"the space has {count:,} subnets, too many for --searcher exhaustive (at most "
                f"{_MOST:,}); choose another searcher"
            )
        self._left = iter_subnets(problem.space)

    def ask(self, count: int) -> list[SubnetSpec]:
        """The next feasible ones."""
        return list(islice(filter(self.problem.is_feasible, self._left), count))

    def replay(self, specs: Sequence[SubnetSpec]) -> bool:
        """Go on behind the last of them."""
        return any(spec == specs[-1] for spec in self._left)

    def _propose(self, rng: Rng) -> SubnetSpec:
        raise AssertionError("nothing is drawn")


def iter_subnets(space: SearchSpace) -> Iterator[SubnetSpec]:
    """Every subnet that `space.sample` can draw, once."""
    removable = space.removable
    removals = chain.from_iterable(
        combinations(removable, count) for count in range(len(removable) + 1)
    )
    for removed in removals:
        layers = tuple(i for i in range(space.shape.depth) if i not in removed)
        widths = product(*(space.mlp_widths[i] for i in layers))
        for chosen in widths:
            for heads in product(*(space.heads[i] for i in layers)):
                for dim, resolution in product(space.embed_dims, space.resolution_genes):
                    yield SubnetSpec(layers, chosen, heads, dim, resolution)
