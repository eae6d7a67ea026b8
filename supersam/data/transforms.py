"""One geometry for image, masks, points and boxes: crop, flip, resize, pad. And how it is drawn.

Positions are pixels (x, y) as in segment-anything: a point is the index of a pixel, a box runs
from edge to edge (x0, y0, x0 + width, y0 + height). Both are scaled by the ratio of the sizes, and
the prompt encoder adds the half pixel itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from supersam.config.data import AugmentConfig
from supersam.data.rle import Runs
from supersam.data.sample import LOGIT_STRIDE


@dataclass(frozen=True)
class Crop:
    """A rectangle of whole pixels of the original image."""

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The first column beyond it."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """The first row beyond it."""
        return self.top + self.height


@dataclass(frozen=True)
class MaskPatch:
    """An object's pixels in a crop, cut to their tight box; pixels of the original image."""

    pixels: NDArray[np.bool_]
    """(H, W) bool; no outer row or column is empty."""
    left: int
    top: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1), edge to edge."""
        height, width = self.pixels.shape
        return self.left, self.top, self.left + width, self.top + height


@dataclass(frozen=True)
class Geometry:
    """How a crop of an image becomes the model's square input, and everything on it with it."""

    crop: Crop
    side: int
    """Pixels along a side of the input; the crop's longest side becomes this."""
    flip_x: bool = False
    flip_y: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image inside the padded square."""
        return resized_size(self.crop.height, self.crop.width, self.side)

    def map_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The model's input. image: (H, W, 3) uint8, the whole original. Returns (3, S, S)."""
        height, width = self.size
        c = self.crop
        box = (c.left, c.top, c.right, c.bottom)
        bilinear = Image.Resampling.BILINEAR
        resized = np.asarray(Image.fromarray(image).resize((width, height), bilinear, box))
        resized = resized[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]
        padded = np.zeros((3, self.side, self.side), np.uint8)
        padded[:, :height, :width] = np.moveaxis(resized, 2, 0)
        return padded

    def map_points(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixel indices (K, 2) of the original as positions in the padded square."""
        c = self.crop
        x, y = (points - (c.left, c.top)).T
        if self.flip_x:
            x = c.width - 1 - x
        if self.flip_y:
            y = c.height - 1 - y
        return np.stack((x, y), axis=1) * self._scale

    def map_boxes(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Boxes (K, 4), edges (x0, y0, x1, y1) of the original, in the padded square."""
        c = self.crop
        x0, y0, x1, y1 = (boxes - (c.left, c.top, c.left, c.top)).T
        if self.flip_x:
            x0, x1 = c.width - x1, c.width - x0
        if self.flip_y:
            y0, y1 = c.height - y1, c.height - y0
        return np.stack((x0, y0, x1, y1), axis=1) * (*self._scale, *self._scale)

    def map_mask(self, patch: MaskPatch) -> NDArray[np.uint8]:
        """The share of each mask-logit cell that the object covers: (S/4, S/4) uint8, 0 to 255."""
        pixels, (x0, y0, x1, y1) = patch.pixels, patch.box
        left, top = x0 - self.crop.left, y0 - self.crop.top
        if self.flip_x:
            pixels, left = pixels[:, ::-1], self.crop.right - x1
        if self.flip_y:
            pixels, top = pixels[::-1], self.crop.bottom - y1
        cells = self.side // LOGIT_STRIDE
        cell_width, cell_height = (LOGIT_STRIDE / scale for scale in self._scale)
        rows, covered = _integrate(pixels, top, cell=cell_height, cells=cells)
        columns, covered = _integrate(covered.T, left, cell=cell_width, cells=cells)
        share = np.zeros((cells, cells), np.uint8)
        share[rows, columns] = np.rint(covered.T * (255 / (cell_width * cell_height)))
        return share

    @property
    def _scale(self) -> tuple[float, float]:
        height, width = self.size
        return width / self.crop.width, height / self.crop.height


def resized_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) with the longest side at `side`; ResizeLongestSide.get_preprocess_shape."""
    scale = side * 1.0 / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def cut_patch(runs: Runs, crop: Crop) -> MaskPatch | None:
    """Return the part of an object that lies in a crop; None without any. Draws nothing else."""
    x, y, width, height = runs.bbox
    left, right = max(x, crop.left), min(x + width, crop.right)
    top, bottom = max(y, crop.top), min(y + height, crop.bottom)
    if left >= right or top >= bottom:
        return None
    pixels = runs.draw(top, left, bottom - top, right - left)
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if len(rows) == 0:
        return None
    tight = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return MaskPatch(tight, left + int(columns[0]), top + int(rows[0]))


def draw_geometry(
    rng: np.random.Generator, height: int, width: int, *, side: int, augment: AugmentConfig
) -> Geometry:
    """Draw a random crop and flips of an image; the whole image where `crop_px` is None."""
    crop = Crop(0, 0, width, height)
    if augment.crop_px is not None:
        low, high = augment.crop_px
        side_px = int(rng.integers(low, high + 1))
        crop_width, crop_height = min(side_px, width), min(side_px, height)
        left = int(rng.integers(width - crop_width + 1))
        top = int(rng.integers(height - crop_height + 1))
        crop = Crop(left, top, crop_width, crop_height)
    flip_x, flip_y = rng.random(2) < (augment.flip_horizontal, augment.flip_vertical)
    return Geometry(crop, side, flip_x=bool(flip_x), flip_y=bool(flip_y))


def draw_tone(rng: np.random.Generator, amount: float) -> NDArray[np.uint8]:
    """A table (256,) uint8 of new values that changes brightness and contrast by up to `amount`."""
    brightness, contrast = 1 + rng.uniform(-amount, amount, 2)
    grey = 127.5
    values = (np.arange(256) - grey) * contrast + grey * brightness
    table: NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return table


def _integrate(
    values: NDArray[np.generic], first: int, *, cell: float, cells: int
) -> tuple[slice, NDArray[np.float64]]:
    """Sums of rows over cells of `cell` rows' length.

    values: (P, Q); row 0 lies `first` rows from cell 0. Returns which cells are touched, and (their
    number, Q); a row is shared out by how much of it lies in each cell.
    """
    touched = slice(int(first / cell), min(cells, int(np.ceil((first + len(values)) / cell))))
    edges = np.arange(touched.start, touched.stop + 1) * cell - first
    edges = np.clip(edges, 0, len(values))
    dtype = np.int32 if values.dtype == bool else np.float64
    sums = np.zeros((len(values) + 1, values.shape[1]), dtype)
    np.cumsum(values, axis=0, out=sums[1:])
    whole = edges.astype(np.intp)
    rest = (edges - whole)[:, None]
    at_edges = sums[whole] * (1 - rest) + sums[np.minimum(whole + 1, len(values))] * rest
    return touched, np.diff(at_edges, axis=0)
