"""Encoded images to pixels and back. The one place that decides how a file becomes RGB.

An EXIF orientation is followed where only the upright picture has the size that the annotation
states, and not where only the stored one has it. Where both have it, the caller decides; without
a word from the caller the stored picture is taken, as COCO and SA-1B do, and the result says so. An
alpha channel is dropped, the colours under it are kept. Values of more than 8 bits are mapped by
`grey_range`. Of a file of several pictures the first is taken, as annotation tools show it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from supersam.config.data import ExifPolicy
from supersam.data.sample import ImageFormat
from supersam.runtime.foreign import foreign_content

# Of damaged EXIF blocks and of palettes with alpha, which is dropped.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

MIN_SIDE_PX = 2
MAX_WHOLE_PX = 178_956_970
"""Most pixels of an image that is kept whole: half a GiB of RGB, Pillow's own limit."""
# Files in these formats and modes are kept as found: any decoder makes the same RGB of them.
_KEPT_FORMATS: dict[str | None, ImageFormat] = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
_KEPT_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})
_DEEP_MODES = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
# Measured on photographs and micrographs: twice as fast as the default 6, files up to 4 % larger.
_PNG_LEVEL = 3
_EXIF_ORIENTATION = 0x0112
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # of TIFF files
_SAMPLE_FORMAT, _SIGNED = 339, 2
_COPY_OR_MASK = 1 | 4  # of NewSubfileType: a smaller copy of another page, or its transparency
# How Pillow gives out the upper and the lower bytes of a 16-bit PNG, by the colour type in its
# header: mode and two raw modes.
_GREY_ALPHA = 4
_BYTE_PAIRS = {
    2: ("RGB", "RGB;16B", "RGB;16L"),
    6: ("RGBA", "RGBA;16B", "RGBA;16L"),
    _GREY_ALPHA: ("RGBA", "RGBA", "RGBA"),
}


class BadImageError(ValueError):
    """An image that cannot be used, and why."""


@dataclass(frozen=True)
class LoadedImage:
    """An encoded image that has been decoded once, in a form that `decode_rgb` reads."""

    data: bytes
    format: ImageFormat
    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    is_turn_unsure: bool = False
    """Whether neither its size nor the caller decides what its EXIF orientation means."""
    num_pictures: int = 1
    """Pages or frames of the file, of which `pixels` is the first."""


def decode_rgb(image: bytes) -> NDArray[np.uint8]:
    """Return the (H, W, 3) RGB pixels of an image in a shard. Raises BadImageError."""
    return _to_rgb(open_image(image))


def load_image(
    data: bytes,
    *,
    size: tuple[int, int] | None = None,
    exif: ExifPolicy = "auto",
    max_pixels: int | None = MAX_WHOLE_PX,
) -> LoadedImage:
    """Decode a file fully, to prove that it can be; keep its bytes if any decoder reads them alike.

    `size` is the (height, width) that the annotation states; another one is refused. `exif` decides
    where an orientation and the size leave two answers. `max_pixels` None takes any size.
    """
    image = open_image(data, max_pixels=max_pixels)
    deep = deep_colours(image, data)
    stored = _to_rgb(image) if deep is None else _scale_deep(deep)
    orientation = _orientation(image)
    turned, is_unsure = _must_turn(stored.shape[:2], orientation, size, exif)
    pixels = _upright(stored, orientation) if turned else stored
    if size is not None and pixels.shape[:2] != size:
        raise other_size((image.height, image.width), size)
    if min(pixels.shape[:2]) < MIN_SIDE_PX:
        raise BadImageError(
            f"the image has {image.height} x {image.width} px, fewer than {MIN_SIDE_PX} on a side"
        )
    num_pictures = _count_pictures(image, data)
    format = _KEPT_FORMATS.get(image.format)
    if format is None or turned or deep is not None or image.mode not in _KEPT_MODES:
        data, format = encode_png(pixels), "png"
    return LoadedImage(data, format, pixels, is_unsure, num_pictures)


