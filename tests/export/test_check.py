"""The comparison of an exported model with the supernet."""

import pytest
import torch

from supersam.evaluation import DivergedError
from supersam.export.check import check_images, max_difference
from tests.evaluation.scenes import Replay


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
