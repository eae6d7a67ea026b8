"""Annotated images to samples: checked, small objects left out, large images cut into tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from supersam.config.data import SourceConfig
from supersam.data.identity import content_id, stable_id
from supersam.data.images import (
    MAX_WHOLE_PX,
    BadImageError,
    LoadedImage,
    encode_png,
    load_image,
)
from supersam.data.manifest import Counts
from supersam.data.rle import mask_record, window_runs
from supersam.data.sample import MaskRecord, Origin, SegmentationSample, Tile
from supersam.data.sources.annotated import AnnotatedImage, AnnotatedObject, BadInputError


@dataclass(frozen=True)
class Samples:
    """What came of one input image."""

    samples: tuple[SegmentationSample, ...]
    counts: Counts
    """Images or tiles without an object; of tiles, small objects are their cut parts."""
    bad: tuple[tuple[str, str], ...] = ()
    """Annotations that could not be used: which, and why."""


def make_samples(
    image: AnnotatedImage, config: SourceConfig, *, group: int | None = None
) -> Samples:
    """Decode the image, check it against its annotation, cut it if it is larger than a tile.

    `group` is the number of its clip or stack; None where it stands alone.
    """
    loaded = _load(image, config)
    source = content_id(image.image) if image.content is None else image.content
    origin = Origin(source, source if group is None else group)
    height, width = image.size
    has_more = loaded.num_pictures > 1
    counts = image.counts + Counts(
        unsure_turns=int(loaded.is_turn_unsure),
        first_pictures=int(has_more),
        first_picture_of=f"{image.name} ({loaded.num_pictures})" if has_more else "",
    )
    if config.tile_px is None or max(height, width) <= config.tile_px:
        objects = [_record(o) for o in image.objects if o.runs.area >= config.min_area_px]
        sample = _sample(image.name, loaded, image.size, objects, origin)
        counts += Counts(int(not objects), len(image.objects) - len(objects))
        return Samples((sample,) if objects else (), counts, tuple(image.bad))
    samples, cut = _cut(image, loaded.pixels, origin, config)
    return Samples(samples, counts + cut, tuple(image.bad))


def _load(image: AnnotatedImage, config: SourceConfig) -> LoadedImage:
    max_pixels = MAX_WHOLE_PX if config.tile_px is None else None
    try:
        data = image.image if isinstance(image.image, bytes) else encode_png(image.image)
        return load_image(data, size=image.size, exif=config.exif, max_pixels=max_pixels)
    except BadImageError as error:
        raise BadInputError(str(error)) from error


def _cut(
    image: AnnotatedImage, pixels: NDArray[np.uint8], origin: Origin, config: SourceConfig
) -> tuple[tuple[SegmentationSample, ...], Counts]:
    assert config.tile_px is not None  # the caller compared it with the image
    is_grey = bool(np.all(pixels == pixels[..., :1]))
    pixels = pixels[..., 0] if is_grey else pixels  # a third of the bytes, the same RGB
    samples = []
    tiles = list(_tiles(*image.size, config.tile_px))
    small = sum(o.runs.area == 0 for o in image.objects)
    for tile in tiles:
        parts = [part for o in image.objects if (part := _part(o, tile)) is not None]
        objects = [_record(part) for part in parts if part.runs.area >= config.min_area_px]
        small += len(parts) - len(objects)
        if objects:
            name = f"{image.name}#y{tile.y},x{tile.x}"
            cut = pixels[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width]
            loaded = LoadedImage(encode_png(np.ascontiguousarray(cut)), "png", cut)
            cut_from = replace(origin, tile=tile)
            samples.append(_sample(name, loaded, (tile.height, tile.width), objects, cut_from))
    return tuple(samples), Counts(len(tiles) - len(samples), small)


def _tiles(height: int, width: int, tile_px: int) -> Iterator[Tile]:
    """The fewest tiles of at most `tile_px` on a side, equal but for one pixel."""
    rows, columns = _edges(height, tile_px), _edges(width, tile_px)
    for y, y_end in zip(rows, rows[1:], strict=False):
        for x, x_end in zip(columns, columns[1:], strict=False):
            yield Tile(y, x, y_end - y, x_end - x, height, width)


def _edges(length: int, tile_px: int) -> list[int]:
    count = -(-length // tile_px)
    return [k * length // count for k in range(count + 1)]


def _part(whole: AnnotatedObject, tile: Tile) -> AnnotatedObject | None:
    """What a tile shows of an object; None if nothing."""
    x, y, width, height = whole.runs.bbox
    if y >= tile.y + tile.height or x >= tile.x + tile.width:
        return None
    if y + height <= tile.y or x + width <= tile.x:
        return None
    runs = window_runs(
        whole.runs.draw(tile.y, tile.x, tile.height, tile.width), tile.height, tile.width
    )
    if runs.area == 0:
        return None
    point = whole.point
    return AnnotatedObject(
        runs,
        category=whole.category,
        predicted_iou=whole.predicted_iou,
        stability_score=whole.stability_score,
        point=None if point is None else (point[0] - tile.x, point[1] - tile.y),
    )


def _record(found: AnnotatedObject) -> MaskRecord:
    return mask_record(
        found.runs,
        rle=found.rle,
        category=found.category,
        predicted_iou=found.predicted_iou,
        stability_score=found.stability_score,
        point=found.point,
    )


def _sample(
    name: str,
    loaded: LoadedImage,
    size: tuple[int, int],
    objects: list[MaskRecord],
    origin: Origin,
) -> SegmentationSample:
    return SegmentationSample(
        stable_id(name), name, loaded.data, loaded.format, *size, tuple(objects), origin
    )
