"""Compare an exported model with the supernet that it was cut from, on a few images."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from supersam.data.dataset import EvalDataset
from supersam.data.loader import build_eval_loader
from supersam.data.masks import ObjectMasks
from supersam.data.sample import (
    LABEL_BOX_MAX,
    LABEL_BOX_MIN,
    LABEL_FOREGROUND,
    LABEL_PAD,
    EvalImage,
)
from supersam.data.shards import ShardReader
from supersam.evaluation import Predictor, require_finite
from supersam.runtime.distributed import World

IMAGES = 4
"""Images of a check, for each kind of prompt."""
_MAX_OBJECTS = 16
"""Objects of an image in a check: all are compared at once, four masks of each at full size."""
_TOLERANCE = 1e-3  # of a logit, where a GPU picks other kernels for other shapes; a CPU: equal


def check_images(readers: Sequence[ShardReader], side: int) -> list[EvalImage]:
    """Read a few held-out images with boxes and with points, and some objects of each.

    Returns an artificial image where there are none.
    """
    images: list[EvalImage] = []
    if not readers:
        return [_artificial_image(side)]
    for prompt in ("box", "point"):
        dataset = EvalDataset(readers, side=side, prompt=prompt)
        images += map(_first_objects, build_eval_loader(dataset, World.single(), limit=IMAGES))
    return [image for image in images if len(image.masks) > 0] or [_artificial_image(side)]


def _first_objects(image: EvalImage) -> EvalImage:
    return image.select(range(min(len(image.masks), _MAX_OBJECTS)))


def max_difference(exported: Predictor, supernet: Predictor, images: Sequence[EvalImage]) -> float:
    """Return the largest difference of a mask logit between exported model and supernet.

    Raises RuntimeError where it exceeds rounding or is not a number, and DivergedError where the
    supernet itself predicts NaN or infinity.
    """
    differences = []
    for image in images:
        prompts = (torch.tensor([image.size]), image.points[None], image.labels[None])
        found, expected = (
            each.predict(image.image[None], *prompts)[0].cpu() for each in (exported, supernet)
        )
        require_finite(expected, sample_id=image.sample_id)
        differences.append((found - expected).abs().max())
    largest = float(torch.stack(differences).max())  # Python's own `max` may pass over a NaN
    if not largest <= _TOLERANCE:
        raise RuntimeError(
            f"the exported model differs from the supernet by {largest:g} in a mask logit"
        )
    return largest


def _artificial_image(side: int) -> EvalImage:
    """Build a smooth random image with a few points and boxes; its masks are empty."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")[0]
    height = 3 * side // 4
    pixels = (smooth.clamp(0, 1) * 255).to(torch.uint8)
    pixels[:, height:] = 0
    points = torch.rand(4, 2, 2, generator=generator).sort(dim=1).values * (height - 1)
    labels = torch.tensor([[LABEL_BOX_MIN, LABEL_BOX_MAX]]).repeat(4, 1)
    labels[:2] = torch.tensor([LABEL_FOREGROUND, LABEL_PAD])
    points[:2, 1] = 0
    return EvalImage(
        image=pixels,
        size=(height, side),
        original_size=(height, side),
        points=points,
        labels=labels,
        masks=ObjectMasks.of(torch.zeros(4, height, side, dtype=torch.bool)),
        boxes=torch.zeros(4, 4),
        sample_id=0,
        source=0,
        group=0,
    )
