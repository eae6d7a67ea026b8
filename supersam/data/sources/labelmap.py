"""Label maps, one id per pixel: ADE20K's folders, or Cityscapes' own.

root/images/split/*.jpg with root/annotations/split/*.png, or root/leftImg8bit/split/CITY/ with
root/gtFine/split/CITY/. An object is a connected component of an id (over pixel sides) or all
pixels of an id. Maps of instance ids, 8 or 16 bit, work alike: each id is a class of its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supersam.config.data import SourceConfig
from supersam.data.images import BadImageError, deep_colours, is_lossy_webp, open_image
from supersam.data.manifest import Counts
from supersam.data.rle import Runs, window_runs
from supersam.data.sources.annotated import (
    IMAGE_SUFFIXES,
    AnnotatedImage,
    AnnotatedObject,
    BadInputError,
    Item,
    SourceError,
    list_files,
    no_such_split,
    read_file,
    source_root,
    stem_key,
)
from supersam.data.sources.tiff_pages import TiffPages

_MAPS = (".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jpg", ".jpeg")
_MAX_ID = 0xFFFF
_LARGEST = 1 << 53
"""Above it, not every whole number is a float64."""
_LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF")
_FOLDERS = (("images", "annotations"), ("leftImg8bit", "gtFine"), ("leftImg8bit", "gtCoarse"))
# What tools append to an image's stem; other maps of the same image, which are not of class ids.
_IMAGE_END = re.compile(r"_leftImg8bit$")
_MAP_END = re.compile(
    r"(?:_gt(?:Fine|Coarse))?[_.-](?:labelIds|(?:cp_)?masks?|labels?|lbl|annotations?|"
    r"seg(?:mentation)?s?|gt|jpe?g|png|tiff?|bmp|webp)$",
    re.IGNORECASE,
)
_OTHER_MAP = re.compile(r"_gt(?:Fine|Coarse)_(?:color|instanceIds|(?:label|instance)TrainIds)$")

_Files = dict[str, list[tuple[str, int]]]
"""By stem: names relative to the folder, and bytes."""


def list_labelmap(config: SourceConfig) -> list[Item]:
    """Return the images and maps of the split, paired by their stems."""
    root = source_root(config.root)
    image_folder, map_folder = _find_folders(root, config.split)
    images = _by_stem(root / image_folder, IMAGE_SUFFIXES)
    maps = _by_stem(root / map_folder, _MAPS)
    images, maps = _shorten_stems(images, maps)
    return [
        _item(stem, image_folder, map_folder, images.get(stem, []), maps.get(stem, []))
        for stem in sorted(images.keys() | maps.keys())
    ]


def labelmap_splits(root: Path, *, paired: bool = False) -> set[str]:
    """Return the splits that have a folder of images or maps; with `paired`, of both."""
    splits: set[str] = set()
    for folders in _FOLDERS:
        images, maps = ({p.name for p in (root / f).glob("*") if p.is_dir()} for f in folders)
        splits |= images & maps if paired else images | maps
    return splits


def read_labelmap(config: SourceConfig, item: Item) -> AnnotatedImage:
    """Return one image and the objects of its label map."""
    root = source_root(config.root)
    labels = _read_labels(root / item.detail)
    background = [] if config.background_id is None else [config.background_id]
    components = config.instances == "components"
    left_out = {*background, *config.ignore_id}
    objects = [
        AnnotatedObject(runs, category=label)
        for label, runs in label_objects(labels, components=components, left_out=left_out)
    ]
    counts = Counts(background_maps=int(bool(np.isin(labels, background).any())))
    data = read_file(root / item.name)
    height, width = labels.shape
    return AnnotatedImage(item.name, data, (height, width), objects, counts=counts)


def label_objects(
    labels: NDArray[np.integer[Any]], *, components: bool, left_out: Collection[int]
) -> Iterator[tuple[int, Runs]]:
    """Yield (label, pixels) of every label or connected component, by label, then by place."""
    from scipy import ndimage  # slow to import; only conversions come here

    height, width = labels.shape
    for label, y, x, window in _windows(labels):
        if label in left_out:
            continue
        if not components:
            yield label, window_runs(window, height, width, y=y, x=x)
            continue
        parts, _ = ndimage.label(window)
        for part, inner in enumerate(ndimage.find_objects(parts), start=1):
            top, left = y + inner[0].start, x + inner[1].start
            yield label, window_runs(parts[inner] == part, height, width, y=top, x=left)


def _windows(
    labels: NDArray[np.integer[Any]],
) -> Iterator[tuple[int, int, int, NDArray[np.bool_]]]:
    """(label, top, left, pixels) of every label, in its tight box."""
    from scipy import ndimage  # slow to import; only conversions come here

    values = None
    if labels.max() > _MAX_ID:  # it lists every number up to the largest
        values, inverse = np.unique(labels, return_inverse=True)
        labels = inverse.reshape(labels.shape)
    # Plus one, as it looks for labels from 1.
    for label, where in enumerate(ndimage.find_objects(labels.astype(np.int64) + 1)):
        if where is not None:
            value = label if values is None else int(values[label])
            yield value, where[0].start, where[1].start, labels[where] == label


def _find_folders(root: Path, split: str) -> tuple[str, str]:
    """Where images and maps of the split lie, relative to the root."""
    for images, maps in _FOLDERS:
        if (root / images / split).is_dir() and (root / maps / split).is_dir():
            return f"{images}/{split}", f"{maps}/{split}"
    lacking = next(
        (root / folder / split for folder in _FOLDERS[0] if not (root / folder / split).is_dir()),
        root,
    )
    raise no_such_split(split, lacking, labelmap_splits(root))


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> _Files:
    found: _Files = {}
    for name, num_bytes in list_files(folder, suffixes):
        found.setdefault(stem_key(name), []).append((name, num_bytes))
    return found


def _shorten_stems(images: _Files, maps: _Files) -> tuple[_Files, _Files]:
    """Stems without what tools append, where that makes a pair."""
    bare = {_IMAGE_END.sub("", stem): stem for stem in images} | {stem: stem for stem in images}
    renamed: _Files = {}
    for stem in [*maps]:
        if stem in images:
            continue
        short = _MAP_END.sub("", stem)
        if short in bare and short not in maps:
            renamed.setdefault(bare[short], []).extend(maps.pop(stem))
        elif _OTHER_MAP.search(stem):
            del maps[stem]
    return images, maps | renamed


def _item(
    stem: str,
    image_folder: str,
    map_folder: str,
    images: list[tuple[str, int]],
    maps: list[tuple[str, int]],
) -> Item:
    num_bytes = sum(n for _, n in images + maps)
    if len(images) == 0:
        map_name = f"{map_folder}/{maps[0][0]}"
        return Item(map_name, num_bytes, fault=f"no image {image_folder}/{stem}.* for this map")
    name = f"{image_folder}/{images[0][0]}"
    if len(images) > 1:
        return Item(name, num_bytes, fault=f"{len(images)} images of the stem {stem}")
    if len(maps) == 0:
        wanted = f"{map_folder}/{stem}.png"
        return Item(name, num_bytes, fault=f"no label map {wanted} for this image")
    if len(maps) > 1:
        listed = ", ".join(map_name for map_name, _ in maps)
        return Item(name, num_bytes, fault=f"{len(maps)} label maps of the stem {stem}: {listed}")
    return Item(name, num_bytes, f"{map_folder}/{maps[0][0]}")


def to_ids(numbers: NDArray[Any], what: str) -> NDArray[np.int64]:
    """Return the ids of (H, W) numbers, or of (H, W, C) where all channels are equal.

    Raises BadInputError, which begins with `what`.
    """
    if numbers.ndim == 3 and np.all(numbers == numbers[..., :1]):
        numbers = numbers[..., 0]
    if numbers.ndim != 2 or numbers.dtype.kind not in "biuf":
        shape = " x ".join(map(str, numbers.shape))
        raise BadInputError(
            f"{what} has colours ({shape}), not ids; export it with one class id "
            "per pixel, grey or palette, 8 or 16 bit"
        )
    if numbers.dtype.kind == "f" and not np.array_equal(numbers, np.rint(numbers)):
        raise BadInputError(f"{what} has fractions or NaN; whole numbers are needed")
    if numbers.max() > _LARGEST or numbers.dtype.kind == "f" and numbers.min() < -_LARGEST:
        raise BadInputError(f"{what} has ids beyond 2^53; number its objects anew")
    return numbers.astype(np.int64)


def _read_labels(path: Path) -> NDArray[np.int64]:
    what = f"the label map {path.name}"
    data = read_file(path)
    is_tiff = data[:2] in (b"II", b"MM")
    labels = to_ids(_read_tiff(path, what) if is_tiff else _read_picture(data, what), what)
    if labels.min() < 0 or labels.max() > _MAX_ID:
        raise BadInputError(
            f"{what} has ids from {labels.min()} to {labels.max()}; ids from 0 to {_MAX_ID} can be "
            "read"
        )
    return labels


def _read_tiff(path: Path, what: str) -> NDArray[Any]:
    try:
        pages = TiffPages(path)
    except SourceError as error:
        raise BadInputError(str(error)) from error
    _require_one(len(pages), what)
    return pages.read_ids(0)


def _read_picture(data: bytes, what: str) -> NDArray[Any]:
    """The numbers of a file that Pillow reads, as stored: (H, W), or (H, W, C) without alpha."""
    try:
        image = open_image(data, max_pixels=None)  # its image is refused where it is too large
        deep = deep_colours(image, data)
    except BadImageError as error:
        raise BadInputError(f"{what} {str(error).removeprefix('the image ')}") from error
    if image.format in _LOSSY or image.format == "WEBP" and is_lossy_webp(data):
        raise BadInputError(
            f"{what} is compressed as {image.format}, which changes ids at edges; export it as PNG"
        )
    _require_one(getattr(image, "n_frames", 1), what)
    if deep is not None:
        return deep
    numbers = np.asarray(image)
    if image.format == "PNG" and image.mode == "L" and (bits := data[24]) < 8:
        numbers = np.floor_divide(numbers, 255 // (2**bits - 1))  # Pillow spreads them over 8 bits
    if image.mode not in ("LA", "PA", "RGBA"):
        return numbers
    if image.format == "WEBP" and not numbers[..., -1].all():
        raise BadInputError(f"{what} is a WebP without ids where it is clear; export it as PNG")
    return numbers[..., :-1]


def _require_one(pictures: int, what: str) -> None:
    if pictures > 1:
        raise BadInputError(f"{what} holds {pictures} pictures; save one map for each image")
