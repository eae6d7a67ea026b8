"""How sure a mean over objects is: percentile bootstrap, resampling whole images. Pure NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_DRAWS_PER_BLOCK = 2**21
"""Images drawn at a time: bounds the memory to tens of MiB however many images there are."""


def bootstrap_interval(
    values: NDArray[np.float64],
    image_ids: NDArray[np.int64],
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> tuple[float, float]:
    """Percentile interval of the mean of `values`, images drawn with replacement.

    Objects of an image succeed and fail together, so the image is what is drawn: drawing objects
    would report an interval that is too narrow.

    Args:
        values: (M,) one value an object.
        image_ids: (M,) the image of each object, in any order.
        rng: where the draws come from.
        confidence: share of resampled means inside the interval.
        resamples: number of resampled means.
    """
    _, image, num_objects = np.unique(image_ids, return_inverse=True, return_counts=True)
    num_images = len(num_objects)
    if num_images < 2:
        raise ValueError(
            f"{num_images} image(s) cannot be resampled; an interval needs objects of 2 or more"
        )
    totals = np.bincount(image, weights=values)
    rows = max(1, _DRAWS_PER_BLOCK // num_images)
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        block = means[start : start + rows]
        drawn = rng.integers(num_images, size=(len(block), num_images))
        block[:] = totals[drawn].sum(1) / num_objects[drawn].sum(1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
