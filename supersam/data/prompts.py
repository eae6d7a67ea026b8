"""Prompts of objects: drawn from their masks for training, fixed for evaluation.

Every prompt is two points and two labels: (FOREGROUND, PAD) for a point, (BOX_MIN, BOX_MAX) for a
box.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from supersam.config.data import PromptKind
from supersam.data.sample import (
    LABEL_BOX_MAX,
    LABEL_BOX_MIN,
    LABEL_FOREGROUND,
    LABEL_PAD,
    EvalImage,
)
from supersam.data.transforms import Crop, Geometry, MaskPatch

MIN_VISIBLE = 0.25
"""Least part of an object's box, or of a smaller crop, at which it counts as in the crop."""

POINT_LABELS = (LABEL_FOREGROUND, LABEL_PAD)
BOX_LABELS = (LABEL_BOX_MIN, LABEL_BOX_MAX)

Prompt = tuple[NDArray[np.float64], tuple[int, int]]
"""Points (2, 2), pixels (x, y) of the padded square, and their labels."""


def visible_objects(boxes: NDArray[np.float32], crop: Crop) -> NDArray[np.intp]:
    """Return the objects that are in a crop, by their boxes (M, 4) of (x, y, width, height)."""
    x, y, width, height = boxes.astype(np.float64).T
    seen_width = np.minimum(x + width, crop.right) - np.maximum(x, crop.left)
    seen_height = np.minimum(y + height, crop.bottom) - np.maximum(y, crop.top)
    seen = seen_width.clip(0) * seen_height.clip(0)
    # An object larger than the crop is in it although most of the object is not.
    most = np.minimum(width * height, crop.width * crop.height)
    return np.flatnonzero((seen > 0) & (seen >= MIN_VISIBLE * most))


def draw_prompt(
    rng: np.random.Generator,
    patch: MaskPatch,
    geometry: Geometry,
    *,
    kind: PromptKind,
    box_jitter: float,
) -> Prompt:
    """Draw a prompt for the part of an object that is in the geometry's crop."""
    if kind == "point" or (kind == "either" and rng.random() < 0.5):
        return _point_prompt(draw_point(rng, patch), geometry)
    box = draw_box(rng, patch, geometry.crop, jitter=box_jitter)
    return geometry.map_boxes(box[None]).reshape(2, 2), BOX_LABELS


def draw_point(rng: np.random.Generator, patch: MaskPatch) -> NDArray[np.float64]:
    """Draw a pixel (x, y) of the object, each with the same chance."""
    pixels = np.flatnonzero(patch.pixels)
    y, x = divmod(int(pixels[rng.integers(len(pixels))]), patch.pixels.shape[1])
    return np.array((patch.left + x, patch.top + y), np.float64)


def draw_box(
    rng: np.random.Generator, patch: MaskPatch, crop: Crop, *, jitter: float
) -> NDArray[np.float64]:
    """Draw the object's tight box (x0, y0, x1, y1) with each side shifted in or out.

    jitter: standard deviation of a shift, as a share of the box's size along it. Sides stay in the
    crop; where they come closer than a pixel, that pair stays tight.
    """
    tight = np.array(patch.box, np.float64).reshape(2, 2)  # corner, axis
    shifted = tight + rng.normal(0, jitter, (2, 2)) * (tight[1] - tight[0])
    shifted = shifted.clip((crop.left, crop.top), (crop.right, crop.bottom))
    return np.where(shifted[1] - shifted[0] < 1, tight, shifted).reshape(4)


def stored_prompts(
    masks: NDArray[np.void], kind: Literal["point", "box"], geometry: Geometry
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the fixed prompts of an image's objects: the stored points, or the tight boxes.

    masks: (M,) MASK_META. Returns points (M, 2, 2), pixels (x, y) of the padded square, and labels
    (M, 2).
    """
    points = np.zeros((len(masks), 2, 2))
    if kind == "point":
        points[:, 0] = geometry.map_points(masks["point"].astype(np.float64))
    else:
        points[:] = _box_points(masks["bbox"], geometry)
    labels = np.array(POINT_LABELS if kind == "point" else BOX_LABELS, np.int64)
    return points.astype(np.float32), np.tile(labels, (len(masks), 1))


def with_boxes(image: EvalImage) -> EvalImage:
    """Return the image with the tight box of each object as its prompt; see `stored_prompts`."""
    import torch

    height, width = image.original_size
    geometry = Geometry(Crop(0, 0, width, height), image.image.shape[-1])
    points = _box_points(image.boxes.numpy(), geometry).astype(np.float32)
    labels = torch.tensor(BOX_LABELS).repeat(len(points), 1)
    return replace(image, points=torch.from_numpy(points), labels=labels)


def _box_points(boxes: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float64]:
    """Corners of boxes (M, 4) of (x, y, width, height), in the padded square: (M, 2, 2)."""
    x, y, width, height = boxes.astype(np.float64).T
    corners = np.stack((x, y, x + width, y + height), axis=1)
    return geometry.map_boxes(corners).reshape(-1, 2, 2)


def _point_prompt(point: NDArray[np.float64], geometry: Geometry) -> Prompt:
    return np.concatenate((geometry.map_points(point[None]), np.zeros((1, 2)))), POINT_LABELS
