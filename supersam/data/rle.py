"""Facts about a mask from its run lengths, without drawing it at full size. NumPy and pycocotools.

COCO run lengths count pixels in column order: background, object, background, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from supersam.data.sample import MaskRecord


@dataclass(frozen=True)
class Runs:
    """An object of a height x width image as runs of its pixels, numbered in column order."""

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    height: int
    width: int

    @cached_property
    def area(self) -> int:
        """Pixels of the object."""
        return int((self.stops - self.starts).sum())

    @cached_property
    def bbox(self) -> tuple[int, int, int, int]:
        """Tight box (x, y, width, height); zeros without pixels."""
        if self.area == 0:
            return 0, 0, 0, 0
        last = self.stops - 1
        x, x_last = int(self.starts[0]) // self.height, int(last[-1]) // self.height
        if np.any(self.starts // self.height != last // self.height):  # a run turns a column's end
            return x, 0, x_last - x + 1, self.height
        y, y_last = int((self.starts % self.height).min()), int((last % self.height).max())
        return x, y, x_last - x + 1, y_last - y + 1

    def __contains__(self, point: tuple[float, float]) -> bool:
        """Whether the pixel under (x, y) belongs to the object."""
        x, y = int(np.floor(point[0])), int(np.floor(point[1]))
        if not (0 <= x < self.width and 0 <= y < self.height):
            return False
        k = np.searchsorted(self.starts, x * self.height + y, side="right") - 1
        return bool(k >= 0 and x * self.height + y < self.stops[k])

    def draw(self, y: int, x: int, height: int, width: int) -> NDArray[np.bool_]:
        """Return the (height, width) pixels from (y, x) on, bool."""
        first, size = x * self.height, width * self.height
        inside = (self.stops > first) & (self.starts < first + size)
        change = np.zeros(size + 1, np.int8)
        change[np.maximum(self.starts[inside] - first, 0)] += 1
        change[np.minimum(self.stops[inside] - first, size)] -= 1
        columns = np.cumsum(change[:-1], dtype=np.int8).reshape(width, self.height)
        drawn: NDArray[np.bool_] = columns.T[y : y + height] > 0
        return drawn

    def inner_point(self) -> tuple[float, float]:
        """Return the pixel (x, y) farthest from the outside, in steps over pixel sides."""
        from scipy import ndimage  # slow to import; only conversions come here

        x, y, width, height = self.bbox
        window = np.pad(self.draw(y, x, height, width), 1)
        depth = ndimage.distance_transform_cdt(window, metric="taxicab")
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        return float(x + column - 1), float(y + row - 1)


def decode_runs(rle: bytes, height: int, width: int) -> Runs:
    """Read COCO's compressed run lengths. Raises ValueError unless they fill the image exactly."""
    counts = _decompress(rle)
    if len(counts) and counts.min() < 0 or counts.sum() != height * width:
        raise ValueError(
            f"the run lengths cover {counts.sum()} px, the image has {height} x {width} px"
        )
    bounds = np.cumsum(counts)
    starts, stops = bounds[:-1:2], bounds[1::2]
    filled = stops > starts
    return Runs(starts[filled], stops[filled], height, width)


def mask_runs(mask: NDArray[np.bool_]) -> Runs:
    """The runs of a (height, width) bool mask."""
    flat = np.concatenate([[0], mask.ravel(order="F").astype(np.int8), [0]])
    change = np.diff(flat)
    starts, stops = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
    return Runs(starts.astype(np.int64), stops.astype(np.int64), *mask.shape)


def encode_runs(runs: Runs) -> bytes:
    """Return COCO's compressed run lengths."""
    bounds = np.stack([runs.starts, runs.stops], axis=1).ravel()
    counts = np.diff(bounds, prepend=0, append=runs.height * runs.width).tolist()
    if counts[-1] == 0 and len(counts) > 1:
        counts.pop()
    return _compress(counts, runs.height, runs.width)


def window_runs(
    window: NDArray[np.bool_], height: int, width: int, *, y: int = 0, x: int = 0
) -> Runs:
    """Return the object whose pixels from (y, x) on, in a height x width image, are `window`."""
    columns, rows = np.nonzero(window.T)
    pixels = (columns + x) * height + rows + y
    if len(pixels) == 0:
        return Runs(pixels, pixels, height, width)
    gaps = np.flatnonzero(np.diff(pixels) != 1)
    starts = pixels[np.concatenate([[0], gaps + 1])]
    stops = pixels[np.concatenate([gaps, [-1]])] + 1
    return Runs(starts, stops, height, width)