def image_sizes(data: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the (height, width) of an image as stored, and as its EXIF orientation turns it.

    Reads the header alone. Raises BadImageError.
    """
    image = open_image(data, max_pixels=None, load=False)
    stored = (image.height, image.width)
    return stored, stored[::-1] if _orientation(image) >= 5 else stored


def other_size(found: tuple[int, ...], stated: tuple[int, int]) -> BadImageError:
    """Return the error for an image that has not the size that its annotation states."""
    return BadImageError(
        f"the image has {found[0]} x {found[1]} px, its annotation {stated[0]} x {stated[1]}"
    )


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return a lossless PNG of (H, W) grey or (H, W, 3) RGB pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=_PNG_LEVEL)
    return file.getvalue()


def grey_range(histogram: NDArray[np.int64]) -> tuple[int, int]:
    """Return the grey values that become 0 and 255: 0.1 and 99.9 percentiles of (65536,) counts.

    Percentiles, since one hot pixel would leave a dozen grey levels for all others.
    """
    share = np.cumsum(histogram) / histogram.sum()
    low, high = np.searchsorted(share, [0.001, 0.999]).tolist()
    return low, max(high, low + 1)


def grey_to_uint8(grey: NDArray[np.uint16], low: int, high: int) -> NDArray[np.uint8]:
    """Map `low` to 0 and `high` to 255, linearly, rounded, values outside clipped."""
    clipped = np.clip(grey.astype(np.int64), low, high) - low
    return ((clipped * 510 + (high - low)) // (2 * (high - low))).astype(np.uint8)


def open_image(
    data: bytes, *, max_pixels: int | None = MAX_WHOLE_PX, load: bool = True
) -> Image.Image:
    """Return an image file as Pillow opens it. Raises BadImageError."""
    try:
        with _without_pixel_limit():
            image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        foreign = foreign_content(data) or "not in a known format"
        raise BadImageError(f"the image cannot be decoded: it is {foreign}") from None
    except Exception as error:  # on damaged bytes the decoders raise whatever they meet
        raise BadImageError(f"the image cannot be decoded: {error}") from error
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise BadImageError(
            f"the image has {image.height} x {image.width} px, too many to be kept whole; cut it "
            "into tiles with --tile-px 1024"
        )
    try:
        if load:
            image.load()
    except Exception as error:  # on damaged bytes the decoders raise whatever they meet
        raise BadImageError(f"the image cannot be decoded: {error}") from error
    return image


def deep_colours(image: Image.Image, data: bytes) -> NDArray[np.uint16] | None:
    """Return (H, W, C) colours of 16 bits, C 1 or 3, where Pillow keeps the upper 8; else None.

    Raises BadImageError.
    """
    if image.format == "TIFF" and image.mode in ("RGB", "RGBA", "RGBX"):
        return _deep_tiff(data)
    if image.format != "PNG":
        return None
    depth, colour_type = data[24:26]
    if depth != 16 or colour_type not in _BYTE_PAIRS:
        return None
    mode, high, low = _BYTE_PAIRS[colour_type]
    upper, lower = (_reread(data, mode, rawmode).astype(np.uint16) for rawmode in (high, low))
    if colour_type == _GREY_ALPHA:  # two bytes of grey, two of alpha
        upper, lower = upper[..., :1], upper[..., 1:2]
    whole: NDArray[np.uint16] = upper * np.uint16(256) + lower
    return whole[..., :3]


def is_lossy_webp(data: bytes) -> bool:
    """Return whether the picture of a WebP file is compressed as photographs are."""
    place = 12
    while place + 8 <= len(data):
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if name in (b"VP8 ", b"VP8L"):
            return name == b"VP8 "
        place += 8 + size + size % 2
    return True


@contextlib.contextmanager
def _without_pixel_limit() -> Iterator[None]:
    """Pillow's guard against attacks is off: a scan to be cut may have any number of pixels."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def whole_pages(file: tifffile.TiffFile) -> list[Any]:
    """Return the pages of a TIFF file without smaller copies and masks of them."""
    pages: list[Any] = [page for page in file.pages if not page.subfiletype & _COPY_OR_MASK]
    return pages


def _count_pictures(image: Image.Image, data: bytes) -> int:
    """The frames of an animation, the pages of a TIFF that are as large as its first.

    Not a smaller copy or a mask of the first, nor what cameras put behind a photograph (MPO).
    """
    if image.format == "MPO":
        return 1
    try:
        if image.format != "TIFF":
            return int(getattr(image, "n_frames", 1))
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            sizes = [(page.imagelength, page.imagewidth) for page in whole_pages(file)]
            return sizes.count((image.height, image.width))
    except Exception:  # behind the first picture the file is damaged
        return 1


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 is upright."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing
        return 1
    return value if value in range(1, 9) else 1


def _must_turn(
    stored: tuple[int, ...], orientation: int, size: tuple[int, int] | None, exif: ExifPolicy
) -> tuple[bool, bool]:
    """Whether to turn the stored picture upright, and whether that is unsure."""
    upright = stored[::-1] if orientation >= 5 else stored
    if orientation == 1:
        return False, False
    if size is not None and (stored == size) != (upright == size):
        return upright == size, False
    return exif == "upright", exif == "auto" and size is not None


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    down = -1 if orientation in (3, 4, 7, 8) else 1
    right = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::down, ::right])


