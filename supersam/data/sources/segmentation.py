"""The `segmentation` of an annotation: polygons, run lengths of both kinds, or a bitmap."""

from __future__ import annotations

from typing import Any

import numpy as np

from supersam.data.rle import (
    Runs,
    compress_counts,
    decode_runs,
    encode_runs,
    rasterize_polygons,
    window_runs,
)
from supersam.data.sources.values import BadValueError, number, show, whole

Size = tuple[int, int]
_FARTHEST = 1e100
"""Of a polygon's coordinates: beyond, products of clipping it are no float64."""


def has_mask(segmentation: object) -> bool:
    """Return whether anything is drawn: boxes and key points alone have an empty segmentation."""
    if isinstance(segmentation, list):
        return any(part not in ([], None) for part in segmentation)
    return segmentation is not None and segmentation != {}


def stated_size(segmentation: object) -> Size | None:
    """Return the (height, width) that run lengths state; None for polygons and bad values."""
    if not isinstance(segmentation, dict):
        return None
    try:
        return _size(segmentation)
    except BadValueError:
        return None


def read_mask(segmentation: Any, size: Size | None) -> tuple[Runs, bytes]:
    """Return the pixels of an annotation, and its compressed run lengths.

    `size` is the image's (height, width); None takes that of the run lengths. Raises
    BadValueError, with a message that completes "annotation id 7: ...".
    """
    try:
        if isinstance(segmentation, dict):
            return _read_run_lengths(segmentation, size)
        if not isinstance(segmentation, list):
            raise BadValueError(
                f"its segmentation is {show(segmentation)}; polygons or run lengths are needed"
            )
        if size is None:
            raise BadValueError("it is not run lengths, and the JSON does not state the image size")
        if _is_bitmap(segmentation, size):
            runs = window_runs(np.array(segmentation, bool), *size)
            return runs, encode_runs(runs)
        rle = rasterize_polygons([_polygon(part) for part in _parts(segmentation)], *size)
        return decode_runs(rle, *size), rle
    except BadValueError:
        raise
    except ValueError as error:  # of the run lengths themselves, in words
        raise BadValueError(str(error)) from error


def _read_run_lengths(segmentation: dict[str, Any], size: Size | None) -> tuple[Runs, bytes]:
    own = _size(segmentation)
    if size is not None and own != size:
        raise BadValueError(
            f"its mask has {own[0]} x {own[1]} px, the image {size[0]} x {size[1]}; "
            "sizes are height, width"
        )
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        if counts.startswith(("b'", 'b"')):
            raise BadValueError(
                "its counts are Python's print of bytes (b'...'); write counts.decode() into the "
                "JSON"
            )
        rle = counts.encode("utf-8", "surrogatepass")  # what is not ASCII is refused below
    elif isinstance(counts, list):
        plain = {type(n) for n in counts} == {int}  # else each is looked at, which takes long
        found = counts if plain else [whole(n, "a run length") for n in counts]
        rle = compress_counts(found, *own)
    else:
        raise BadValueError(f"its counts are {show(counts)}; text or a list is needed")
    return decode_runs(rle, *own), rle


def _size(segmentation: dict[str, Any]) -> Size:
    size = segmentation.get("size")
    if not isinstance(size, list) or len(size) != 2:
        raise BadValueError(f"its size is {show(size)}; [height, width] is needed")
    height, width = (whole(side, "a side of its mask") for side in size)
    if min(height, width) < 1:
        raise BadValueError(f"its size is {show(size)}; sides start at 1")
    return height, width


def _is_bitmap(segmentation: list[Any], size: Size) -> bool:
    rows = len(segmentation) == size[0] and all(isinstance(row, list) for row in segmentation)
    return rows and all(len(row) == size[1] and {*row} <= {0, 1} for row in segmentation)


def _parts(segmentation: list[Any]) -> list[Any]:
    """The polygons; a single one may stand there without the list around it."""
    is_flat = not any(isinstance(part, list) for part in segmentation)
    is_pairs = len(segmentation) >= 3 and all(_is_pair(part) for part in segmentation)
    if is_flat or is_pairs:
        return [segmentation]
    return [part for part in segmentation if part not in ([], None)]


def _is_pair(part: Any) -> bool:
    return isinstance(part, list) and len(part) == 2 and not isinstance(part[0], list)


def _polygon(part: Any) -> list[float]:
    """x0, y0, x1, y1, ... of one polygon, which may be a list of [x, y] pairs."""
    if not isinstance(part, list):
        raise BadValueError(f"a polygon is {show(part)}; a list of x, y is needed")
    if all(_is_pair(point) for point in part):
        part = [value for point in part for value in point]
    values = part if _is_plain(part) else [number(n, "a polygon's coordinate") for n in part]
    if len(values) < 6 or len(values) % 2 == 1:
        raise BadValueError(f"a polygon has {len(values)} numbers; 3 or more x, y pairs are needed")
    farthest = max(values, key=abs)
    if abs(farthest) > _FARTHEST:
        raise BadValueError(f"a polygon's coordinate is {show(farthest)}; it lies in no image")
    return values


def _is_plain(values: list[Any]) -> bool:
    """Whether all are finite numbers; each is looked at only where not, as that takes long."""
    try:
        numbers = {type(value) for value in values} <= {int, float}
        return numbers and bool(np.isfinite(np.array(values, np.float64)).all())
    except OverflowError:
        return False
