"""The picture of predicted masks: fills, outlines, and a number with each prompt as the legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from supersam.evaluation.overlay import object_colour

_FILL = 0.45
_FEW = 20
"""Up to so many masks are numbered and outlined whole; more would hide the image."""


@dataclass(frozen=True)
class PredictedMask:
    """One mask of an image, and where it comes from."""

    mask: NDArray[np.bool_]
    """(H, W) bool, at the image's own size."""
    score: float
    """IoU that the model estimates for it."""
    box: tuple[float, ...] | None = None
    """The box that asked for it, pixels."""
    point: tuple[float, ...] | None = None
    """The point that asked for it, or the grid's point that found it, pixels."""


def draw_masks(pixels: NDArray[np.uint8], found: Sequence[PredictedMask]) -> NDArray[np.uint8]:
    """Draw masks over an image, the smallest on top, each pixel in the colour of one mask.

    Few masks have their whole outline, their prompt, and their number in the JSON with the IoU that
    the model estimates; of many, the visible parts are outlined. Returns (H, W, 3) uint8.
    """
    thick = max(1, round(max(pixels.shape) / 400))
    top = _topmost(pixels.shape[:2], found)
    drawn = _filled(pixels, top)
    few = len(found) <= _FEW
    outlines = [each.mask for each in found] if few else [top == i for i in range(len(found))]
    for index in _by_size(found):
        drawn[_outline(outlines[index], thick)] = object_colour(index)
    if not few:
        return drawn
    picture = Image.fromarray(drawn)
    for index, each in enumerate(found):
        _draw_prompt(picture, each, index, thick)
    return np.asarray(picture)


def _by_size(found: Sequence[PredictedMask]) -> list[int]:
    return sorted(range(len(found)), key=lambda index: -int(found[index].mask.sum()))


def _topmost(size: tuple[int, ...], found: Sequence[PredictedMask]) -> NDArray[np.int64]:
    """(H, W): the number, from 0, of the smallest mask that covers each pixel; -1 for none."""
    top = np.full(size, -1, np.int64)
    for index in _by_size(found):
        top[found[index].mask] = index
    return top


def _filled(pixels: NDArray[np.uint8], top: NDArray[np.int64]) -> NDArray[np.uint8]:
    count = int(top.max(initial=-1)) + 1
    colours = np.array([object_colour(index) for index in range(count)]).reshape(-1, 3)
    mixed = pixels.astype(np.float32)
    covered = top >= 0
    mixed[covered] = (1 - _FILL) * mixed[covered] + _FILL * colours[top[covered]]
    return mixed.astype(np.uint8)


def _outline(mask: NDArray[np.bool_], thick: int) -> NDArray[np.bool_]:
    """Pixels of the mask that are at most `thick` away from one outside of it."""
    inside = mask
    for _ in range(thick):
        shrunk = inside.copy()
        shrunk[1:] &= inside[:-1]
        shrunk[:-1] &= inside[1:]
        shrunk[:, 1:] &= inside[:, :-1]
        shrunk[:, :-1] &= inside[:, 1:]
        inside = shrunk
    outline: NDArray[np.bool_] = mask & ~inside
    return outline


def _draw_prompt(picture: Image.Image, found: PredictedMask, index: int, thick: int) -> None:
    """Draw the box or the point with a white rim, and beside it number and estimated IoU."""
    draw = ImageDraw.Draw(picture)
    colour = tuple(int(part) for part in object_colour(index))
    if found.box is not None:
        x0, y0, x1, y1 = found.box
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline="white", width=thick + 2)
        draw.rectangle(found.box, outline=colour, width=thick)
        corner = (x0, y0)
    elif found.point is not None:
        x, y = found.point
        radius = 2 * thick + 1
        place = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(place, fill=colour, outline="white", width=max(1, thick))
        corner = (x + 2 * radius, y - radius)
    else:
        return
    _draw_label(draw, corner, f"{index + 1}: {found.score:.2f}", picture.size)


def _draw_label(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, size: tuple[int, int]
) -> None:
    """Write white text on a dark patch whose left upper corner is near `corner`, in the picture."""
    font = ImageFont.load_default(max(10, max(size) // 40))
    _, _, width, height = draw.textbbox((0, 0), text, font=font)
    x = min(max(0.0, corner[0]), max(0.0, size[0] - width - 6))
    y = min(max(0.0, corner[1]), max(0.0, size[1] - height - 4))
    draw.rectangle((x, y, x + width + 6, y + height + 4), fill=(24, 24, 27))
    draw.text((x + 3, y + 2), text, fill="white", font=font)
