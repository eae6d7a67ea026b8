"""Label maps, as ADE20K: root/images/split/*.jpg and root/annotations/split/*.png, one id a pixel.

An object is a connected component of a class (over pixel sides) or all pixels of a class. Maps of
instance ids, 8 or 16 bit, work alike: each id is a class of its own.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from supersam.config.data import SourceConfig
from supersam.data.rle import Runs, window_runs
from supersam.data.sources.annotated import (
    AnnotatedImage,
    AnnotatedObject,
    BadInputError,
    Item,
    list_files,
    no_such_split,
    read_file,
    source_root,
)

_IMAGES = (".jpg", ".jpeg", ".png")
_MAX_ID = 0xFFFF
_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"})


def list_labelmap(config: SourceConfig) -> list[Item]:
    """Images and maps of the split, paired by their stems."""
    root = source_root(config.root)
    for kind in ("images", "annotations"):
        folder = root / kind / config.split
        if not folder.is_dir():
            splits = (path.name for path in folder.parent.glob("*") if path.is_dir())
            raise no_such_split(config.split, folder, splits)
    images = _by_stem(root / "images" / config.split, _IMAGES)
    maps = _by_stem(root / "annotations" / config.split, (".png",))
    return [
        _item(config.split, stem, images.get(stem, []), maps.get(stem, []))
        for stem in sorted(images.keys() | maps.keys())
    ]


def read_labelmap(config: SourceConfig, item: Item) -> AnnotatedImage:
    """One image and the objects of its label map."""
    root = source_root(config.root)
    labels = _read_labels(root / item.detail)
    left_out = {id for id in (config.background_id, config.ignore_id) if id is not None}
    components = config.instances == "components"
    objects = [
        AnnotatedObject(runs, category=label)
        for label, runs in label_objects(labels, components=components, left_out=left_out)
    ]
    height, width = labels.shape
    return AnnotatedImage(item.name, read_file(root / item.name), (height, width), objects)


def label_objects(
    labels: NDArray[np.integer[Any]], *, components: bool, left_out: Collection[int]
) -> Iterator[tuple[int, Runs]]:
    """(label, pixels) of every label, or of its connected components, by label, then by place."""
    from scipy import ndimage  # slow to import; only conversions come here

    height, width = labels.shape
    # Plus one, as it looks for labels from 1.
    for label, where in enumerate(ndimage.find_objects(labels.astype(np.int64) + 1)):
        if where is None or label in left_out:
            continue
        y, x = where[0].start, where[1].start
        window = labels[where] == label
        if not components:
            yield label, window_runs(window, height, width, y=y, x=x)
            continue
        parts, _ = ndimage.label(window)
        for part, inner in enumerate(ndimage.find_objects(parts), start=1):
            top, left = y + inner[0].start, x + inner[1].start
            yield label, window_runs(parts[inner] == part, height, width, y=top, x=left)


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[tuple[str, int]]]:
    found: dict[str, list[tuple[str, int]]] = {}
    for name, num_bytes in list_files(folder, suffixes):
        found.setdefault(str(PurePosixPath(name).with_suffix("")), []).append((name, num_bytes))
    return found


def _item(
    split: str, stem: str, images: list[tuple[str, int]], maps: list[tuple[str, int]]
) -> Item:
    num_bytes = sum(n for _, n in images + maps)
    map_name = f"annotations/{split}/{stem}.png"
    if len(images) == 0:
        return Item(map_name, num_bytes, fault=f"no image images/{split}/{stem}.* for this map")
    name = f"images/{split}/{images[0][0]}"
    if len(images) > 1:
        return Item(name, num_bytes, fault=f"{len(images)} images of the stem {stem}")
    if len(maps) == 0:
        return Item(name, num_bytes, fault=f"no label map {map_name} for this image")
    return Item(name, num_bytes, f"annotations/{split}/{maps[0][0]}")


def _read_labels(path: Path) -> NDArray[np.int64]:
    data = read_file(path)
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # on damaged bytes the decoders raise whatever they meet
        raise BadInputError(f"the label map {path.name} cannot be decoded: {error}") from error
    if image.mode not in _MODES:
        raise BadInputError(
            f"the label map {path.name} has mode {image.mode}; it takes one id a pixel, 8 or 16 bit"
        )
    labels = np.asarray(image).astype(np.int64)
    if labels.min() < 0 or labels.max() > _MAX_ID:
        raise BadInputError(
            f"the label map {path.name} has ids from {labels.min()} to {labels.max()}; it takes 0 "
            f"to {_MAX_ID}"
        )
    return labels
