"""Taylor (arXiv 1905.10650): the first-order change of a loss when a unit is removed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

from torch import Tensor

from supersam.data.sample import Batch
from supersam.design.scores.columns import collect_units
from supersam.design.scores.gradients import weight_times_gradient
from supersam.design.scores.measurement import Measurement
from supersam.design.units import UnitScores


def score_taylor(measurement: Measurement) -> UnitScores:
    """Score every unit by the size of its first-order effect, averaged over images. A collective.

    The size is taken per image, so that the number of images in a batch does not matter.
    """
    supernet, loss = measurement.supernet, measurement.loss

    def of_image(image: Batch) -> UnitScores:
        products = weight_times_gradient(supernet, image, loss)
        return collect_units(products.columns, products.channels, supernet.space.shape).abs()

    def of_batch(batch: Batch) -> UnitScores:
        return _sum([of_image(image) for image in _images_of(batch)])

    total = _sum(measurement.per_batch(of_batch))
    return total * (1 / sum(len(batch.images) for batch in measurement.calibration))


def _sum(scores: list[UnitScores]) -> UnitScores:
    total: UnitScores = sum(scores[1:], start=scores[0])
    return total


def _images_of(batch: Batch) -> Iterator[Batch]:
    tensors = [f.name for f in fields(batch) if isinstance(getattr(batch, f.name), Tensor)]
    for index in range(len(batch.images)):
        yield replace(batch, **{n: getattr(batch, n)[index : index + 1] for n in tensors})
