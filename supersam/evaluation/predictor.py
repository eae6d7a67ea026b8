"""Predictors: a subnet of a supernet, or a segment-anything model of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from supersam.model import SamSupernet, normalize_images
from supersam.model.decoder import decode_masks, embed_prompts
from supersam.model.input_size import resize_images, scale_points
from supersam.space import SubnetSpec


class _LastEmbedding:
    """The embedding of the last images: the prompts of an image come in several calls."""

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self._last: tuple[Tensor, Tensor] | None = None

    def of(self, images: Tensor, encode: Callable[[], Tensor]) -> Tensor:
        """Return the embedding of `images`; `encode` computes it where they are others."""
        if self._last is not None and torch.equal(self._last[0], images):
            return self._last[1]
        embedding = encode()
        if self._keep:
            self._last = images, embedding
        return embedding


class SubnetPredictor:
    """Runs `spec` on the device of `supernet`, in evaluation mode and without gradients.

    Images of another size than its resolution are scaled to it, and prompts with them.
    """

    def __init__(
        self,
        supernet: SamSupernet,
        spec: SubnetSpec,
        *,
        bf16: bool = False,
        keep_embedding: bool = False,
    ) -> None:
        """keep_embedding: encode images of consecutive calls once; the weights must not change."""
        self._supernet = supernet
        self._spec = spec
        self._side = supernet.space.input_px(spec)
        self._bf16 = bf16
        self._last = _LastEmbedding(keep=keep_embedding)

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,
        sizes: Tensor,
        points: Tensor,
        labels: Tensor,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mask logits and IoU estimates of prompted images; see `ClickPredictor`."""
        device = self._supernet.pixel_mean.device
        images, sizes, points, labels = (t.to(device) for t in (images, sizes, points, labels))
        masks = None if masks is None else masks.to(device)
        with (
            self._supernet.activated(self._spec),
            torch.autocast(device.type, torch.bfloat16, enabled=self._bf16),
        ):
            embedding = self._last.of(
                images, lambda: self._supernet.encode(*resize_images(images, sizes, self._side))
            )
            points = scale_points(points, images.shape[-1], self._side)
            return self._supernet.decode(embedding, points, labels, masks)


class SamModelPredictor:
    """Runs a plain segment-anything model, in evaluation mode and without gradients."""

    def __init__(self, sam: Sam, *, keep_embedding: bool = False) -> None:
        """keep_embedding: encode images of consecutive calls once; the weights must not change."""
        self._sam = sam
        self._last = _LastEmbedding(keep=keep_embedding)

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,
        sizes: Tensor,
        points: Tensor,
        labels: Tensor,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mask logits and IoU estimates of prompted images; see `ClickPredictor`."""
        sam = self._sam
        device = sam.pixel_mean.device
        images, sizes, points, labels = (t.to(device) for t in (images, sizes, points, labels))
        masks = None if masks is None else masks.to(device)

        def encode() -> Tensor:
            pixels = normalize_images(images, sizes, mean=sam.pixel_mean, std=sam.pixel_std)
            found: Tensor = sam.image_encoder(pixels)
            return found

        embedding = self._last.of(images, encode)
        tokens = embed_prompts(sam.prompt_encoder, points.flatten(0, 1), labels.flatten(0, 1))
        tokens = tokens.view(*points.shape[:2], *tokens.shape[1:])
        decoded, ious = decode_masks(
            sam.mask_decoder, sam.prompt_encoder, embedding, tokens, masks=masks
        )
        return decoded.float(), ious.float()
