"""The sandwich rule: which subnets one optimizer step trains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from supersam.space import SearchSpace, SubnetSpec, sample_by_size

_STREAM = 0x5A4D  # keeps these draws apart from those of data order and prompts


@dataclass(frozen=True)
class SandwichSampler:
    """Largest, k random and smallest subnet of each step (Yu and Huang, arXiv 1903.05134).

    The space may open step by step, large subnets first (Cai et al., arXiv 1908.09791).

    The draw is a pure function of (seed, step): the same on every rank and after every restart.
    """

    space: SearchSpace
    seed: int
    random_subnets: int
    by_size: bool = False
    """Spread the random subnets evenly over the sizes of the space."""
    largest_only_steps: int = 0
    growing_steps: int = 0
    """Steps after those over which the space opens, from its widest choices to all of them."""
    only: SubnetSpec | None = None
    """The one subnet of every step, where the run trains no sandwich."""

    def draw(self, step: int) -> tuple[SubnetSpec, ...]:
        """Draw the subnets of `step`, largest first and smallest last."""
        if self.only is not None:
            return (self.only,)
        if step < self.largest_only_steps:
            return (self.space.largest(),)
        rng = np.random.Generator(
            np.random.Philox(key=[self.seed, _STREAM], counter=[0, 0, 0, step])
        )
        draw = sample_by_size if self.by_size else SearchSpace.sample
        space = self._open_at(step)
        middle = [draw(space, rng) for _ in range(self.random_subnets)]
        return (space.largest(), *middle, space.smallest())

    def _open_at(self, step: int) -> SearchSpace:
        """The part of the space that a step trains: all of it once it has grown."""
        grown = step - self.largest_only_steps
        if grown >= self.growing_steps:
            return self.space
        return self.space.widest(grown / self.growing_steps)

    def fixed(self) -> dict[str, SubnetSpec]:
        """Return the subnets that validation scores, by their names in metrics."""
        if self.only is not None:
            return {"subnet": self.only}
        return {
            "largest": self.space.largest(),
            "medium": self.space.medium(),
            "smallest": self.space.smallest(),
        }

    def slots(self, step: int) -> tuple[str, ...]:
        """Return the names of the subnets of `step` in metrics."""
        if self.only is not None:
            return ("subnet",)
        if step < self.largest_only_steps:
            return ("largest",)
        middle = [f"random_{i}" for i in range(self.random_subnets)]
        return ("largest", *middle, "smallest")
