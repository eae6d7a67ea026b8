"""Prompts lie on their objects, and their randomness is even, bounded and never stuck."""

import numpy as np
import pytest

from supersam.data.prompts import (
    draw_box,
    draw_point,
    draw_prompt,
    stored_prompts,
    visible_objects,
)
from supersam.data.sample import (
    LABEL_BOX_MAX,
    LABEL_BOX_MIN,
    LABEL_FOREGROUND,
    LABEL_PAD,
)
from supersam.data.shards import MASK_META
from supersam.data.transforms import Crop, Geometry, MaskPatch

WINDOW = Crop(10, 20, 100, 50)
ELL = MaskPatch(np.array([[1, 0, 0], [1, 1, 1]], bool), left=40, top=30)
POINT = (LABEL_FOREGROUND, LABEL_PAD)
BOX = (LABEL_BOX_MIN, LABEL_BOX_MAX)


def test_points_are_even_over_the_objects_pixels():
    rng = np.random.default_rng(0)
    drawn = [tuple(draw_point(rng, ELL)) for _ in range(4000)]
    pixels = {(40, 30), (40, 31), (41, 31), (42, 31)}
    assert set(drawn) == pixels
    assert all(900 < drawn.count(pixel) < 1100 for pixel in pixels)


def test_a_box_without_jitter_is_tight():
    np.testing.assert_array_equal(
        draw_box(np.random.default_rng(0), ELL, WINDOW, jitter=0), (40, 30, 43, 32)
    )


def test_box_sides_shift_in_and_out_by_a_share_of_the_box():
    rng = np.random.default_rng(0)
    patch = MaskPatch(np.ones((10, 30), bool), left=40, top=40)
    drawn = np.array([draw_box(rng, patch, WINDOW, jitter=0.1) for _ in range(4000)])
    shift = drawn - patch.box
    np.testing.assert_allclose(shift.mean(axis=0), 0, atol=0.15)
    np.testing.assert_allclose(shift.std(axis=0), (3, 1, 3, 1), rtol=0.05)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 3)])
def test_jittered_boxes_stay_in_the_window_and_never_collapse(shape):
    rng = np.random.default_rng(0)
    for left, top in ((10, 20), (60, 30)):
        patch = MaskPatch(np.ones(shape, bool), left, top)
        for _ in range(300):
            x0, y0, x1, y1 = draw_box(rng, patch, WINDOW, jitter=1.0)
            assert WINDOW.left <= x0 <= x1 - 1
            assert x1 <= WINDOW.right
            assert WINDOW.top <= y0 <= y1 - 1
            assert y1 <= WINDOW.bottom


@pytest.mark.parametrize("flip_x", [False, True])
def test_a_drawn_prompt_is_in_pixels_of_the_input(flip_x):
    rng = np.random.default_rng(0)
    geometry = Geometry(WINDOW, 200, flip_x=flip_x)
    points, labels = draw_prompt(rng, ELL, geometry, kind="box", box_jitter=0)
    x0, x1 = (200 - 66, 200 - 60) if flip_x else (60, 66)
    assert (points.tolist(), labels) == ([[x0, 20], [x1, 24]], BOX)
    points, labels = draw_prompt(rng, ELL, geometry, kind="point", box_jitter=0)
    assert labels == POINT
    assert points[1].tolist() == [0, 0]
    assert x0 <= points[0, 0] < x1
    assert 20 <= points[0, 1] < 24


def test_either_kind_is_drawn_half_the_time():
    rng = np.random.default_rng(0)
    geometry = Geometry(WINDOW, 200)
    drawn = [draw_prompt(rng, ELL, geometry, kind="either", box_jitter=0.1)[1] for _ in range(1000)]
    assert set(drawn) == {POINT, BOX}
    assert 450 < drawn.count(BOX) < 550


def test_objects_are_visible_if_enough_of_them_or_of_the_window_overlaps():
    boxes = np.array(
        [
            (40, 30, 10, 10),  # inside
            (0, 30, 12, 10),  # a sixth inside
            (0, 30, 15, 10),  # a third inside
            (110, 30, 10, 10),  # touches from outside
            (0, 0, 5000, 5000),  # the window is in the object
            (0, 0, 30, 5000),  # covers a fifth of the window, hardly any of the object
        ],
        np.float32,
    )
    assert visible_objects(boxes, WINDOW).tolist() == [0, 2, 4]
    assert visible_objects(boxes[:0], WINDOW).tolist() == []


def test_stored_prompts_are_the_stored_points_or_the_tight_boxes():
    masks = np.zeros(3, MASK_META)
    masks["bbox"] = [(0, 0, 100, 50), (10, 20, 1, 1), (30, 5, 60, 40)]
    masks["point"] = [(50, 25), (10, 20), (31, 44)]
    geometry = Geometry(Crop(0, 0, 100, 50), 200)
    points, labels = stored_prompts(masks, "point", geometry)
    np.testing.assert_array_equal(points[:, 0], 2 * masks["point"])
    assert not points[:, 1].any()
    assert labels.tolist() == [list(POINT)] * 3
    points, labels = stored_prompts(masks, "box", geometry)
    assert points.reshape(3, 4).tolist() == [[0, 0, 200, 100], [20, 40, 22, 42], [60, 10, 180, 90]]
    assert labels.tolist() == [list(BOX)] * 3
    assert stored_prompts(masks[:0], "box", geometry)[0].shape == (0, 2, 2)
