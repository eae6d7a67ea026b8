"""Simulated corrections: clicks where a predicted mask is wrong, as SAM was trained.

The first prompt has four answers. Of the multimask outputs the one with the highest estimate is
corrected: it becomes part of the next prompt, with one more point, drawn evenly from where it
differs from the object. The single mask is the answer to that prompt, and to each further one
(Kirillov et al., arXiv 2304.02643, appendix A). An image is encoded once, and each backward pass
frees the decoder's activations, so that memory does not grow with the number of corrections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from supersam.config import LossConfig
from supersam.data.sample import LABEL_BACKGROUND, LABEL_FOREGROUND, LOGIT_STRIDE, Batch
from supersam.model import Prediction
from supersam.model.input_size import resize_maps, scale_points
from supersam.model.losses import LossTerms, mean_terms, subnet_loss
from supersam.model.prefix import GraphCut

CELLS = 4
"""Mask-logit cells along a side of a cell of the embedding."""
_HALF = 128
"""Of `Batch.masks`: cells that are covered as much belong to the object."""


@dataclass(frozen=True)
class Prompts:
    """What the decoder is asked; shapes as in `SamSupernet.decode`."""

    points: Tensor
    labels: Tensor
    masks: Tensor | None = None
    """The masks that are corrected; None in a first prompt."""

    def at_grid(self, grid: int) -> Prompts:
        """Scale a correction to embeddings of `grid` cells a side."""
        assert self.masks is not None  # first prompts come scaled with their batch
        before = self.masks.shape[-1] // CELLS
        if before == grid:
            return self
        points = scale_points(self.points, before, grid)
        return Prompts(points, self.labels, resize_maps(self.masks, CELLS * grid))


Answer = Callable[[Tensor, Prompts], Prediction]
"""From embeddings, (B, 256, g, g), and prompts on those images to the prediction."""


@dataclass(frozen=True)
class Taught:
    """What a teacher answers to a batch, whatever the resolution of the subnet that learns."""

    first: Prediction
    """To the first prompts."""
    embedding: Tensor
    """The images, encoded by the teacher."""
    answer: Answer
    """Decodes that embedding."""

    @torch.no_grad()
    def correct(self, prompts: Prompts, grid: int) -> Prediction:
        """Answer to corrections, which differ from subnet to subnet; grid: of the subnet."""
        prompts = prompts.at_grid(self.embedding.shape[-1])
        return self.answer(self.embedding, prompts).at_grid(grid)


def accumulate_rounds(
    answer: Answer,
    embedding: Tensor,
    batch: Batch,
    config: LossConfig,
    *,
    teacher: Taught | None,
    backward: Callable[[Tensor], None],
    scale: float,
) -> tuple[LossTerms, Prediction]:
    """Add a subnet's gradients of the first prompts, and of the corrections that `batch` asks for.

    The loss is the mean over these rounds: the length of the gradient, and so the learning rate and
    the limit of clipping that fit, do not depend on their number.

    Args:
        answer: decodes, with gradients.
        embedding: the images of `batch`, encoded by the subnet.
        batch: the prompts and objects.
        config: of the loss.
        teacher: whom the subnet also learns from.
        backward: adds the gradients of a scalar.
        scale: factor of the loss.

    Returns the loss, detached, and the prediction of the first prompts.
    """
    rounds = 1 if batch.clicks is None else 1 + batch.clicks.shape[-1]
    cut = GraphCut.of(embedding) if rounds > 1 else None
    image = embedding if cut is None else cut.leaf
    grid = embedding.shape[-1]
    prompts = Prompts(batch.points, batch.labels)
    taught = None if teacher is None else teacher.first.at_grid(grid)
    first = prediction = answer(image, prompts)
    losses = []
    for number in range(rounds):
        if number > 0:
            prompts = correct(prompts, prediction, batch, number - 1)
            taught = None if teacher is None else teacher.correct(prompts, grid).single()
            prediction = answer(image, prompts).single()
        terms = subnet_loss(prediction, batch, config, teacher=taught)
        backward(terms.total * (scale / rounds))
        losses.append(terms)
    if cut is not None and (rest := cut.loss()) is not None:
        backward(rest)
    return mean_terms(losses), first


def correct(prompts: Prompts, prediction: Prediction, batch: Batch, number: int) -> Prompts:
    """Return the prompts that correct what was predicted; `number`: of the correction, from 0."""
    assert batch.clicks is not None  # the caller counts them
    masks = prediction.best_masks()
    points, labels = draw_clicks(masks > 0, batch, batch.clicks[..., number])
    return Prompts(
        torch.cat([prompts.points, points[:, :, None]], dim=2),
        torch.cat([prompts.labels, labels[:, :, None]], dim=2),
        masks,
    )


def draw_clicks(predicted: Tensor, batch: Batch, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a point of each object where `predicted` is wrong, each cell with the same chance.

    A mask without a fault gets another point of the object. Nothing here waits for the device.

    Args:
        predicted: (B, N, s, s) bool.
        batch: the objects; what an image's padding shows is not looked at.
        draws: (B, N) in [0, 1), which of the cells.

    Returns points (B, N, 2), pixels (x, y) of the padded square, and labels (B, N): foreground on
    the object, background beside it.
    """
    # The cells of an object that covers half of none are those that it covers most.
    limit = batch.masks.amax(dim=(-2, -1), keepdim=True).clamp(1, _HALF)
    objects = batch.masks >= limit
    wrong = (predicted != objects) & _inside(batch)
    choice = torch.where(wrong.any(-1).any(-1)[..., None, None], wrong, objects)
    nth = choice.flatten(2).cumsum(dim=-1)
    count = nth[..., -1]
    wanted = 1 + torch.minimum((draws * count).long(), (count - 1).clamp(min=0))
    cells = nth.shape[-1]
    cell = torch.searchsorted(nth, wanted[..., None]).clamp(max=cells - 1)  # (B, N, 1)
    side = predicted.shape[-1]
    place = torch.cat([cell % side, cell // side], dim=-1)
    middle = (LOGIT_STRIDE - 1) / 2  # of a cell's pixels
    on_object = objects.flatten(2).gather(2, cell)[..., 0]
    return place * LOGIT_STRIDE + middle, torch.where(on_object, LABEL_FOREGROUND, LABEL_BACKGROUND)


def _inside(batch: Batch) -> Tensor:
    """(B, 1, s, s) bool: cells whose middle is in the image."""
    middles = torch.arange(batch.masks.shape[-1], device=batch.sizes.device) + 0.5
    inside = middles * LOGIT_STRIDE < batch.sizes[:, :, None]  # (B, 2, s): rows, columns
    return (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]
