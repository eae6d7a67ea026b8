"""Predictions made for many images at a time are those made for each alone."""

import pytest
import torch

from experiments.trained import grouped, predict_ahead
from supersam.data.masks import ObjectMasks
from supersam.data.sample import EvalImage
from supersam.evaluation import SubnetPredictor
from supersam.model import SamSupernet, load_sam
from supersam.space import EncoderShape, published_space

SMALL = EncoderShape(96, 4, 3, (1, 3), image_size=80, window_size=3)


@pytest.fixture(scope="module")
def predictor() -> SubnetPredictor:
    supernet = SamSupernet(load_sam(SMALL), published_space(SMALL)).eval()
    return SubnetPredictor(supernet, supernet.space.smallest())


def image_with(objects: int, *, seed: int) -> EvalImage:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(objects, 2, 2, generator=generator) * 79
    return EvalImage(
        image=torch.randint(0, 256, (3, 80, 80), dtype=torch.uint8, generator=generator),
        size=(80 - seed, 80),
        original_size=(80 - seed, 80),
        points=corners.sort(dim=1).values,
        labels=torch.tensor([2, 3]).expand(objects, 2).clone(),
        masks=ObjectMasks.of(torch.zeros(objects, 80 - seed, 80, dtype=torch.bool)),
        boxes=torch.zeros(objects, 4),
        sample_id=seed,
        source=seed,
        group=seed,
    )


IMAGES = [image_with(objects, seed=i) for i, objects in enumerate((3, 1, 5, 2, 1, 1, 4))]


def test_many_at_a_time_predict_as_one_at_a_time(predictor):
    alone = list(predict_ahead(predictor, IMAGES, at_once=1))
    together = list(predict_ahead(predictor, IMAGES, at_once=12))
    assert len(alone) == len(together) == len(IMAGES)
    for image, one, other in zip(IMAGES, alone, together, strict=True):
        assert one[0].shape[:2] == (1, len(image.points))
        torch.testing.assert_close(other[0], one[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(other[1], one[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("at_once", [1, 5, 12, 1000])
def test_groups_keep_the_order_and_the_limit(at_once):
    groups = list(grouped(IMAGES, at_once))
    assert [image for group in groups for image in group] == IMAGES
    for group in groups:
        filled = len(group) * max(len(image.points) for image in group)
        assert len(group) == 1 or filled <= at_once
