"""The importance scores by name. A new score is one file beside this one and one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from supersam.data.sample import Batch
from supersam.design.scores.gradients import embedding_loss
from supersam.design.scores.magnitude import score_magnitude
from supersam.design.scores.measurement import Measurement, ScoreLoss, evaluating
from supersam.design.scores.movement import score_movement
from supersam.design.scores.random import score_random
from supersam.design.scores.taylor import score_taylor
from supersam.design.scores.wanda import score_wanda
from supersam.design.units import UnitScores
from supersam.model import SamSupernet
from supersam.runtime.distributed import World
from supersam.runtime.extensions import is_extension, load_extension

SCORES: dict[str, Callable[[Measurement], UnitScores]] = {
    "magnitude": score_magnitude,
    "wanda": score_wanda,
    "taylor": score_taylor,
    "movement": score_movement,
    "random": score_random,
}


def score_units(
    supernet: SamSupernet,
    calibration: Sequence[Batch],
    *,
    score: str,
    world: World | None = None,
    loss: ScoreLoss | None = None,
    seed: int = 0,
) -> UnitScores:
    """Measure the importance of every unit of the largest subnet. A collective.

    No state outlives the call, and any number of ranks finds the same numbers.

    Args:
        supernet: its weights are the same before and after; on any device.
        calibration: the same batches on every rank, which takes every R-th of them.
        score: a name in `SCORES`, or module:function of a `Measurement`.
        world: this rank; None for a process on its own.
        loss: for taylor and movement; None takes the distance to a disturbed embedding.
        seed: of random scores.
    """
    measurement = Measurement(
        supernet=supernet,
        calibration=calibration,
        world=world or World.single(),
        loss=loss or embedding_loss(seed),
        seed=seed,
    )
    with evaluating(supernet):
        return _find_score(score)(measurement)


def _find_score(name: str) -> Callable[[Measurement], UnitScores]:
    if is_extension(name):
        found: Callable[[Measurement], UnitScores] = load_extension(name, "--importance.score")
        return found
    return SCORES[name]
