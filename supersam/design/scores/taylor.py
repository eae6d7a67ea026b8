"""Taylor (arXiv 1905.10650): the first-order change of a loss when a unit is removed."""

from __future__ import annotations

from supersam.data.sample import Batch
from supersam.design.scores.columns import collect_units
from supersam.design.scores.gradients import weight_times_gradient
from supersam.design.scores.measurement import Measurement
from supersam.design.units import UnitScores


def score_taylor(measurement: Measurement) -> UnitScores:
    """Score every unit by the size of its first-order effect, averaged over batches.

    A collective.
    """
    supernet, loss = measurement.supernet, measurement.loss

    def of_batch(batch: Batch) -> UnitScores:
        products = weight_times_gradient(supernet, batch, loss)[0]
        units = collect_units(products, supernet.space.shape, even=False)
        return units.abs() * len(batch.images)

    first, *rest = measurement.per_batch(of_batch)
    scores: UnitScores = sum(rest, start=first)
    return scores * (1 / sum(len(batch.images) for batch in measurement.calibration))
