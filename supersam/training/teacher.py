"""A frozen model that every subnet of a run learns from."""

from __future__ import annotations

from dataclasses import replace

import torch

from supersam.data.sample import Batch
from supersam.model import Prediction, SamSupernet
from supersam.model.input_size import resize_maps
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
        return found.at_grid(student.grid)


def _scaled(batch: Batch, side: int) -> Batch:
    """Bring images and prompts to squares of `side` pixels."""
    factor = side / batch.images.shape[-1]
    return replace(
        batch,
        images=resize_maps(batch.images, side).clamp(0, 255),
        sizes=(batch.sizes * factor).round().long(),
        points=(batch.points + 0.5) * factor - 0.5,
    )
