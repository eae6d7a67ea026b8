"""A subnet's score on images that no proposal saw, beside the largest subnet's on the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from supersam.runtime.bootstrap import mean_interval
from supersam.search.journal import Trial


@dataclass(frozen=True)
class FinalScore:
    """mIoU on the final data, and the paired difference to the largest subnet there."""

    miou: float
    interval: tuple[float, float] | None
    """95 % bootstrap interval, groups of images resampled; None for a single group."""
    less_largest: float | None
    """The mean over objects of this subnet's IoU less the largest subnet's."""
    less_largest_interval: tuple[float, float] | None
    """95 %: both on the same images, so that what is hard for both does not count."""
    num_images: int
    num_objects: int
    num_groups: int

    @classmethod
    def of(cls, trial: Trial, largest: Trial | None) -> FinalScore:
        """The score of a trial of stage `measured`."""
        metrics = trial.metrics
        difference, interval = (None, None) if largest is None else _paired(trial, largest)
        return cls(
            miou=metrics["miou"],
            interval=(metrics["miou_lo"], metrics["miou_hi"]) if "miou_lo" in metrics else None,
            less_largest=difference,
            less_largest_interval=interval,
            num_images=trial.num_images,
            num_objects=trial.num_objects,
            num_groups=len(trial.by_group),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; intervals as `*_lo` and `*_hi`, as in a trial's metrics."""
        plain: dict[str, Any] = {"miou": self.miou}
        if self.interval is not None:
            plain |= {"miou_lo": self.interval[0], "miou_hi": self.interval[1]}
        if self.less_largest is not None:
            plain["less_largest"] = self.less_largest
        if self.less_largest_interval is not None:
            low, high = self.less_largest_interval
            plain |= {"less_largest_lo": low, "less_largest_hi": high}
        counts = ("num_images", "num_objects", "num_groups")
        return plain | {name: getattr(self, name) for name in counts}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FinalScore:
        """The inverse of `as_dict`."""

        def interval(name: str) -> tuple[float, float] | None:
            ends = f"{name}_lo", f"{name}_hi"
            return (values[ends[0]], values[ends[1]]) if ends[0] in values else None

        return cls(
            miou=values["miou"],
            interval=interval("miou"),
            less_largest=values.get("less_largest"),
            less_largest_interval=interval("less_largest"),
            num_images=values["num_images"],
            num_objects=values["num_objects"],
            num_groups=values["num_groups"],
        )


def _paired(trial: Trial, largest: Trial) -> tuple[float, tuple[float, float] | None]:
    """Mean difference per object and its interval, from the sums over each group."""
    names, counts, totals = (np.array(column) for column in zip(*trial.by_group, strict=True))
    of_largest = np.array([total for _, _, total in largest.by_group])
    # Each object stands for its group's mean: sums, and so resampled means, are the same.
    change = np.repeat((totals - of_largest) / counts, counts)
    return float(change.mean()), mean_interval(change, np.repeat(names, counts))
