"""Facts read from run lengths equal those of the drawn mask and of pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as coco

from supersam.data.rle import (
    compress_counts,
    decode_runs,
    encode_runs,
    mask_record,
    rasterize_polygons,
    window_runs,
)


def random_masks():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.02, 0.3, 0.9, 1.0):
        for _ in range(12):
            height, width = rng.integers(1, 40, 2)
            yield rng.random((height, width)) < density
    for _ in range(20):  # long runs, large counts
        mask = np.zeros((300, 500), bool)
        y, x = rng.integers(0, 250), rng.integers(0, 400)
        mask[y : y + rng.integers(1, 300), x : x + rng.integers(1, 300)] = True
        yield mask


def encoded(mask):
    return coco.encode(np.asfortranarray(mask, np.uint8))


@pytest.fixture(params=range(80))
def mask(request):
    return list(random_masks())[request.param]


def test_runs_agree_with_pycocotools(mask):
    height, width = mask.shape
    rle = encoded(mask)
    runs = decode_runs(rle["counts"], height, width)
    assert encode_runs(runs) == rle["counts"]
    assert runs.area == coco.area(rle)
    assert list(runs.bbox) == coco.toBbox(rle).tolist()
    assert np.array_equal(runs.draw(0, 0, height, width), mask)


def test_a_window_is_the_slice_of_the_mask(mask):
    height, width = mask.shape
    rng = np.random.default_rng(height)
    runs = decode_runs(encoded(mask)["counts"], height, width)
    y, x = rng.integers(height), rng.integers(width)
    h, w = rng.integers(1, height - y + 1), rng.integers(1, width - x + 1)
    window = runs.draw(y, x, h, w)
    assert np.array_equal(window, mask[y : y + h, x : x + w])
    alone = np.zeros_like(mask)
    alone[y : y + h, x : x + w] = window
    again = window_runs(window, height, width, y=y, x=x)
    assert encode_runs(again) == encoded(alone)["counts"]


def test_points_are_inside_just_where_the_mask_is():
    mask = np.random.default_rng(1).random((9, 7)) < 0.5
    runs = decode_runs(encoded(mask)["counts"], 9, 7)
    assert [[(x + 0.75, y) in runs for x in range(7)] for y in range(9)] == mask.tolist()
    assert not any(point in runs for point in [(-0.1, 0), (7, 0), (0, 9), (0, -1)])


def test_the_inner_point_is_a_pixel_and_the_deepest(mask):
    if not mask.any():
        return
    runs = window_runs(mask, *mask.shape)
    x, y = runs.inner_point()
    assert mask[int(y), int(x)]


def test_the_inner_point_of_a_disc_is_its_centre():
    y, x = np.mgrid[:41, :61]
    disc = (y - 20) ** 2 + (x - 35) ** 2 <= 15**2
    assert window_runs(disc, 41, 61).inner_point() == (35.0, 20.0)


def test_a_source_point_is_kept_only_on_the_mask():
    mask = np.zeros((20, 20), bool)
    mask[5:10, 5:10] = True
    runs = window_runs(mask, 20, 20)
    assert mask_record(runs, point=(5.25, 9.75)).point == (5.25, 9.75)
    assert mask_record(runs, point=(0.0, 0.0)).point == (7.0, 7.0)


def test_uncompressed_counts_are_compressed_as_pycocotools_does(mask):
    height, width = mask.shape
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    counts = [0, *counts] if flat[0] else counts
    assert compress_counts(counts, height, width) == encoded(mask)["counts"]


def test_polygons_are_drawn_as_pycocotools_does():
    polygons = [[1.0, 1.0, 12.5, 2.0, 7.0, 15.0], [10, 10, 18, 10, 18, 18, 10, 18]]
    drawn = coco.decode(coco.merge(coco.frPyObjects(polygons, 20, 24)))
    runs = decode_runs(rasterize_polygons(polygons, 20, 24), 20, 24)
    assert np.array_equal(runs.draw(0, 0, 20, 24), drawn.astype(bool))


@pytest.mark.parametrize("rle", [b"", b"\x00\xff", b"P", b"zz", b"00", b"PPPPPPPPPP0", b"1"])
def test_broken_run_lengths_are_refused(rle):
    with pytest.raises(ValueError, match="run lengths"):
        decode_runs(rle, 4, 4)


@pytest.mark.parametrize("counts", [[17], [3, -1, 14], []])
def test_broken_counts_are_refused(counts):
    with pytest.raises(ValueError, match="run length"):
        compress_counts(counts, 4, 4)


def test_no_polygons_are_refused():
    with pytest.raises(ValueError, match="list of polygons is empty"):
        rasterize_polygons([], 9, 9)


@pytest.mark.parametrize("far", [1e5, 2e8, 1e300])
@pytest.mark.parametrize("place", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
def test_points_far_outside_are_clipped(far, place):
    x, y = place[0] * far, place[1] * far
    triangle = [10.0, 15.0, 10.0 + x, 15.0, 10.0, 15.0 + y]
    drawn = decode_runs(rasterize_polygons([triangle], 40, 30), 40, 30).draw(0, 0, 40, 30)
    rows, columns = np.mgrid[:40, :30] + 0.5
    expected = ((columns - 10) * place[0] > 0) & ((rows - 15) * place[1] > 0)
    assert np.array_equal(drawn, expected)


def test_clipping_changes_nothing_near_the_image():
    rng = np.random.default_rng(0)
    for _ in range(40):
        polygon = rng.uniform(-60, 100, (int(rng.integers(3, 9)), 2))
        near = coco.decode(coco.merge(coco.frPyObjects([polygon.ravel().tolist()], 40, 60)))
        runs = decode_runs(rasterize_polygons([polygon.ravel().tolist()], 40, 60), 40, 60)
        share = (runs.draw(0, 0, 40, 60) != near).mean()
        assert share < 0.02  # a side that was cut ends at rounded pixels of its own


def test_a_polygon_outside_of_the_image_has_no_pixels():
    far = [[1e9, 1e9, 2e9, 1e9, 2e9, 2e9]]
    assert decode_runs(rasterize_polygons(far, 9, 9), 9, 9).area == 0
