"""Pictures of masks side by side."""

from __future__ import annotations

import torch

from supersam.data.masks import ObjectMasks
from supersam.data.sample import LABEL_BOX_MAX, LABEL_BOX_MIN, EvalImage
from supersam.evaluation.overlay import draw_overlays

SIDE, SIZE = 32, (20, 32)


class Everything:
    """A predictor whose masks fill the padded square."""

    def predict(self, images, sizes, points, labels):
        shape = (1, points.shape[1], 4, SIDE // 4, SIDE // 4)
        return torch.ones(shape), torch.ones(shape[:3])


def test_a_mask_in_the_padding_is_not_shown():
    image = EvalImage(
        image=torch.full((3, SIDE, SIDE), 90, dtype=torch.uint8),
        size=SIZE,
        original_size=SIZE,
        points=torch.tensor([[[2.0, 2.0], [25.0, 15.0]]]),
        labels=torch.tensor([[LABEL_BOX_MIN, LABEL_BOX_MAX]]),
        masks=ObjectMasks.of(torch.ones(1, *SIZE, dtype=torch.bool)),
        boxes=torch.tensor([[2.0, 2.0, 25.0, 15.0]]),
        sample_id=0,
        source=0,
        group=0,
    )
    drawn = draw_overlays([image], {"subnet": Everything()})
    assert (drawn[SIZE[0] :] == 255).all()
    subnet = drawn[: SIZE[0], -SIDE:]
    assert (subnet != 90).any(axis=-1).all()
    assert (subnet != 255).any(axis=-1).all()
