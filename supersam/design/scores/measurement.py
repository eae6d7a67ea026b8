"""What every score is given, and how ranks share the batches of a measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from supersam.data.sample import Batch
from supersam.model import Prediction, SamSupernet
from supersam.runtime.distributed import World, gather_objects

ScoreLoss = Callable[[Prediction, Batch], Tensor]
"""What taylor and movement differentiate: a scalar of the largest subnet's prediction."""
Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Measurement:
    """What a score is measured on."""

    supernet: SamSupernet
    """Its largest subnet is active, in evaluation mode."""
    calibration: Sequence[Batch]
    """The same batches on every rank."""
    world: World
    loss: ScoreLoss
    """What the scores that need a gradient differentiate."""
    seed: int
    """Seeds the random score."""

    def per_batch(self, measure: Callable[[Batch], Measured]) -> list[Measured]:
        """Apply `measure` to every batch, each rank to its share. A collective.

        The results are in the order of the batches on every rank, so that sums over them are equal
        bit for bit whatever the world's size.
        """
        rank, size = self.world.rank, self.world.world_size
        mine = {i: measure(self.calibration[i]) for i in range(rank, len(self.calibration), size)}
        found = {index: value for part in gather_objects(mine) for index, value in part.items()}
        return [found[index] for index in range(len(self.calibration))]


@contextmanager
def evaluating(supernet: SamSupernet) -> Iterator[None]:
    """Put the largest subnet in evaluation mode; restore mode and active subnet at the end."""
    was_training = supernet.training
    supernet.eval()
    try:
        with supernet.activated(supernet.space.largest()):
            yield
    finally:
        supernet.train(was_training)
