"""The comparison of an exported model with the supernet."""

import pytest
import torch

from supersam.data.shards import ShardReader, ShardWriter, write_manifest
from supersam.evaluation import DivergedError
from supersam.export.check import check_images, max_difference
from tests.data.samples import random_sample
from tests.evaluation.scenes import Replay


def test_images_of_many_objects_are_checked_with_a_few(tmp_path):
    writer = ShardWriter(tmp_path / "shard-000000.h5")
    for number, num_masks in ((0, 40), (1, 3)):
        writer.add(random_sample(number, num_masks=num_masks))
    write_manifest(tmp_path, [writer.finish()])
    images = check_images([ShardReader(tmp_path)], 64)
    assert [len(image.masks) for image in images] == [16, 3, 16, 3]  # boxes, then points
    for image in images:
        assert len(image.points) == len(image.labels) == len(image.boxes) == len(image.masks)


@pytest.fixture
def image():
    (image,) = check_images([], 64)
    image.image[0, 0, 0] = 0  # by which `Replay` knows it
    image.points[:, 1, 0] = torch.arange(len(image.points))
    return image


def predictors(image, error):
    logits = torch.randn(len(image.points), 4, 8, 8)
    changed = logits.clone()
    changed[-1, -1, -1, -1] += error
    return Replay({0: changed}), Replay({0: logits})


def test_the_largest_difference_is_found(image):
    assert max_difference(*predictors(image, 0.0), [image]) == 0.0
    assert max_difference(*predictors(image, 5e-4), [image]) == pytest.approx(5e-4, rel=1e-2)


@pytest.mark.parametrize("error", [0.01, float("inf"), float("nan")])
def test_more_than_rounding_or_no_number_is_a_failure(image, error):
    with pytest.raises(RuntimeError, match="differs from the supernet"):
        max_difference(*predictors(image, error), [image, image])


def test_weights_that_diverged_are_not_called_a_difference(image):
    diverged, _ = predictors(image, float("nan"))
    with pytest.raises(DivergedError, match="take an earlier checkpoint"):
        max_difference(diverged, diverged, [image])
