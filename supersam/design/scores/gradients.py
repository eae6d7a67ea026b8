"""Gradients of the reading weights, for the scores that need them, and the label-free loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from supersam.data.sample import Batch
from supersam.design.scores.columns import Columns, reading_weights
from supersam.design.scores.measurement import ScoreLoss
from supersam.design.units import channel_axis
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


@dataclass(frozen=True)
class GradientProducts:
    """Sums of weight x gradient, float64 on the CPU, for one batch."""

    columns: Columns
    """Sums over each input column of each reading weight."""
    channels: Tensor
    """(C,), sums over every parameter of a channel: those that read, write, scale and shift it."""
    gradients: dict[str, Tensor]
    """Gradients of the reading weights, by name."""


def weight_times_gradient(supernet: SamSupernet, batch: Batch, loss: ScoreLoss) -> GradientProducts:
    """Differentiate `loss` on `batch` by the weights of all units."""
    batch = batch.to(supernet.pixel_mean.device)
    readers = reading_weights(supernet)
    of_channels: dict[Tensor, int] = {
        parameter: axis
        for name, parameter in supernet.image_encoder.named_parameters()
        if (axis := channel_axis(name)) is not None
    }
    weights = list(dict.fromkeys([*readers.values(), *of_channels]))
    with _differentiable(weights), torch.enable_grad():
        prediction = supernet(batch.images, batch.sizes, batch.points, batch.labels)
        found = torch.autograd.grad(loss(prediction, batch), weights)
    gradients = dict(zip(weights, found, strict=True))
    products = {w: w.detach().double() * gradients[w].double() for w in weights}
    channels = [
        products[w].movedim(axis, 0).reshape(w.shape[axis], -1).sum(1)
        for w, axis in of_channels.items()
    ]
    return GradientProducts(
        columns={name: products[w].flatten(1).sum(0).cpu() for name, w in readers.items()},
        channels=torch.stack(channels).sum(0).cpu(),
        gradients={name: gradients[w] for name, w in readers.items()},
    )


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
