"""Image, masks, points and boxes go through one geometry, and it is segment-anything's."""

import itertools

import numpy as np
import pytest
from pycocotools import mask as coco
from segment_anything.utils.transforms import ResizeLongestSide

from supersam.config.data import AugmentConfig
from supersam.data.rle import decode_runs
from supersam.data.transforms import (
    Crop,
    Geometry,
    MaskPatch,
    cut_patch,
    draw_geometry,
    draw_tone,
    resized_size,
)

SIZES = [(64, 64), (50, 80), (97, 33), (128, 200), (9, 300)]
FLIPS = list(itertools.product([False, True], repeat=2))


def whole(height, width, side, **flips):
    return Geometry(Crop(0, 0, width, height), side, **flips)


def patch_of(mask, window=None):
    """The patch of a boolean mask, through its run lengths."""
    height, width = mask.shape
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    return cut_patch(decode_runs(rle, height, width), window or Crop(0, 0, width, height))


@pytest.mark.parametrize("shape", SIZES)
def test_an_uncropped_image_is_resized_bit_for_bit_as_segment_anything_does(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    geometry = whole(*shape, side=96)
    expected = ResizeLongestSide(96).apply_image(image)
    padded = geometry.map_image(image)
    assert geometry.size == expected.shape[:2]
    height, width = geometry.size
    np.testing.assert_array_equal(np.moveaxis(padded[:, :height, :width], 0, 2), expected)
    assert padded[:, height:].sum() == padded[:, :, width:].sum() == 0


def test_the_size_is_segment_anythings():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(20, 3000, (500, 2)).tolist():
        expected = ResizeLongestSide.get_preprocess_shape(height, width, 1024)
        assert resized_size(height, width, 1024) == expected
    assert resized_size(1, 5000, 1024) == (1, 1024)  # segment-anything has (0, 1024)


@pytest.mark.parametrize("shape", SIZES)
def test_points_and_boxes_are_scaled_as_segment_anything_does(shape):
    boxes = np.random.default_rng(0).uniform(0, min(shape), (20, 4))
    reference = ResizeLongestSide(96)
    geometry = whole(*shape, side=96)
    np.testing.assert_allclose(geometry.map_boxes(boxes), reference.apply_boxes(boxes, shape))
    points = boxes[:, :2]
    np.testing.assert_allclose(geometry.map_points(points), reference.apply_coords(points, shape))


@pytest.mark.parametrize(("flip_x", "flip_y"), FLIPS)
def test_a_flipped_image_is_the_mirror_image(flip_x, flip_y):
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    mirrored = image[:: -1 if flip_y else 1, :: -1 if flip_x else 1].copy()
    flipped = whole(50, 70, 64, flip_x=flip_x, flip_y=flip_y).map_image(image)
    difference = np.abs(flipped.astype(int) - whole(50, 70, 64).map_image(mirrored))
    assert difference.max() <= 1  # the resize rounds its weights


@pytest.mark.parametrize(("flip_x", "flip_y"), FLIPS)
def test_everything_on_an_image_goes_where_the_image_goes(flip_x, flip_y):
    """A bright square: its pixels, its mask, its box and its corner pixel agree after a crop."""
    mask = np.zeros((90, 120), bool)
    mask[40:64, 50:82] = True
    image = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    geometry = Geometry(Crop(30, 20, 80, 60), 160, flip_x=flip_x, flip_y=flip_y)
    ((x0, y0, x1, y1),) = geometry.map_boxes(np.array([[50, 40, 82, 64.0]]))
    bright = np.zeros((160, 160), bool)
    bright[int(y0) : int(y1), int(x0) : int(x1)] = True
    np.testing.assert_array_equal(geometry.map_image(image)[0] > 127, bright)
    share = geometry.map_mask(patch_of(mask, geometry.crop))
    np.testing.assert_array_equal(share, bright.reshape(40, 4, 40, 4).mean(axis=(1, 3)) * 255)
    corner = geometry.map_points(np.array([[50.0, 40.0]]))[0] + 0.5
    assert bright[int(corner[1]), int(corner[0])]
    assert min(abs(corner[0] - x) for x in (x0, x1)) <= 1.5
    assert min(abs(corner[1] - y) for y in (y0, y1)) <= 1.5


@pytest.mark.parametrize("edge", [0.0, 1, 7, 30, 61, 62])
@pytest.mark.parametrize("flip_x", [False, True])
def test_a_half_plane_covers_its_exact_share_of_each_cell(edge, flip_x):
    height, width, side = 47, 63, 100
    mask = np.zeros((height, width), bool)
    mask[:, int(edge) :] = True
    geometry = whole(height, width, side, flip_x=flip_x)
    share = geometry.map_mask(patch_of(mask))
    begin = edge * side / width
    low, high = (0, side - begin) if flip_x else (begin, side)
    cells = np.arange(25) * 4
    along_x = (np.minimum(cells + 4, high) - np.maximum(cells, low)).clip(0, 4) / 4
    along_y = (np.minimum(cells + 4, geometry.size[0]) - cells).clip(0, 4) / 4
    np.testing.assert_allclose(share, 255 * np.outer(along_y, along_x), atol=0.501)


def test_shares_add_up_to_the_objects_area():
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(8, 90, 2).tolist()
        mask = rng.random((height, width)) < 0.3
        mask[rng.integers(height), rng.integers(width)] = True
        geometry = whole(height, width, 64, flip_x=bool(rng.integers(2)))
        share = geometry.map_mask(patch_of(mask))
        scale = np.prod(geometry.size) / (height * width)
        assert share.sum() / 255 * 16 == pytest.approx(mask.sum() * scale, abs=256 * 16 / 510)


def test_a_coarse_grid_agrees_with_the_mean_of_a_fine_one():
    mask = np.random.default_rng(0).random((80, 64)) < 0.5
    share = whole(80, 64, 40).map_mask(patch_of(mask))  # 8 x 8 pixels a cell
    expected = mask.reshape(10, 8, 8, 8).mean(axis=(1, 3)) * 255
    np.testing.assert_allclose(share[:, :8], expected, atol=0.5)
    assert share[:, 8:].sum() == 0


def test_a_patch_holds_the_objects_pixels_in_the_window_tightly():
    rng = np.random.default_rng(0)
    empty = 0
    for _ in range(200):
        height, width = rng.integers(2, 40, 2).tolist()
        mask = rng.random((height, width)) < 0.03
        mask[rng.integers(height), rng.integers(width)] = True
        left, top = int(rng.integers(width)), int(rng.integers(height))
        window = Crop(
            left,
            top,
            int(rng.integers(1, width - left + 1)),
            int(rng.integers(1, height - top + 1)),
        )
        patch = patch_of(mask, window)
        seen = np.zeros_like(mask)
        part = np.s_[top : window.bottom, left : window.right]
        seen[part] = mask[part]
        if patch is None:
            empty += 1
            assert not seen.any()
            continue
        x0, y0, x1, y1 = patch.box
        np.testing.assert_array_equal(patch.pixels, seen[y0:y1, x0:x1])
        assert patch.pixels.sum() == seen.sum()
        outline = (patch.pixels[0], patch.pixels[-1], patch.pixels[:, 0], patch.pixels[:, -1])
        assert all(line.any() for line in outline)
    assert 0 < empty < 200


def test_drawn_crops_keep_to_their_limits_and_reach_every_corner():
    rng = np.random.default_rng(0)
    augment = AugmentConfig(crop_px=(20, 50), flip_horizontal=0.5, flip_vertical=0.0)
    drawn = [draw_geometry(rng, 40, 100, side=64, augment=augment) for _ in range(2000)]
    windows = [g.crop for g in drawn]
    assert {w.width for w in windows} == set(range(20, 51))
    assert {w.height for w in windows} == set(range(20, 41))  # the image is no higher
    assert all(0 <= w.left <= w.right <= 100 and 0 <= w.top <= w.bottom <= 40 for w in windows)
    assert (min(w.left for w in windows), max(w.right for w in windows)) == (0, 100)
    assert 0.45 < np.mean([g.flip_x for g in drawn]) < 0.55
    assert not any(g.flip_y for g in drawn)


def test_without_a_crop_the_window_is_the_image():
    geometry = draw_geometry(
        np.random.default_rng(0), 40, 100, side=64, augment=AugmentConfig(flip_horizontal=0)
    )
    assert geometry == whole(40, 100, 64)


def test_a_change_of_tone_keeps_to_its_amount():
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(draw_tone(rng, 0.0), np.arange(256))
    tables = np.array([draw_tone(rng, 0.2) for _ in range(200)])
    assert (np.diff(tables.astype(int), axis=1) >= 0).all()
    assert 127.5 * 0.8 - 1 <= tables[:, 127].min() < 110
    assert 145 < tables[:, 127].max() <= 127.5 * 1.2 + 1


def test_a_patch_knows_its_box():
    assert MaskPatch(np.ones((2, 3), bool), left=5, top=7).box == (5, 7, 8, 9)
