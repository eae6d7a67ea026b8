"""Windowed upscaling against `Sam.postprocess_masks`."""

import pytest
import torch

from supersam.data.masks import ObjectMasks
from supersam.evaluation.upscale import MaskUpscaler
from tests.evaluation.scenes import sam_postprocess, smooth_logits

GEOMETRIES = [  # side, size in the square, original size: up, down, portrait, landscape, one row
    (64, (64, 64), (64, 64)),
    (64, (64, 40), (300, 188)),
    (64, (43, 64), (29, 43)),
    (128, (128, 97), (87, 66)),
    (128, (3, 128), (1, 43)),
]


@pytest.mark.parametrize(("side", "size", "original_size"), GEOMETRIES)
def test_masks_are_those_of_segment_anything(side, size, original_size):
    geometry = {"side": side, "size": size, "original_size": original_size}
    logits = smooth_logits(20, cells=side // 4, generator=torch.Generator().manual_seed(0))
    expected = sam_postprocess(logits, **geometry)
    upscaler = MaskUpscaler.for_image(logits, **geometry)
    frame = slice(0, original_size[0]), slice(0, original_size[1])
    torch.testing.assert_close(
        upscaler.upscale(logits, frame), expected.double(), rtol=0, atol=2e-6
    )
    assert torch.equal(upscaler.masks(logits, frame), expected > 0)


@pytest.mark.parametrize(("side", "size", "original_size"), GEOMETRIES)
def test_window_holds_every_positive_pixel_and_every_annotated_one(side, size, original_size):
    geometry = {"side": side, "size": size, "original_size": original_size}
    logits = smooth_logits(20, cells=side // 4, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(20, *original_size, dtype=torch.bool)
    masks[:, original_size[0] // 2, original_size[1] // 3] = True
    upscaler = MaskUpscaler.for_image(logits, **geometry)
    for one, mask in zip(logits.split(1), masks.split(1), strict=True):
        rows, columns = upscaler.window(one, ObjectMasks.of(mask).frame(slice(0, 1)))
        rest = (sam_postprocess(one, **geometry) > 0).any(1) | mask
        inside = upscaler.masks(one, (rows, columns))
        torch.testing.assert_close(
            inside, (sam_postprocess(one, **geometry) > 0)[..., rows, columns], rtol=0, atol=0
        )
        rest[:, rows, columns] = False
        assert not rest.any()


def test_window_of_a_small_object_is_small():
    logits = torch.full((1, 4, 64, 64), -1.0)
    logits[..., 30:34, 10:14] = 1
    upscaler = MaskUpscaler.for_image(logits, side=256, size=(256, 256), original_size=(512, 512))
    rows, columns = upscaler.window(logits)
    assert (rows.stop - rows.start) * (columns.stop - columns.start) < 60**2


def test_upscaling_does_not_depend_on_the_precision_of_the_training_around_it():
    logits = smooth_logits(4, cells=32, generator=torch.Generator().manual_seed(0))
    upscaler = MaskUpscaler.for_image(logits, side=128, size=(128, 90), original_size=(200, 140))
    frame = slice(0, 200), slice(0, 140)
    expected = upscaler.upscale(logits, frame)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            measured = upscaler.upscale(logits, frame)
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(measured, expected, rtol=0, atol=0)