def _reread(data: bytes, mode: str, rawmode: str) -> NDArray[np.uint8]:
    """The pixels of a PNG, unpacked in another way than its header asks for."""
    with _without_pixel_limit():
        image: Any = Image.open(io.BytesIO(data))
    image._mode = mode
    image.tile = [(*tile[:3], rawmode) for tile in image.tile]
    image.load()
    return np.asarray(image)


def _deep_tiff(data: bytes) -> NDArray[np.uint16] | None:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        if page.dtype != np.uint16:
            return None
        try:
            pixels: NDArray[np.uint16] = page.asarray()
        except ValueError as error:
            raise BadImageError(
                f"16-bit colours in a compressed TIFF cannot be read ({error}); save it without "
                "compression"
            ) from error
    return np.moveaxis(pixels, 0, 2)[..., :3] if page.axes == "SYX" else pixels[..., :3]


def _scale_deep(colours: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """(H, W, 3) RGB: all channels by one mapping, so that colours stay."""
    low, high = grey_range(np.bincount(colours.ravel(), minlength=1 << 16))
    scaled = grey_to_uint8(colours, low, high)
    return np.repeat(scaled, 3, axis=2) if scaled.shape[2] == 1 else scaled


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode not in _DEEP_MODES:
        if image.mode == "L" and _tiff_tag(image, _SAMPLE_FORMAT) == _SIGNED:
            raise BadImageError("grey values of 8 bits with a sign; convert the image to unsigned")
        return np.asarray(image.convert("RGB"))
    grey = np.asarray(image)
    if _tiff_tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow turns pages of 8 bits alone
        grey = grey.max() - grey
    if grey.dtype.kind not in "iu" or grey.min() < 0 or grey.max() > 0xFFFF:
        raise BadImageError(
            f"grey values of type {grey.dtype} from {grey.min()} to {grey.max()}; convert the "
            "image to 8 or 16 bits"
        )
    low, high = grey_range(np.bincount(grey.ravel(), minlength=1 << 16))
    return np.repeat(grey_to_uint8(grey.astype(np.uint16), low, high)[..., None], 3, axis=2)


def _tiff_tag(image: Image.Image, tag: int) -> object:
    """The value of a TIFF file's tag, the first of several; None in other formats."""
    value = getattr(image, "tag_v2", {}).get(tag) if image.format == "TIFF" else None
    return value[0] if isinstance(value, tuple) else value
