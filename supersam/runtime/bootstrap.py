"""How sure a mean over objects is: percentile bootstrap over groups of images. Pure NumPy.

A group is what was photographed together: all tiles of one image, all frames of one clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_DRAWS_PER_BLOCK = 2**21
"""Groups drawn at a time: bounds the memory to tens of MiB however many groups there are."""
FEW_GROUPS = 10
"""Below so many groups an interval is itself uncertain, which is said beside it."""
_SEED = 0
_TAIL = (1 - 0.95) / 2


@dataclass(frozen=True)
class Difference:
    """The mean difference of two scores of the same objects."""

    mean: float
    """First less second."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval, groups resampled; None for a single group."""
    num_groups: int


def paired_difference(
    first: NDArray[np.float64], second: NDArray[np.float64], groups: NDArray[np.int64]
) -> Difference:
    """Compare two scores object by object: what makes an object hard for both cancels out.

    Args:
        first: (M,) a score of each object.
        second: (M,) another score of the same objects, in the same order.
        groups: (M,) the group of each object.
    """
    change = first - second
    return Difference(float(change.mean()), mean_interval(change, groups), len(np.unique(groups)))


def mean_interval(
    values: NDArray[np.float64], groups: NDArray[np.int64]
) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of `values`, (M,); None for a single group."""
    if len(np.unique(groups)) < 2:
        return None
    return bootstrap_interval(values, groups, rng=np.random.default_rng(_SEED))


def bootstrap_interval(
    values: NDArray[np.float64],
    groups: NDArray[np.int64],
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of `values`, groups drawn with replacement.

    Objects of a group succeed and fail together, so groups are drawn: drawing objects, or tiles of
    one image, would report an interval that is too narrow.

    Args:
        values: (M,) one value per object.
        groups: (M,) the group of each object, in any order.
        rng: where the draws come from.
        resamples: number of resampled means.
    """
    _, group, num_objects = np.unique(groups, return_inverse=True, return_counts=True)
    num_groups = len(num_objects)
    if num_groups < 2:
        raise ValueError(
            f"{num_groups} group(s) cannot be resampled; an interval needs objects of 2 or more"
        )
    totals = np.bincount(group, weights=values)
    rows = max(1, _DRAWS_PER_BLOCK // num_groups)
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        block = means[start : start + rows]
        drawn = rng.integers(num_groups, size=(len(block), num_groups))
        block[:] = totals[drawn].sum(1) / num_objects[drawn].sum(1)
    low, high = np.quantile(means, [_TAIL, 1 - _TAIL])
    return float(low), float(high)
