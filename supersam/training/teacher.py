"""A frozen model that every subnet of a run learns from."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from supersam.data.sample import Batch
from supersam.model import Prediction, SamSupernet
from supersam.space import EncoderShape


class FrozenTeacher:
    """Predicts batches of a student, whose input may be of another size.

    Every model of the family gives an embedding of 256 channels and four masks, whatever the width
    of its encoder, so that teacher and student are compared as they are.
    """

    def __init__(self, model: SamSupernet, student: EncoderShape) -> None:
        """model: on the device of the batches; its largest subnet is the teacher."""
        self._model = model.requires_grad_(False).eval()
        self._student = student

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        """Predict the prompts of `batch`, at the student's resolution."""
        side, student = self._model.space.shape.image_size, self._student
        if side != student.image_size:
            batch = _scaled(batch, side)
        found: Prediction = self._model(batch.images, batch.sizes, batch.points, batch.labels)
        if side == student.image_size:
            return found
        return Prediction(
            masks=_resized(found.masks.flatten(0, 1), 4 * student.grid).view(
                *found.masks.shape[:3], 4 * student.grid, 4 * student.grid
            ),
            ious=found.ious,
            embedding=_resized(found.embedding, student.grid),
        )


def _scaled(batch: Batch, side: int) -> Batch:
    """Bring images and prompts to squares of `side` pixels."""
    factor = side / batch.images.shape[-1]
    return replace(
        batch,
        images=_resized(batch.images.float(), side).clamp(0, 255),
        sizes=(batch.sizes * factor).round().long(),
        points=(batch.points + 0.5) * factor - 0.5,
    )


def _resized(x: Tensor, side: int) -> Tensor:
    """(B, C, h, w) to (B, C, side, side)."""
    return F.interpolate(
        x.float(), size=(side, side), mode="bilinear", align_corners=False, antialias=True
    )
