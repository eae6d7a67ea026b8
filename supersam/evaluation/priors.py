"""Scores of two baselines that never look at the image: what a prompt alone gives away.

For a box: the mean training mask in the coordinates of its box, one for each set of sides at which
the box touches the frame. For a point: a disc around it. Both are learned from training shards,
where objects that touch no side are also shown cut by a random frame, as tiles and crops show them.
A model that scores less than its prior has learned nothing from the image that a prompt does not
say already.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from supersam.data.manifest import read_manifest
from supersam.data.rle import Runs, decode_runs
from supersam.data.sample import LABEL_BOX_MIN, EvalImage
from supersam.data.shards import BadRecordError, ShardReader
from supersam.data.transforms import Crop, MaskPatch, cut_patch
from supersam.runtime.atomic import write_json

logger = logging.getLogger(__name__)
Floats = NDArray[np.float64]

GRID = 32
"""Cells along a side of a mean mask."""
MIN_OBJECTS = 30
"""Objects of a set of touched sides, for a mean mask of its own; else that of all objects is
taken."""
MAX_OBJECTS = 10_000
"""Objects looked at of each training set, in images spread evenly over it."""
_SIDES = 16
"""Sets of touched sides: left 1, top 2, right 4, bottom 8, added."""
_RADII_PX = np.unique(np.round(1.15 ** np.arange(52))).astype(np.int64)
"""Radii tried, pixels of the original image: 1 to 1,246."""
_DISC_EVERY = 4
"""Discs are tried around the first object of each image and every fourth after it: they are slow,
and one number is learned from them."""
_CACHE = "priors-v1.json"
"""Beside the training shards."""


@dataclass(frozen=True)
class PriorSums:
    """What the objects of some training shards add up to; sums of several sets can be added."""

    masks: Floats
    """(16, 32, 32): for each set of touched sides, the sum of the masks in box coordinates."""
    counts: NDArray[np.int64]
    """(16,) objects of each."""
    disc_ious: Floats
    """(R,) for each radius, the sum of the IoUs of discs around the stored points."""

    def __add__(self, other: PriorSums) -> PriorSums:
        return PriorSums(
            self.masks + other.masks, self.counts + other.counts, self.disc_ious + other.disc_ious
        )

    @classmethod
    def zeros(cls) -> PriorSums:
        """Return the sums of no object."""
        return cls(
            np.zeros((_SIDES, GRID, GRID)), np.zeros(_SIDES, np.int64), np.zeros(len(_RADII_PX))
        )


@dataclass(frozen=True)
class Priors:
    """Baselines learned from training masks. Build them with `learn_priors`."""

    masks: Floats
    """(16, 32, 32) mean mask in box coordinates for each set of touched sides."""
    radius_px: int
    """Radius of the best disc around a point, pixels of the original image."""
    num_objects: int
    """Training objects that they were learned from, whole or cut."""

    @classmethod
    def of(cls, sums: PriorSums) -> Priors:
        """Learn from sums over at least one object."""
        pooled = sums.masks.sum(0) / sums.counts.sum()
        own = sums.masks / np.maximum(sums.counts, 1)[:, None, None]
        known = (sums.counts >= MIN_OBJECTS)[:, None, None]
        radius = int(_RADII_PX[sums.disc_ious.argmax()])
        return cls(np.where(known, own, pooled), radius, int(sums.counts.sum()))

    def ious(self, image: EvalImage) -> Floats:
        """Score the baseline of each prompt of an image, (M,) in [0, 1], original resolution."""
        kinds = image.labels[:, 0].tolist()
        scale = np.array(image.size) / np.array(image.original_size)
        ious = np.zeros(len(kinds))
        for index, kind in enumerate(kinds):
            patch = image.masks.patch(index)
            if patch is None:
                continue
            if kind == LABEL_BOX_MIN:
                ious[index] = self._box_iou(patch, image.original_size)
            else:
                x, y = (image.points[index, 0].numpy() / scale[::-1]).tolist()
                radii = np.array([self.radius_px])
                ious[index] = disc_ious(patch, (x, y), image.original_size, radii=radii)[0]
        return ious

    def _box_iou(self, patch: MaskPatch, size: tuple[int, int]) -> float:
        mean = torch.from_numpy(self.masks[touched_sides(patch, size)])[None, None]
        guess = F.interpolate(mean, patch.pixels.shape, mode="bilinear")[0, 0].numpy() >= 0.5
        return float((guess & patch.pixels).sum() / (guess | patch.pixels).sum())


def learn_priors(folders: Sequence[Path]) -> Priors | None:
    """Learn the baselines of training shards; None where a folder is absent or holds no object.

    The sums over each folder are kept beside its shards, and read from there while its content
    stays the same.
    """
    if not folders or not all(folder.is_dir() for folder in folders):
        return None
    sums = sum((_sums_of(folder) for folder in folders), PriorSums.zeros())
    return Priors.of(sums) if sums.counts.sum() > 0 else None


def touched_sides(patch: MaskPatch, size: tuple[int, int]) -> int:
    """Say at which sides an object touches the frame of (height, width), as a number below 16."""
    x0, y0, x1, y1 = patch.box
    touched = (x0 <= 0, y0 <= 0, x1 >= size[1], y1 >= size[0])
    return sum(bool(side) << place for place, side in enumerate(touched))


def disc_ious(
    patch: MaskPatch,
    point: tuple[float, float],
    size: tuple[int, int],
    *,
    radii: NDArray[np.int64],
) -> Floats:
    """IoU of an object with discs around a point, which the frame cuts off, (R,).

    Args:
        patch: the object.
        point: (x, y), centre of the discs, pixels.
        size: (height, width) of the image.
        radii: (R,) pixels, ascending.
    """
    rows, columns = np.nonzero(patch.pixels)
    x, y = point
    distance = (columns + patch.left - x) ** 2 + (rows + patch.top - y) ** 2
    hit = np.searchsorted(np.sort(distance), radii.astype(np.float64) ** 2, side="right")
    disc = np.array([_disc_area(point, int(radius), size) for radius in radii])
    union: NDArray[np.int64] = len(rows) + disc - hit
    return np.where(union > 0, hit / np.maximum(union, 1), 1.0)


def _disc_area(point: tuple[float, float], radius: int, size: tuple[int, int]) -> int:
    """Pixels of the frame within `radius` of a point."""
    x, y = point
    rows = np.arange(max(0, int(np.ceil(y - radius))), min(size[0] - 1, int(y + radius)) + 1)
    reach = np.sqrt(np.maximum(radius**2 - (rows - y) ** 2, 0))
    first = np.maximum(np.ceil(x - reach), 0)
    last = np.minimum(np.floor(x + reach), size[1] - 1)
    return int(np.maximum(last - first + 1, 0).sum())


def _sums_of(folder: Path) -> PriorSums:
    fingerprint = read_manifest(folder).fingerprint
    kept = _read(folder / _CACHE, fingerprint)
    if kept is not None:
        return kept
    sums = _add_up(ShardReader(folder))
    try:
        _write(folder / _CACHE, sums, fingerprint)
    except OSError as fault:
        logger.info("the priors of %s are not kept for the next time: %s", folder, fault)
    return sums


def _add_up(reader: ShardReader) -> PriorSums:
    """Look at the objects of a folder of shards; damaged records are passed over."""
    images = min(reader.num_images, -(-MAX_OBJECTS * reader.num_images // max(1, reader.num_masks)))
    sums = PriorSums.zeros()
    for index in (k * reader.num_images // images for k in range(images)):
        try:
            _add_image(reader, index, sums)
        except (BadRecordError, ValueError) as fault:
            logger.warning("the priors leave out a damaged record: %s", fault)
    return PriorSums(np.round(sums.masks, 3), sums.counts, sums.disc_ious)  # as the file holds them


def _add_image(reader: ShardReader, index: int, sums: PriorSums) -> None:
    """Add the objects of an image to `sums`, in place."""
    record = reader.read_image(index)
    size = record.height, record.width
    rng = np.random.default_rng(index)
    rles = reader.read_masks(index, range(len(record.masks)))
    for place, (rle, meta) in enumerate(zip(rles, record.masks, strict=True)):
        runs = decode_runs(rle, *size)
        patch = cut_patch(runs, Crop(0, 0, size[1], size[0]))
        if patch is None:
            continue
        sides = touched_sides(patch, size)
        _add_mask(sums, patch, sides)
        if sides == 0:
            _add_cut(sums, runs, rng)
        if place % _DISC_EVERY == 0:
            point = (float(meta["point"][0]), float(meta["point"][1]))
            sums.disc_ious[:] += disc_ious(patch, point, size, radii=_RADII_PX)


def _add_cut(sums: PriorSums, runs: Runs, rng: np.random.Generator) -> None:
    """Add what a frame of three times the object's size shows of it, where that cuts it.

    Few objects of whole images touch the frame; in tiles and crops many do.
    """
    x, y, width, height = runs.bbox
    side = 3 * max(width, height)
    left = int(rng.integers(x - side + 1, x + width))
    top = int(rng.integers(y - side + 1, y + height))
    patch = cut_patch(runs, Crop(left, top, side, side))
    if patch is None:
        return
    inside = MaskPatch(patch.pixels, patch.left - left, patch.top - top)
    sides = touched_sides(inside, (side, side))
    if sides != 0:
        _add_mask(sums, inside, sides)


def _add_mask(sums: PriorSums, patch: MaskPatch, sides: int) -> None:
    cells = torch.from_numpy(patch.pixels)[None, None].float()
    cells = F.interpolate(cells, (GRID, GRID), mode="bilinear", antialias=True)
    sums.masks[sides] += cells[0, 0].double().numpy()
    sums.counts[sides] += 1


def _read(path: Path, fingerprint: str) -> PriorSums | None:
    """Read kept sums; None where there are none, of other shards, or damaged."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if values["fingerprint"] != fingerprint or values["radii_px"] != _RADII_PX.tolist():
            return None
        return PriorSums(
            np.array(values["masks"], np.float64).reshape(_SIDES, GRID, GRID),
            np.array(values["counts"], np.int64).reshape(_SIDES),
            np.array(values["disc_ious"], np.float64).reshape(len(_RADII_PX)),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, sums: PriorSums, fingerprint: str) -> None:
    write_json(
        path,
        {
            "fingerprint": fingerprint,
            "radii_px": _RADII_PX.tolist(),
            "counts": sums.counts.tolist(),
            "disc_ious": sums.disc_ious.tolist(),
            "masks": sums.masks.reshape(_SIDES, -1).tolist(),
        },
    )
