"""The result of an evaluation: a table of objects, and the numbers that summarise it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from supersam.evaluation.metrics import SIZE_BUCKETS, SizeBucket, size_bucket
from supersam.runtime.bootstrap import Difference, mean_interval, paired_difference

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ObjectTable:
    """One row per object, (M,) each; sorted by image, in the image's own order."""

    sample_id: Integers
    """The object's image."""
    group: Integers
    """The clip, stack or source image of the object: the unit of resampling."""
    area: Integers
    """Foreground pixels of the annotation, in the original image."""
    iou_single: Floats
    """IoU of mask token 0: `multimask_output=False`."""
    iou_predicted_best: Floats
    """IoU of the multimask output whose own estimate is highest: what a user would get."""
    iou_oracle: Floats
    """Highest IoU of the multimask outputs: the annotation chooses, so no user can get it."""
    boundary_iou: Floats | None
    """Boundary IoU of mask token 0; None where it was not computed."""
    predicted_iou: Floats
    """The IoU head's estimate for mask token 0."""
    box_fill_iou: Floats
    """IoU that filling the annotation's tight box would score."""
    prior_iou: Floats | None = None
    """IoU of a baseline that knows the prompt but not the image; None where it was not computed."""

    @classmethod
    def allocate(cls, rows: int, *, boundary: bool) -> ObjectTable:
        """Build a table whose rows `fill` writes; without the baseline's column."""
        columns: dict[str, Any] = {
            name: np.empty(rows, np.int64) for name in ("sample_id", "group", "area")
        }
        columns |= {
            field.name: np.empty(rows) for field in fields(cls) if field.name not in columns
        }
        columns["prior_iou"] = None
        if not boundary:
            columns["boundary_iou"] = None
        return cls(**columns)

    def fill(self, start: int, part: ObjectTable) -> int:
        """Write the rows of `part` from row `start` on. Returns the row behind them."""
        stop = start + len(part.area)
        for name in (f.name for f in fields(self)):
            column = getattr(self, name)
            if column is not None:
                column[start:stop] = getattr(part, name)
        return stop

    @classmethod
    def concatenate(cls, tables: Sequence[ObjectTable]) -> ObjectTable:
        """Join the rows of all tables, in their order."""

        def column(name: str) -> Any:
            parts = [getattr(table, name) for table in tables]
            return None if parts[0] is None else np.concatenate(parts)

        return cls(**{f.name: column(f.name) for f in fields(cls)})


@dataclass(frozen=True)
class SizeScore:
    """The score of the objects of one of COCO's sizes."""

    bucket: SizeBucket
    miou: float | None
    """Mean IoU of mask token 0; None where there is no such object."""
    num_objects: int


@dataclass(frozen=True)
class EvalResult:
    """A predictor's score on held-out images. IoUs in [0, 1], at the original resolution."""

    miou: float
    """The main number: mean IoU of mask token 0 over all objects."""
    miou_interval: tuple[float, float] | None
    """95 % bootstrap interval of `miou`, groups resampled; None for a single group."""
    miou_predicted_best: float
    """Mean over objects, of the three multimask outputs the one the IoU head prefers."""
    miou_oracle: float
    """Mean over objects, of the three multimask outputs the one the annotation prefers."""
    image_miou: float
    """`miou` as the mean over images of the mean over their objects (SlimSAM's protocol)."""
    image_miou_predicted_best: float
    """`miou_predicted_best`, mean over images."""
    image_miou_oracle: float
    """`miou_oracle`, mean over images."""
    boundary_miou: float | None
    """Mean boundary IoU of mask token 0 over objects; None where it was not computed."""
    sizes: tuple[SizeScore, ...]
    """Small, medium, large."""
    iou_estimate_mae: float
    """Mean absolute error of the IoU head's estimate for mask token 0."""
    box_fill_miou: float
    """What filling every object's tight box would score: a box prompt gives this away for free."""
    num_objects: int
    num_images: int
    """Images with at least one object."""
    num_cut_objects: int
    """Objects that were left out, since the frame of a tile cuts them."""
    num_groups: int
    """Clips, stacks and source images that they come from: tiles of one image are one group."""
    prior_miou: float | None
    """Mean score of a baseline that knows the prompt but not the image; None where there is none.
    For a box the mean training mask in it, for a point the best disc around it."""
    objects: ObjectTable = field(repr=False, compare=False)
    """The numbers behind the means."""

    def as_dict(self) -> dict[str, Any]:
        """Return every number but the table, as plain values that JSON can hold."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "objects"}
        return plain | {"sizes": [asdict(score) for score in self.sizes]}


def subtract(result: EvalResult, other: EvalResult) -> Difference:
    """Compare two results on the same images object by object: `result` less `other`."""
    first, second = result.objects, other.objects
    if not np.array_equal(first.sample_id, second.sample_id):
        raise ValueError("the two results are not of the same objects")
    return paired_difference(first.iou_single, second.iou_single, first.group)


def summarize(objects: ObjectTable, *, num_cut: int = 0) -> EvalResult:
    """Return the means of a table, and the interval of the main one. num_cut: objects left out."""
    single, preferred = objects.iou_single, objects.iou_predicted_best
    _, image, per_image = np.unique(objects.sample_id, return_inverse=True, return_counts=True)

    def over_images(values: Floats) -> float:
        return float((np.bincount(image, weights=values) / per_image).mean())

    return EvalResult(
        miou=float(single.mean()),
        miou_interval=mean_interval(single, objects.group),
        miou_predicted_best=float(preferred.mean()),
        miou_oracle=float(objects.iou_oracle.mean()),
        image_miou=over_images(single),
        image_miou_predicted_best=over_images(preferred),
        image_miou_oracle=over_images(objects.iou_oracle),
        boundary_miou=None if objects.boundary_iou is None else float(objects.boundary_iou.mean()),
        sizes=_score_sizes(objects),
        iou_estimate_mae=float(np.abs(objects.predicted_iou - single).mean()),
        box_fill_miou=float(objects.box_fill_iou.mean()),
        num_objects=len(single),
        num_images=len(per_image),
        num_cut_objects=num_cut,
        num_groups=len(np.unique(objects.group)),
        prior_miou=None if objects.prior_iou is None else float(objects.prior_iou.mean()),
        objects=objects,
    )


def _score_sizes(objects: ObjectTable) -> tuple[SizeScore, ...]:
    bucket = size_bucket(torch.from_numpy(objects.area)).numpy()
    members = [objects.iou_single[bucket == i] for i in range(len(SIZE_BUCKETS))]
    return tuple(
        SizeScore(name, float(ious.mean()) if len(ious) else None, len(ious))
        for name, ious in zip(SIZE_BUCKETS, members, strict=True)
    )
