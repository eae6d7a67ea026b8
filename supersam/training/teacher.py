"""A frozen model that every subnet of a run learns from."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from supersam.data.sample import Batch
from supersam.model import Prediction, SamSupernet
from supersam.model.input_size import resize_maps
from supersam.space import EncoderShape
from supersam.training.clicks import Prompts, Taught


class FrozenTeacher:
    """Predicts batches of a student, whose input may be of another size.

    Every model of the family gives an embedding of 256 channels and four masks, whatever the width
    of its encoder, so that teacher and student are compared as they are.
    """

    def __init__(self, model: SamSupernet, student: EncoderShape) -> None:
        """model: on the device of the batches; its largest subnet is the teacher."""
        self._model = model.requires_grad_(False).eval()
        self._student = student

    def predict(self, batch: Batch) -> Prediction:
        """Predict the prompts of `batch`, at the student's resolution."""
        return self.teach(batch).first

    @torch.no_grad()
    def teach(self, batch: Batch) -> Taught:
        """Predict the prompts of `batch`, at the student's resolution, and encode it."""
        side, student = self._model.space.shape.image_size, self._student
        if side != student.image_size:
            batch = _scaled(batch, side)
        found: Prediction = self._model(batch.images, batch.sizes, batch.points, batch.labels)
        return Taught(found.at_grid(student.grid), found.embedding, self._answer)

    def _answer(self, embedding: Tensor, prompts: Prompts) -> Prediction:
        return self._model.predict(embedding, prompts.points, prompts.labels, prompts.masks)


def _scaled(batch: Batch, side: int) -> Batch:
    """Bring images and prompts to squares of `side` pixels."""
    factor = side / batch.images.shape[-1]
    return replace(
        batch,
        images=resize_maps(batch.images, side).clamp(0, 255),
        sizes=(batch.sizes * factor).round().long(),
        points=(batch.points + 0.5) * factor - 0.5,
    )
