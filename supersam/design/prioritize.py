"""Parameter prioritization: the most important units first, so that a prefix slice keeps them.

The largest subnet computes the same function before and after; every smaller subnet changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from supersam.config.design import DIMENSIONS, Dimension
from supersam.data.sample import Batch
from supersam.design.units import UnitOrder, UnitScores, permute_tensor, rank_units
from supersam.model import SamSupernet


@torch.no_grad()
def prioritize_parameters(
    supernet: SamSupernet,
    scores: UnitScores,
    *,
    dimensions: Sequence[Dimension] = DIMENSIONS,
) -> UnitOrder:
    """Reorder the supernet's weights in place by descending score, wherever a unit appears.

    Returns the order, which `permute_tensor` applies to the moments of an optimizer.
    """
    order = rank_units(scores, dimensions)
    if not order.is_identity:
        for name, parameter in supernet.named_parameters():
            moved = permute_tensor(name, parameter, order, supernet.space.shape)
            if moved is not parameter:
                parameter.copy_(moved)
    return order


@dataclass(frozen=True)
class FunctionChange:
    """The largest absolute difference of any element between two predictions of a model."""

    embedding: float
    """Difference of the image embedding, whose elements are of size 1."""
    masks: float
    """Difference of the mask logits."""
    largest_logit: float
    """The largest absolute mask logit: the scale of `masks`."""


class FunctionProbe:
    """Keeps the prediction of the largest subnet for a batch, to compare with later."""

    def __init__(self, supernet: SamSupernet, batch: Batch) -> None:
        self._supernet = supernet
        self._batch = batch.to(supernet.pixel_mean.device)
        self._before = self._answer()

    def compare(self) -> FunctionChange:
        """Compare the prediction of the largest subnet with the one kept."""
        embedding, masks = self._answer()
        return FunctionChange(
            embedding=float((embedding - self._before[0]).abs().max()),
            masks=float((masks - self._before[1]).abs().max()),
            largest_logit=float(masks.abs().max()),
        )

    @torch.no_grad()
    def _answer(self) -> tuple[torch.Tensor, torch.Tensor]:
        supernet, batch = self._supernet, self._batch
        # TF32, which a GPU's convolutions take for float32, moved a ViT-B's embedding by 6e-4.
        whole = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with supernet.activated(supernet.space.largest()), whole:
            prediction = supernet(batch.images, batch.sizes, batch.points, batch.labels)
        return prediction.embedding, prediction.masks
