"""The result of an evaluation: a table of objects, and the numbers that summarise it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from supersam.evaluation.bootstrap import bootstrap_interval
from supersam.evaluation.metrics import SIZE_BUCKETS, SizeBucket, size_bucket

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
_SEED = 0  # of the bootstrap


@dataclass(frozen=True)
class ObjectTable:
    """One row per object, (M,) each; sorted by image, in the image's own order."""

    sample_id: Integers
    """The object's image."""
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
    """95 % bootstrap interval of `miou`, images resampled; None for a single image."""
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
    objects: ObjectTable = field(repr=False, compare=False)
    """The numbers behind the means."""

    def as_dict(self) -> dict[str, Any]:
        """Return every number but the table, as plain values that JSON can hold."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "objects"}
        return plain | {"sizes": [asdict(score) for score in self.sizes]}


def summarize(objects: ObjectTable) -> EvalResult:
    """The means of a table, and the bootstrap interval of the main one."""
    single, preferred = objects.iou_single, objects.iou_predicted_best
    _, image, per_image = np.unique(objects.sample_id, return_inverse=True, return_counts=True)

    def over_images(values: Floats) -> float:
        return float((np.bincount(image, weights=values) / per_image).mean())

    return EvalResult(
        miou=float(single.mean()),
        miou_interval=(
            bootstrap_interval(single, objects.sample_id, rng=np.random.default_rng(_SEED))
            if len(per_image) > 1
            else None
        ),
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
        objects=objects,
    )


def _score_sizes(objects: ObjectTable) -> tuple[SizeScore, ...]:
    bucket = size_bucket(torch.from_numpy(objects.area)).numpy()
    members = [objects.iou_single[bucket == i] for i in range(len(SIZE_BUCKETS))]
    return tuple(
        SizeScore(name, float(ious.mean()) if len(ious) else None, len(ious))
        for name, ious in zip(SIZE_BUCKETS, members, strict=True)
    )


def format_table(results: dict[str, EvalResult]) -> str:
    """Format an aligned table for a terminal, one line per result. results: by name."""
    header = ["", "mIoU", "95 % interval", "best", "oracle", "per image", "boundary"]
    header += [*SIZE_BUCKETS, "est. error", "box fill", "objects", "images"]
    lines = [header] + [[name, *_cells(result)] for name, result in results.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])])
        for name, *cells in lines
    )


def _cells(result: EvalResult) -> list[str]:
    interval = result.miou_interval
    return [
        _number(result.miou),
        "-" if interval is None else f"{interval[0]:.4f}-{interval[1]:.4f}",
        _number(result.miou_predicted_best),
        _number(result.miou_oracle),
        _number(result.image_miou),
        _number(result.boundary_miou),
        *(_number(score.miou) for score in result.sizes),
        _number(result.iou_estimate_mae),
        _number(result.box_fill_miou),
        str(result.num_objects),
        str(result.num_images),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
