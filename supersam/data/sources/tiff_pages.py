"""The pages of a TIFF file, as numbers and as they are to be seen."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from supersam.data.images import whole_pages
from supersam.data.sources.annotated import BadInputError, SourceError
from supersam.runtime.foreign import foreign_content, read_head

# What it logs of damaged files is raised too, and said in words here.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
_LOSSY = {
    tifffile.COMPRESSION[name]
    for name in ("OJPEG", "JPEG", "JPEG_LOSSY", "JPEGXR", "JPEG2000", "WEBP", "JPEGXL")
    if name in tifffile.COMPRESSION.__members__
}


class TiffPages:
    """The pages of a file, without smaller copies of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = tifffile.TiffFile(path)
            self._pages = whole_pages(self._file)
            first = self._pages[0]
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}") from error
        except Exception as error:  # on damaged bytes tifffile raises whatever it meets
            foreign = foreign_content(read_head(path))
            unknown = "not a TIFF file, or was cut short; save it again"
            raise SourceError(f"{path} is {foreign or unknown}") from error
        self.dtype: np.dtype[Any] = np.dtype(first.dtype)
        self._planes = self._contiguous_planes()

    def __len__(self) -> int:
        return len(self._pages) if self._planes is None else len(self._planes)

    def page_bytes(self) -> list[int]:
        """Return the bytes of each page, decoded."""
        if self._planes is not None:
            return [int(plane.nbytes) for plane in self._planes]
        return [int(np.prod(page.shape)) for page in self._pages]

    def read(self, page: int) -> NDArray[Any]:
        """Return a page as stored: (H, W) or (H, W, C). Raises BadInputError."""
        try:
            if self._planes is not None:
                return np.asarray(self._planes[page])
            return _decode(self._pages[page], self.path)
        except Exception as error:  # on damaged bytes the decoders raise whatever they meet
            raise BadInputError(
                f"page {page} of {self.path.name} cannot be read: {error}"
            ) from error

    def read_ids(self, page: int) -> NDArray[Any]:
        """Return a page of ids: (H, W), or (H, W, C) without alpha. Raises BadInputError."""
        stored = self._stored(page)
        if stored.compression in _LOSSY:
            raise BadInputError(
                f"page {page} of {self.path.name} is compressed by {stored.compression.name}, "
                "which changes ids at edges; save it with another compression, or none"
            )
        numbers = self.read(page)
        has_alpha = stored.photometric == tifffile.PHOTOMETRIC.RGB or any(stored.extrasamples)
        return numbers[..., :-1] if has_alpha and numbers.shape[2:] in ((2,), (4,)) else numbers

    def shown(self, page: int, pixels: NDArray[Any]) -> NDArray[Any]:
        """Return a page's pixels as they are to be seen: black is 0, colours are RGB.

        Raises BadInputError.
        """
        stored = self._stored(page)
        photometric, compression = stored.photometric, stored.compression
        if photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            pixels = _inverted(pixels, stored.bitspersample)
        if photometric == tifffile.PHOTOMETRIC.PALETTE and stored.colormap is not None:
            colours: NDArray[np.uint8] = (np.asarray(stored.colormap).T[pixels] >> 8).astype("u1")
            return colours
        if photometric == tifffile.PHOTOMETRIC.SEPARATED and pixels.shape[2:] == (4,):
            return _inks_to_rgb(pixels)
        # Of compressed YCbCr, the decoders make RGB.
        is_rgb = photometric == tifffile.PHOTOMETRIC.YCBCR and compression in _LOSSY
        if photometric > tifffile.PHOTOMETRIC.PALETTE and pixels.ndim == 3 and not is_rgb:
            raise BadInputError(
                f"page {page} of {self.path.name} has colours of kind {photometric.name}; save it "
                "as grey or RGB"
            )
        return _to_whole_bytes(pixels, stored.bitspersample)

    def _stored(self, page: int) -> Any:
        return self._pages[page if self._planes is None else 0]

    def _contiguous_planes(self) -> NDArray[Any] | None:
        """All planes, where the file has one directory for them: ImageJ above 4 GiB."""
        series: Any = self._file.series[0]
        if len(self._pages) > 1 or not getattr(series, "is_truncated", False):
            return None
        plane = series.shape[-3:] if series.axes.endswith("S") else series.shape[-2:]
        try:
            whole = tifffile.memmap(self.path, mode="r", series=0)
        except ValueError as error:
            raise SourceError(
                f"{self.path} states {int(np.prod(series.shape[: -len(plane)]))} planes, and the "
                "file is too short for them; save the stack again"
            ) from error
        planes: NDArray[Any] = whole.reshape(-1, *plane)
        return planes


def _decode(page: Any, path: Path) -> NDArray[Any]:
    try:
        pixels = np.asarray(page.asarray())
    except (ImportError, NotImplementedError, ValueError) as error:
        # LZW and others need a package that tifffile does not bring; Pillow knows some of them.
        if isinstance(error, ValueError) and "imagecodecs" not in str(error):
            raise
        return _decode_by_pillow(page, path)
    return np.moveaxis(pixels, 0, 2) if page.axes == "SYX" else pixels


def _decode_by_pillow(page: Any, path: Path) -> NDArray[Any]:
    pixels, mode = None, ""
    with contextlib.suppress(UnidentifiedImageError), Image.open(path) as image:
        image.seek(page.index)
        pixels, mode = np.asarray(image), image.mode
    if pixels is None or page.dtype.itemsize > 1 and pixels.ndim == 3:  # of 16 bits, it keeps 8
        raise ValueError(
            f"{page.dtype} numbers compressed by {page.compression.name} cannot be read here; save "
            "it without compression"
        )
    if mode in ("1", "L") and page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        pixels = ~pixels  # Pillow turns these pages itself; `shown` does it for all
    if mode == "L" and page.bitspersample < 8:
        pixels = np.floor_divide(pixels, 255 // (2**page.bitspersample - 1))  # it spreads them
    return pixels if pixels.dtype == bool else pixels.astype(page.dtype)


def _inverted(pixels: NDArray[Any], bits: int) -> NDArray[Any]:
    """White is zero: the largest number becomes the smallest."""
    if pixels.dtype.kind == "f":
        return -pixels
    return ~pixels if bits % 8 == 0 or pixels.dtype == bool else (2**bits - 1) - pixels


def _to_whole_bytes(pixels: NDArray[Any], bits: int) -> NDArray[Any]:
    """Pixels of 2 or 4 bits in the range of 8."""
    if 1 < bits < 8 and pixels.dtype == np.uint8:
        pixels = np.multiply(pixels, 255 // (2**bits - 1))
    return pixels


def _inks_to_rgb(pixels: NDArray[Any]) -> NDArray[Any]:
    """CMYK, (H, W, 4), as RGB."""
    if pixels.dtype != np.uint8:
        raise BadInputError(f"CMYK colours of type {pixels.dtype}; save the stack as RGB")
    rest = 255 - pixels.astype(np.uint16)
    return ((rest[..., :3] * rest[..., 3:] + 127) // 255).astype(np.uint8)
