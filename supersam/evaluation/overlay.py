"""Draw a few images with their prompts, truth and the masks of subnets side by side.

The padding below and right of an image is white: predictions there do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from supersam.data.sample import LABEL_BOX_MIN, LABEL_FOREGROUND, EvalImage
from supersam.evaluation import Predictor, mask_iou

OBJECTS_SHOWN = 12
_OPACITY = 0.55
_SATURATION, _BRIGHTNESS = 0.75, 245.0
_GAP_PX = 4


def draw_overlays(
    images: Sequence[EvalImage], predictors: Mapping[str, Predictor]
) -> NDArray[np.uint8]:
    """Draw one row per image: the image with its prompts, the truth, each predictor's masks.

    Returns (H, W, 3) uint8, at the model's input resolution.
    """
    return _stack([_row(image, list(predictors.values())) for image in images], axis=0)


@dataclass(frozen=True)
class Panel:
    """One view of an image, without its padding."""

    pixels: NDArray[np.uint8]
    """(h, w, 3) RGB."""
    miou: float | None = None
    """Mean IoU of the objects shown, on these pixels; None where no masks are predicted."""


def draw_panels(image: EvalImage, predictors: Sequence[Predictor]) -> list[Panel]:
    """Draw the prompts, the annotation, then each predictor's masks.

    Predicted masks are filled, and the outline of the annotation lies over them in white.
    """
    height, width = image.size
    pixels, truth = image.image.permute(1, 2, 0).numpy(), _truth(image)
    prompts = _with_prompts(pixels, image.points[:OBJECTS_SHOWN], image.labels[:OBJECTS_SHOWN])
    pixels = pixels[:height, :width]
    panels = [Panel(prompts[:height, :width]), Panel(blend_masks(pixels, list(truth.numpy())))]
    for predictor in predictors:
        masks = _predicted(image, predictor)[:, :height, :width]
        drawn = blend_masks(pixels, list(masks.numpy()))
        drawn[_outlines(truth).numpy()] = 255
        panels.append(Panel(drawn, float(mask_iou(masks[None], truth[None]).mean())))
    return panels


def _outlines(masks: Tensor) -> Tensor:
    """(h, w) bool: pixels of a mask with a neighbour outside of it. masks: (M, h, w) bool."""
    outside = F.pad((~masks).float()[:, None], (1, 1, 1, 1))
    return (masks & (F.max_pool2d(outside, 3, stride=1)[:, 0] > 0)).any(0)


def _truth(image: EvalImage) -> Tensor:
    """(M, h, w) bool: the annotated masks at the model's input resolution, without padding."""
    return F.interpolate(image.masks[:OBJECTS_SHOWN][None].float(), image.size)[0] > 0.5


def _predicted(image: EvalImage, predictor: Predictor) -> Tensor:
    """(M, S, S) bool: the single masks at the model's input resolution."""
    points, labels = image.points[:OBJECTS_SHOWN], image.labels[:OBJECTS_SHOWN]
    logits, _ = predictor.predict(
        image.image[None], torch.tensor([image.size]), points[None], labels[None]
    )
    return F.interpolate(logits[0, :, :1].cpu(), image.image.shape[1:], mode="bilinear")[:, 0] > 0


def _row(image: EvalImage, predictors: Sequence[Predictor]) -> NDArray[np.uint8]:
    pixels, truth = image.image.permute(1, 2, 0).numpy(), _truth(image)
    points, labels = image.points[:OBJECTS_SHOWN], image.labels[:OBJECTS_SHOWN]
    pads = (0, pixels.shape[1] - image.size[1], 0, pixels.shape[0] - image.size[0])
    panels = [
        _with_prompts(pixels, points, labels),
        blend_masks(pixels, list(F.pad(truth, pads).numpy())),
    ]
    panels += [blend_masks(pixels, list(_predicted(image, p).numpy())) for p in predictors]
    height, width = image.size
    for panel in panels:
        panel[height:] = panel[:, width:] = 255
    return _stack(panels, axis=1)


def blend_masks(pixels: NDArray[np.uint8], masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """Lay (H, W) masks over (H, W, 3) pixels, each in its object's colour."""
    mixed = pixels.astype(np.float32)
    for index, mask in enumerate(masks):
        mixed[mask] = (1 - _OPACITY) * mixed[mask] + _OPACITY * object_colour(index)
    blended: NDArray[np.uint8] = mixed.astype(np.uint8)
    return blended


def _with_prompts(pixels: NDArray[np.uint8], points: Tensor, labels: Tensor) -> NDArray[np.uint8]:
    drawn: NDArray[np.uint8] = pixels.copy()
    limit = np.array(pixels.shape[1::-1]) - 1
    for index, (pair, kinds) in enumerate(zip(points.numpy(), labels.numpy(), strict=True)):
        colour = object_colour(index).astype(np.uint8)
        (x0, y0), (x1, y1) = np.clip(pair.astype(int), 0, limit)
        if kinds[0] == LABEL_BOX_MIN:
            drawn[[y0, y1], x0 : x1 + 1] = colour
            drawn[y0 : y1 + 1, [x0, x1]] = colour
        elif kinds[0] == LABEL_FOREGROUND:
            drawn[max(0, y0 - 2) : y0 + 3, max(0, x0 - 2) : x0 + 3] = colour
    return drawn


def object_colour(index: int) -> NDArray[np.float32]:
    """Return the colour of an object: hues are a golden-ratio turn apart."""
    hue = (index * 0.618034) % 1.0
    ramps = np.clip([abs((hue * 6 + shift) % 6 - 3) - 1 for shift in (0, 4, 2)], 0, 1)
    return np.array((1 - _SATURATION * (1 - ramps)) * _BRIGHTNESS, np.float32)


def _stack(parts: Sequence[NDArray[np.uint8]], *, axis: int) -> NDArray[np.uint8]:
    """Join parts of equal size along an axis, with a white gap between them."""
    shape = list(parts[0].shape)
    shape[axis] = _GAP_PX
    gap = np.full(shape, 255, np.uint8)
    spaced = [piece for part in parts for piece in (part, gap)][:-1]
    stacked: NDArray[np.uint8] = np.concatenate(spaced, axis=axis)
    return stacked
