"""One subnet of a supernet as something that can be evaluated."""

from __future__ import annotations

import torch
from torch import Tensor

from supersam.model import SamSupernet
from supersam.space import SubnetSpec


class SubnetPredictor:
    """Runs `spec` on the device of `supernet`, in evaluation mode and without gradients."""

    def __init__(self, supernet: SamSupernet, spec: SubnetSpec, *, bf16: bool = False) -> None:
        self._supernet = supernet
        self._spec = spec
        self._bf16 = bf16

    @torch.no_grad()
    def predict(
        self, images: Tensor, sizes: Tensor, points: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mask logits and IoU estimates of prompted images; see `Predictor`."""
        device = self._supernet.pixel_mean.device
        images, sizes, points, labels = (t.to(device) for t in (images, sizes, points, labels))
        with (
            self._supernet.activated(self._spec),
            torch.autocast(device.type, torch.bfloat16, enabled=self._bf16),
        ):
            prediction = self._supernet(images, sizes, points, labels)
        return prediction.masks, prediction.ious
