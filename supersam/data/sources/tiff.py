"""Stacks, as in microscopy: root/split.tif and root/split_groundtruth.tif, page by page.

A mask's numbers above 0 are ids: an object is a connected component of an id (over pixel sides), or
all its pixels on a page. Masks of 0 and one other number have one id. 8-bit pages are kept as they
are; deeper ones are mapped to 8 bits by `images.grey_range` of the whole stack, so that all its
pages get the same mapping. White-is-zero pages are turned, palettes become colours.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
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
from supersam.data.sources.labelmap import label_objects, to_ids
from supersam.data.sources.tiff_pages import TiffPages

logger = logging.getLogger(__name__)

_SUFFIXES = (".tif", ".tiff")
_MASKS = "_groundtruth"


@dataclass(frozen=True)
class _Range:
    """How a stack's numbers become 8 bits."""

    low: float
    """The number that becomes 0 of 65535; deep pixels are first brought to 16 bits."""
    high: float
    """The number that becomes 65535."""
    black: int
    """Of 16 bits, what becomes 0 of 255."""
    white: int
    """Of 16 bits, what becomes 255."""


def list_tiff(config: SourceConfig) -> list[Item]:
    """Return the pages of the split's stack."""
    root = source_root(config.root)
    stack, masks = (TiffPages(_find(root, config.split + end)) for end in ("", _MASKS))
    if len(stack) != len(masks):
        raise SourceError(
            f"{stack.path.name} has {len(stack)} pages, {masks.path.name} {len(masks)}; each image "
            "page needs one mask page"
        )
    mapping = _find_range(stack)
    has_ids = _has_ids(masks)
    detail = (mapping, has_ids)
    sizes = stack.page_bytes()
    return [
        Item(f"{stack.path.name}#{page}", size, (page, *detail)) for page, size in enumerate(sizes)
    ]


def tiff_splits(root: Path) -> list[str]:
    """Return the names of the stacks that have masks."""
    stacks = _stacks(root)
    return [name for name in stacks if name + _MASKS in stacks]


def read_tiff(config: SourceConfig, item: Item) -> AnnotatedImage:
    """Return one page and the objects of its mask page."""
    root = source_root(config.root)
    page, mapping, has_ids = item.detail
    stack, masks = (_open_stack(_find(root, config.split + end)) for end in ("", _MASKS))
    raw = stack.read(page)
    pixels = _to_uint8(stack.shown(page, raw), mapping, page)
    labels = to_ids(masks.read_ids(page), f"mask page {page}").clip(0)
    found = label_objects(labels, components=config.instances == "components", left_out={0})
    objects = [AnnotatedObject(runs, category=id if has_ids else 0) for id, runs in found]
    height, width = labels.shape
    content = content_id(raw)
    return AnnotatedImage(item.name, pixels, (height, width), objects, content=content)


def read_page_content(config: SourceConfig, name: str) -> int:
    """Return the `content_id` of a page, by its item's name. Raises BadInputError."""
    page = int(name.rpartition("#")[2])
    return content_id(_open_stack(_find(source_root(config.root), config.split)).read(page))


def _open_stack(path: Path) -> TiffPages:
    """The stack, opened once per process: a file of many pages takes long to list."""
    status = path.stat()
    return _opened(path, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=4)
def _opened(path: Path, _: tuple[int, ...]) -> TiffPages:
    return TiffPages(path)


def _find(root: Path, stem: str) -> Path:
    files = _stacks(root)
    if len(found := files.get(stem, [])) > 1:
        raise SourceError(
            f"{root} has {' and '.join(path.name for path in found)}; leave one of them there"
        )
    if found:
        return found[0]
    if stem.endswith(_MASKS):
        raise SourceError(f"no masks {root / stem}.tif; found: {', '.join(sorted(files))}")
    raise no_such_split(stem, root / f"{stem}.tif", tiff_splits(root))


def _stacks(root: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in sorted(root.iterdir()):
        if path.suffix.lower() in _SUFFIXES:
            files.setdefault(path.stem, []).append(path)
    return files


def _has_ids(masks: TiffPages) -> bool:
    """Whether the masks hold several numbers above 0, so that each is an id of its own."""
    values: set[int] = set()
    for k in range(len(masks)):
        with contextlib.suppress(BadInputError):  # its turn comes
            values |= {*np.unique(to_ids(masks.read_ids(k), "").clip(0)).tolist()} - {0}
    if len(values) < 2:
        return False
    logger.info(
        "%s holds %d numbers above 0, from %d to %d: each is taken as an id of its own",
        masks.path.name,
        len(values),
        min(values),
        max(values),
    )
    return True


def _shown_pages(stack: TiffPages) -> Iterator[NDArray[Any]]:
    """The pages of the stack's type that can be read: another fails by name when its turn comes."""
    for k in range(len(stack)):
        with contextlib.suppress(BadInputError):
            page = stack.read(k)
            if page.dtype == stack.dtype:
                yield stack.shown(k, page)


def _find_range(stack: TiffPages) -> _Range | None:
    """The mapping of a deep stack to 8 bits; None for one of 8 bits."""
    dtype = stack.dtype
    if dtype.kind not in "iuf" or dtype == np.uint8:
        return None
    low, high = _span(stack, dtype)
    histogram = np.zeros(1 << 16, np.int64)
    for page in _shown_pages(stack):
        if np.isfinite(page).all():
            deep = _to_uint16(page, low, high)
            histogram += np.bincount(deep.ravel(), minlength=1 << 16)
    return _Range(low, high, *grey_range(histogram)) if histogram.any() else None


def _span(stack: TiffPages, dtype: np.dtype[Any]) -> tuple[float, float]:
    """The numbers that become 0 and 65535: all that 16 bits can hold, else those there are."""
    if dtype.kind in "iu" and dtype.itemsize <= 2:
        limits = np.iinfo(dtype)
        return (0, 0xFFFF) if limits.min == 0 else (limits.min, limits.min + 0xFFFF)
    low, high = np.inf, -np.inf
    for page in _shown_pages(stack):
        finite = page[np.isfinite(page)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if high > low:
        return low, high
    only = low if np.isfinite(low) else 0.0
    return only, only + 1.0


def _to_uint16(pixels: NDArray[Any], low: float, high: float) -> NDArray[np.uint16]:
    if pixels.dtype.kind in "iu" and high - low == 0xFFFF:
        return (pixels.astype(np.int64) - int(low)).astype(np.uint16)
    share = (pixels.astype(np.float64) - low) / (high - low)
    deep: NDArray[np.uint16] = np.rint(share.clip(0, 1) * 0xFFFF).astype(np.uint16)
    return deep


def _to_uint8(pixels: NDArray[Any], mapping: _Range | None, page: int) -> NDArray[np.uint8]:
    """(H, W) grey or (H, W, 3) RGB; an alpha channel is dropped."""
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        pixels = pixels[..., : pixels.shape[2] - 1]
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 and pixels.shape[2:] != (3,) or pixels.dtype.kind not in "biuf":
        raise BadInputError(
            f"page {page} has pixels {pixels.shape} {pixels.dtype}; grey or RGB pages are needed"
        )
    if not np.isfinite(pixels).all():
        raise BadInputError(
            f"page {page} has pixels that are NaN or infinite; save it without them"
        )
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype == np.uint8:
        return pixels
    if mapping is None:
        raise BadInputError(f"page {page} has {pixels.dtype} pixels, the first page has not")
    deep = _to_uint16(pixels, mapping.low, mapping.high)
    return grey_to_uint8(deep, mapping.black, mapping.white)