def compress_counts(counts: Sequence[int], height: int, width: int) -> bytes:
    """COCO's compressed form of a list of run lengths. Raises ValueError unless they fit."""
    if any(n < 0 for n in counts):
        raise ValueError("a run length is negative")
    if sum(counts) != height * width:
        raise ValueError(
            f"the run lengths cover {sum(counts)} px, the image has {height} x {width} px"
        )
    return _compress(list(counts), height, width)


def rasterize_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> bytes:
    """Return compressed run lengths of the union of polygons (x0, y0, x1, y1, ...), COCO's own way.

    Each has three or more finite points. Points may lie outside of the image, however far: COCO's
    code would take memory for each pixel of the way there, so what is far outside is clipped.
    """
    if len(polygons) == 0:
        raise ValueError("the list of polygons is empty")
    flat = [
        _clip(np.array(polygon, np.float64).reshape(-1, 2), height, width) for polygon in polygons
    ]
    drawn = [points.ravel().tolist() for points in flat if len(points) >= 3]
    if not drawn:
        return _compress([height * width], height, width)
    return bytes(coco.merge(coco.frPyObjects(drawn, height, width))["counts"])


def _clip(points: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """A polygon (N, 2) cut to three times the image, by Sutherland and Hodgman's method."""
    for axis, size in ((0, width), (1, height)):
        for sign, limit in ((1.0, -size), (-1.0, -2 * size)):  # sign * value >= limit is kept
            inside = sign * points[:, axis] - limit
            if len(points) == 0 or inside.min() >= 0:
                continue
            points = _cut_off(points, inside)
    return points


def _cut_off(points: NDArray[np.float64], inside: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of a polygon (N, 2) where `inside` (N,) is not negative."""
    kept: list[NDArray[np.float64]] = []
    previous, before = points[-1], inside[-1]
    for point, now in zip(points, inside, strict=True):
        if (before < 0) != (now < 0):
            # From the end that is near the image: the other may be so far that sums lose it.
            near, far, share = previous, point, before / (before - now)
            if before < 0:
                near, far, share = point, previous, now / (now - before)
            kept.append(near + (far - near) * share)
        if now >= 0:
            kept.append(point)
        previous, before = point, now
    return np.array(kept).reshape(-1, 2)


def mask_record(
    runs: Runs,
    *,
    rle: bytes | None = None,
    category: int = 0,
    predicted_iou: float = 1.0,
    stability_score: float = 1.0,
    point: tuple[float, float] | None = None,
) -> MaskRecord:
    """Return the record of an object with pixels; `point` is kept if it lies on one of them.

    Fractions are rounded to the shards' float32, so that a record is read as it was written.
    """
    if point is None or point not in runs:
        point = runs.inner_point()
    x, y, width, height = runs.bbox
    return MaskRecord(
        rle=encode_runs(runs) if rle is None else rle,
        area=runs.area,
        bbox=(float(x), float(y), float(width), float(height)),
        point=(float(np.float32(point[0])), float(np.float32(point[1]))),
        category=category,
        predicted_iou=float(np.float32(predicted_iou)),
        stability_score=float(np.float32(stability_score)),
    )


def _compress(counts: list[int], height: int, width: int) -> bytes:
    rle: Any = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return bytes(rle["counts"])


def _decompress(rle: bytes) -> NDArray[np.int64]:
    """COCO's run lengths, from text of 6-bit characters.

    A character holds 5 bits of a number, lowest first, and a bit that says whether more follow.
    From the fourth on, the numbers are differences to the last but one.
    """
    letters = np.frombuffer(rle, np.uint8).astype(np.int64) - 48
    if len(letters) == 0:
        return letters
    if letters.min() < 0 or letters.max() > 63 or letters[-1] & 32:
        raise ValueError("the run lengths are not text in COCO's compressed form")
    ends = np.flatnonzero((letters & 32) == 0)
    begins = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(letters)) - np.repeat(begins, ends - begins + 1)
    if place.max() > 6:
        raise ValueError("the run lengths hold a number of more than 32 bits")
    counts = np.add.reduceat((letters & 31) << (5 * place), begins)
    counts -= np.where(letters[ends] & 16, np.int64(1) << (5 * (place[ends] + 1)), 0)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts
