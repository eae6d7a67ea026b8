"""Gradients of the reading weights, for the scores that need them, and the label-free loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from supersam.data.sample import Batch
from supersam.design.scores.columns import Columns, reading_weights
from supersam.design.scores.measurement import ScoreLoss
from supersam.model import Prediction, SamSupernet

_NOISE = 0.01  # of SlimSAM's disturbed embedding (arXiv 2312.05284); its scale ranks nothing


def embedding_loss(seed: int = 0) -> ScoreLoss:
    """Return a loss that needs no annotation.

    It is the squared distance of the image embedding to itself plus noise.
    """

    def loss(prediction: Prediction, batch: Batch) -> Tensor:
        generator = torch.Generator().manual_seed(seed + int(batch.sample_ids[0]))
        embedding = prediction.embedding.float()
        noise = torch.randn(embedding.shape, generator=generator).to(embedding.device)
        return F.mse_loss(embedding, embedding.detach() + _NOISE * noise)

    return loss


def weight_times_gradient(
    supernet: SamSupernet, batch: Batch, loss: ScoreLoss
) -> tuple[Columns, dict[str, Tensor]]:
    """Return the sum of weight x gradient over each column (float64, CPU) and the gradients."""
    batch = batch.to(supernet.pixel_mean.device)
    weights = reading_weights(supernet)
    with _differentiable(weights.values()), torch.enable_grad():
        prediction = supernet(batch.images, batch.sizes, batch.points, batch.labels)
        gradients = torch.autograd.grad(loss(prediction, batch), list(weights.values()))
    products = {
        name: (weight.detach().double() * gradient.double()).flatten(1).sum(0).cpu()
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }
    return products, dict(zip(weights, gradients, strict=True))


@contextmanager
def _differentiable(weights: Iterable[Tensor]) -> Iterator[None]:
    """Give frozen weights gradients inside the `with` block."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
