"""Mask metrics against plain NumPy."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from supersam.evaluation.metrics import (
    SIZE_BUCKETS,
    boundary_band,
    boundary_band_px,
    boundary_iou,
    box_fill_iou,
    mask_area,
    mask_iou,
    size_bucket,
)


def blobs(num_masks: int, height: int, width: int, *, seed: int) -> torch.Tensor:
    """(M, H, W) bool: smooth shapes, some of which touch the frame."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(num_masks, 1, 4, 4, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bicubic")[:, 0] > 0.3


def disc(side: int, *, radius: int) -> torch.Tensor:
    """(side, side) bool, centred."""
    offset = torch.arange(side) - (side - 1) / 2
    return torch.hypot(offset[:, None], offset) < radius


def eroded(mask: np.ndarray) -> np.ndarray:
    """One erosion by a 3 x 3 square; beyond the frame is outside."""
    height, width = mask.shape
    padded = np.pad(mask, 1)
    shifts = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.logical_and.reduce(shifts)


def reference_band(mask: np.ndarray, *, ratio: float = 0.02) -> np.ndarray:
    """Cheng et al. 2021 as published: the mask less `d` erosions by a 3 x 3 square."""
    inner = mask
    for _ in range(max(1, round(ratio * math.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2)))):
        inner = eroded(inner)
    return mask & ~inner


def reference_iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum() if (a | b).any() else 1.0


def test_iou_is_that_of_numpy():
    pred, target = blobs(12, 40, 57, seed=0), blobs(12, 40, 57, seed=1)
    expected = [reference_iou(p, t) for p, t in zip(pred.numpy(), target.numpy(), strict=True)]
    np.testing.assert_allclose(mask_iou(pred, target), expected, rtol=1e-6)


def test_iou_broadcasts_several_predictions_against_one_target():
    pred, target = blobs(12, 20, 30, seed=0).view(3, 4, 20, 30), blobs(3, 20, 30, seed=1)
    one_by_one = torch.stack([mask_iou(pred[:, i], target) for i in range(4)], dim=1)
    torch.testing.assert_close(mask_iou(pred, target[:, None]), one_by_one, rtol=0, atol=0)


def test_iou_of_empty_masks_is_one_and_of_an_empty_and_a_full_one_zero():
    empty, full = torch.zeros(1, 8, 9, dtype=torch.bool), torch.ones(1, 8, 9, dtype=torch.bool)
    assert [mask_iou(empty, empty), mask_iou(empty, full), mask_iou(full, full)] == [1, 0, 1]
    assert boundary_iou(empty, empty, band_px=2) == 1
    assert boundary_iou(empty, full, band_px=2) == 0


def test_area_counts_beyond_what_float32_can():
    assert mask_area(torch.ones(1, 4099, 4099, dtype=torch.bool)).item() == 4099**2


@pytest.mark.parametrize(("height", "width"), [(20, 20), (60, 83), (150, 90), (5, 200)])
def test_boundary_band_is_the_reference(height: int, width: int):
    masks = blobs(6, height, width, seed=height)
    band = boundary_band(masks, band_px=boundary_band_px(height, width))
    assert np.array_equal(band, np.stack([reference_band(mask) for mask in masks.numpy()]))


def test_boundary_iou_is_the_reference():
    pred, target = blobs(8, 120, 160, seed=0), blobs(8, 120, 160, seed=1)
    expected = [
        reference_iou(reference_band(p), reference_band(t))
        for p, t in zip(pred.numpy(), target.numpy(), strict=True)
    ]
    measured = boundary_iou(pred, target, band_px=boundary_band_px(120, 160))
    np.testing.assert_allclose(measured, expected, rtol=1e-6)


def test_boundary_iou_does_not_change_when_the_empty_surroundings_are_cut_away():
    pred, target = (F.pad(blobs(4, 30, 40, seed=seed), (25, 7, 11, 31)) for seed in (0, 1))
    whole = boundary_iou(pred, target, band_px=3)
    cropped = boundary_iou(pred[:, 11:41, 25:65], target[:, 11:41, 25:65], band_px=3)
    torch.testing.assert_close(cropped, whole, rtol=0, atol=0)


def test_boundary_iou_sees_what_iou_hardly_does():
    shifted = disc(200, radius=80).roll(5, dims=1)
    assert mask_iou(disc(200, radius=80), shifted) > 0.9
    assert boundary_iou(disc(200, radius=80), shifted, band_px=6) < 0.5


@pytest.mark.parametrize(
    ("height", "width", "band_px"), [(10, 10, 1), (300, 300, 8), (1500, 2250, 54), (480, 640, 16)]
)
def test_boundary_band_is_two_percent_of_the_diagonal(height: int, width: int, band_px: int):
    assert boundary_band_px(height, width) == band_px


def test_box_fill_iou_is_the_iou_of_the_filled_box():
    masks = blobs(8, 50, 70, seed=3)
    boxes = torch.zeros_like(masks)
    for mask, box in zip(masks, boxes, strict=True):
        ys, xs = mask.nonzero(as_tuple=True)
        box[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = True
    torch.testing.assert_close(box_fill_iou(masks), mask_iou(boxes, masks), rtol=0, atol=0)


def test_box_fill_iou_of_a_disc_is_a_quarter_of_pi():
    assert box_fill_iou(disc(400, radius=200)) == pytest.approx(math.pi / 4, abs=1e-3)


def test_box_fill_iou_of_an_empty_mask_is_one():
    assert box_fill_iou(torch.zeros(3, 4, dtype=torch.bool)) == 1


def test_size_buckets_have_the_limits_of_coco():
    buckets = size_bucket(torch.tensor([0, 32**2 - 1, 32**2, 96**2 - 1, 96**2, 10**6]))
    names = [SIZE_BUCKETS[i] for i in buckets]
    assert names == ["small", "small", "medium", "medium", "large", "large"]
