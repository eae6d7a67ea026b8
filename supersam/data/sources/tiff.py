"""Stacks, as in electron microscopy: root/split.tif and root/split_groundtruth.tif, page by page.

Mask pixels above 0 are objects: connected components over pixel sides, or one object a page.
8-bit pages are kept as they are; 16-bit pages are mapped to 8 bits by `images.grey_range` of the
whole stack, so that all its pages get the same mapping.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from supersam.config.data import SourceConfig
from supersam.data.identity import content_id
from supersam.data.images import grey_range, grey_to_uint8
from supersam.data.sources.annotated import (
    AnnotatedImage,
    AnnotatedObject,
    BadInputError,
    Item,
    SourceError,
    no_such_split,
    source_root,
)
from supersam.data.sources.labelmap import label_objects

_SUFFIXES = (".tif", ".tiff")
_MASKS = "_groundtruth"


def list_tiff(config: SourceConfig) -> list[Item]:
    """The pages of the split's stack."""
    root = source_root(config.root)
    stack, masks = _find(root, config.split), _find(root, config.split + _MASKS)
    with _open(stack) as images, _open(masks) as grounds:
        if len(images.pages) != len(grounds.pages):
            raise SourceError(
                f"{stack.name} has {len(images.pages)} pages, {masks.name} {len(grounds.pages)}; "
                "each image page takes one mask page"
            )
        num_bytes = [int(np.prod(page.shape)) for page in images.pages]
        grey = _grey_range(stack, images.pages)
    return [Item(f"{stack.name}#{page}", size, (page, grey)) for page, size in enumerate(num_bytes)]


def read_tiff(config: SourceConfig, item: Item) -> AnnotatedImage:
    """One page and the objects of its mask page."""
    root = source_root(config.root)
    page, grey = item.detail
    pixels = _read_page(_find(root, config.split), page)
    mask = _read_page(_find(root, config.split + _MASKS), page)
    content = content_id(pixels)
    if pixels.dtype == np.uint16:
        pixels = grey_to_uint8(pixels, *grey)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise BadInputError(
            f"page {page} has pixels {pixels.shape} {pixels.dtype}; it takes 8 or 16 bit grey or "
            "8 bit RGB"
        )
    if mask.ndim != 2:
        raise BadInputError(f"mask page {page} has shape {mask.shape}; it takes one number a pixel")
    labels = (mask > 0).astype(np.uint8)
    found = label_objects(labels, components=config.instances == "components", left_out={0})
    objects = [AnnotatedObject(runs) for _, runs in found]
    height, width = mask.shape
    return AnnotatedImage(item.name, pixels, (height, width), objects, content)


def read_page_content(config: SourceConfig, name: str) -> int:
    """Return the `content_id` of a page, by its item's name. Raises BadInputError."""
    page = int(name.rpartition("#")[2])
    return content_id(_read_page(_find(source_root(config.root), config.split), page))


def _find(root: Path, stem: str) -> Path:
    for suffix in _SUFFIXES:
        if (root / f"{stem}{suffix}").is_file():
            return root / f"{stem}{suffix}"
    stems = [path.stem for path in root.iterdir() if path.suffix in _SUFFIXES]
    if stem.endswith(_MASKS):
        raise SourceError(f"no masks {root / stem}.tif; found: {', '.join(sorted(stems))}")
    whole = [name for name in stems if name + _MASKS in stems]
    raise no_such_split(stem, root / f"{stem}.tif", whole)


def _open(path: Path) -> Any:
    try:
        return tifffile.TiffFile(path)
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise SourceError(f"{path} is no TIFF file: {error}") from error


def _grey_range(path: Path, pages: Sequence[Any]) -> tuple[int, int] | None:
    """The mapping of a 16-bit stack to 8 bits; None if no page has 16 bits."""
    histogram = np.zeros(1 << 16, np.int64)
    for k, page in enumerate(pages):
        # A damaged page fails by name when its turn comes; the others need not wait for that.
        with contextlib.suppress(BadInputError):
            if page.dtype == np.uint16:
                histogram += np.bincount(_read_page(path, k).ravel(), minlength=1 << 16)
    return grey_range(histogram) if histogram.any() else None


def _read_page(path: Path, page: int) -> NDArray[Any]:
    try:
        return np.asarray(tifffile.imread(path, key=page))
    except Exception as error:  # on damaged bytes the decoders raise whatever they meet
        raise BadInputError(f"page {page} of {path.name} cannot be read: {error}") from error
