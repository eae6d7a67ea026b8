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
import tifffile
from numpy.typing import NDArray
from PIL import Image

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
    stack, masks = _Stack(_find(root, config.split)), _Stack(_find(root, config.split + _MASKS))
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
    pixels = _to_uint8(stack.shown(raw), mapping, page)
    labels = _to_labels(masks.read(page), page)
    found = label_objects(labels, components=config.instances == "components", left_out={0})
    objects = [AnnotatedObject(runs, category=id if has_ids else 0) for id, runs in found]
    height, width = labels.shape
    content = content_id(raw)
    return AnnotatedImage(item.name, pixels, (height, width), objects, content=content)


def read_page_content(config: SourceConfig, name: str) -> int:
    """Return the `content_id` of a page, by its item's name. Raises BadInputError."""
    page = int(name.rpartition("#")[2])
    return content_id(_open_stack(_find(source_root(config.root), config.split)).read(page))


class _Stack:
    """The planes of a TIFF file, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = tifffile.TiffFile(path)
            first: Any = self._file.pages[0]
        except (OSError, ValueError, IndexError, tifffile.TiffFileError) as error:
            raise SourceError(f"{path} is not a TIFF file: {error}") from error
        self._photometric = first.photometric
        self._colours = None if first.colormap is None else np.asarray(first.colormap)
        self._planes = self._contiguous_planes()

    def __len__(self) -> int:
        return len(self._file.pages) if self._planes is None else len(self._planes)

    def page_bytes(self) -> list[int]:
        """Return the bytes of each page, decoded."""
        if self._planes is not None:
            return [int(plane.nbytes) for plane in self._planes]
        return [int(np.prod(page.shape)) for page in self._file.pages]

    def dtype(self) -> np.dtype[Any]:
        """Return the type of the first page's numbers."""
        first: Any = self._file.pages[0]
        dtype: np.dtype[Any] = np.dtype(first.dtype)
        return dtype

    def read(self, page: int) -> NDArray[Any]:
        """Return a page as stored: (H, W) or (H, W, C). Raises BadInputError."""
        try:
            if self._planes is not None:
                return np.asarray(self._planes[page])
            found: Any = self._file.pages[page]
            pixels = self._decode(found, page)
            return np.moveaxis(pixels, 0, 2) if found.axes == "SYX" else pixels
        except Exception as error:  # on damaged bytes the decoders raise whatever they meet
            raise BadInputError(
                f"page {page} of {self.path.name} cannot be read: {error}"
            ) from error

    def shown(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Return a page's pixels as they are to be seen: black is 0, a palette is colours."""
        if self._photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            return _inverted(pixels)
        if self._photometric == tifffile.PHOTOMETRIC.PALETTE and self._colours is not None:
            colours: NDArray[np.uint8] = (self._colours.T[pixels] >> 8).astype(np.uint8)
            return colours
        return pixels

    def _decode(self, found: Any, page: int) -> NDArray[Any]:
        try:
            return np.asarray(found.asarray())
        except ValueError as error:
            # LZW and others need a package that tifffile does not bring; Pillow knows some of them.
            if "imagecodecs" not in str(error):
                raise
            return self._decode_by_pillow(found, page)

    def _decode_by_pillow(self, found: Any, page: int) -> NDArray[Any]:
        with Image.open(self.path) as image:
            image.seek(page)
            pixels = np.asarray(image)
            mode = image.mode
        if found.dtype.itemsize > 1 and mode in ("RGB", "RGBA"):
            raise ValueError(
                "16-bit colours with this compression cannot be read; save it without compression"
            )
        if mode in ("1", "L") and self._photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            pixels = _inverted(pixels)  # Pillow turns these pages itself; `shown` does it for all
        return pixels

    def _contiguous_planes(self) -> NDArray[Any] | None:
        """All planes, where the file has one directory for them: ImageJ above 4 GiB."""
        series: Any = self._file.series[0]
        if len(self._file.pages) > 1 or not getattr(series, "is_truncated", False):
            return None
        plane = series.shape[-3:] if series.axes.endswith("S") else series.shape[-2:]
        try:
            whole = tifffile.memmap(self.path, mode="r", series=0)
        except ValueError as error:
            raise SourceError(
                f"{self.path} states {int(np.prod(series.shape[: -len(plane)]))} planes, and the "
                f"file is too short for them ({error}); save the stack again"
            ) from error
        planes: NDArray[Any] = whole.reshape(-1, *plane)
        return planes


def _open_stack(path: Path) -> _Stack:
    """The stack, opened once per process: a file of many pages takes long to list."""
    status = path.stat()
    return _opened(path, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=4)
def _opened(path: Path, _: tuple[int, ...]) -> _Stack:
    return _Stack(path)


def _find(root: Path, stem: str) -> Path:
    files = _stacks(root)
    if stem in files:
        return files[stem]
    if stem.endswith(_MASKS):
        raise SourceError(f"no masks {root / stem}.tif; found: {', '.join(sorted(files))}")
    raise no_such_split(stem, root / f"{stem}.tif", tiff_splits(root))


def _stacks(root: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(root.iterdir()) if path.suffix.lower() in _SUFFIXES}


def _has_ids(masks: _Stack) -> bool:
    """Whether the masks hold several numbers above 0, so that each is an id of its own."""
    values: set[int] = set()
    for _, page in _pages(masks):
        if page.ndim == 2 and page.dtype.kind in "biuf":
            found = np.unique(page[page > 0])
            values |= {int(value) for value in found[np.isfinite(found)]}
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


def _pages(stack: _Stack) -> Iterator[tuple[int, NDArray[Any]]]:
    """The pages that can be read: a damaged one fails by name when its turn comes."""
    for k in range(len(stack)):
        with contextlib.suppress(BadInputError):
            yield k, stack.read(k)


def _find_range(stack: _Stack) -> _Range | None:
    """The mapping of a deep stack to 8 bits; None for one of 8 bits."""
    dtype = stack.dtype()
    if dtype.kind not in "iuf" or dtype == np.uint8:
        return None
    low, high = _span(stack, dtype)
    histogram = np.zeros(1 << 16, np.int64)
    for _, page in _pages(stack):
        if page.dtype == dtype and np.isfinite(page).all():
            deep = _to_uint16(stack.shown(page), low, high)
            histogram += np.bincount(deep.ravel(), minlength=1 << 16)
    return _Range(low, high, *grey_range(histogram)) if histogram.any() else None


def _span(stack: _Stack, dtype: np.dtype[Any]) -> tuple[float, float]:
    """The numbers that become 0 and 65535: all that 16 bits can hold, else those there are."""
    if dtype.kind in "iu" and dtype.itemsize <= 2:
        limits = np.iinfo(dtype)
        return (0, 0xFFFF) if limits.min == 0 else (limits.min, limits.min + 0xFFFF)
    low, high = np.inf, -np.inf
    for _, page in _pages(stack):
        shown = stack.shown(page)
        finite = shown[np.isfinite(shown)] if page.dtype == dtype else shown[:0]
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


def _to_labels(mask: NDArray[Any], page: int) -> NDArray[np.int64]:
    """(H, W) ids, 0 where nothing is."""
    if mask.ndim != 2:
        raise BadInputError(
            f"mask page {page} has shape {mask.shape}; one number per pixel is needed"
        )
    if mask.dtype.kind == "f" and not np.array_equal(mask, np.rint(mask)):
        raise BadInputError(f"mask page {page} has fractions or NaN; whole numbers are needed")
    return mask.astype(np.int64).clip(0)


def _inverted(pixels: NDArray[Any]) -> NDArray[Any]:
    """White is zero: the largest number becomes the smallest."""
    return -pixels if pixels.dtype.kind == "f" else ~pixels
