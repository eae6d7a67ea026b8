"""Predictors: a subnet of a supernet, or a segment-anything model of its own."""

from __future__ import annotations

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from supersam.model import SamSupernet, normalize_images
from supersam.model.decoder import decode_masks, embed_prompts
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


class SamModelPredictor:
    """Runs a plain segment-anything model, in evaluation mode and without gradients."""

    def __init__(self, sam: Sam) -> None:
        self._sam = sam

    @torch.no_grad()
    def predict(
        self, images: Tensor, sizes: Tensor, points: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mask logits and IoU estimates of prompted images; see `Predictor`."""
        sam = self._sam
        device = sam.pixel_mean.device
        images, sizes, points, labels = (t.to(device) for t in (images, sizes, points, labels))
        pixels = normalize_images(images, sizes, mean=sam.pixel_mean, std=sam.pixel_std)
        embedding = sam.image_encoder(pixels)
        tokens = embed_prompts(sam.prompt_encoder, points.flatten(0, 1), labels.flatten(0, 1))
        tokens = tokens.view(*points.shape[:2], *tokens.shape[1:])
        masks, ious = decode_masks(sam.mask_decoder, sam.prompt_encoder, embedding, tokens)
        return masks.float(), ious.float()
