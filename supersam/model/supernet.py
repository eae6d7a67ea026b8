"""The supernet: one set of SAM weights in which every subnet of a search space is active slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from supersam.model.decoder import decode_masks, decode_single_masks, embed_prompts
from supersam.model.elastic import CompilerBackend, compile_halves
from supersam.model.encoder import ElasticImageEncoder
from supersam.model.input_size import resize_maps
from supersam.model.kernels.decoder import EXACT, FOLDED, FUSED, DecoderKernels
from supersam.model.prefix import GraphCut, SharedPrefix, common_layers
from supersam.space import SearchSpace, SubnetSpec
from supersam.space.shape import PATCH_PX


@dataclass(frozen=True)
class Prediction:
    """The prediction for N prompts on each of B images of S pixels a side; s = S / 4."""

    masks: Tensor
    """(B, N, 4, s, s) float32 logits: the single mask, then the three multimask outputs; or (B, N,
    1, s, s), the single mask alone."""
    ious: Tensor
    """(B, N, 4) or (B, N, 1) float32: the model's own estimate of each mask's IoU."""
    embedding: Tensor
    """(B, 256, S / 16, S / 16): the image embedding."""

    def at_grid(self, grid: int) -> Prediction:
        """Interpolate to an embedding of `grid` cells a side; itself where it has that many."""
        if self.embedding.shape[-1] == grid:
            return self
        masks = resize_maps(self.masks.flatten(0, 1), 4 * grid)
        return Prediction(
            masks=masks.view(*self.masks.shape[:2], *masks.shape[1:]),
            ious=self.ious,
            embedding=resize_maps(self.embedding, grid),
        )

    def single(self) -> Prediction:
        """Return the single masks alone: what SAM answers to more than one prompt."""
        return Prediction(self.masks[:, :, :1], self.ious[:, :, :1], self.embedding)

    def best_masks(self) -> Tensor:
        """Return the masks that a user gets, (B, N, s, s) logits without gradient.

        Of several, that is the multimask output with the highest estimate.
        """
        masks, ious = self.masks.detach(), self.ious.detach()
        if masks.shape[2] == 1:
            return masks[:, :, 0]
        best = 1 + ious[:, :, 1:].argmax(dim=2)
        return masks.take_along_dim(best[..., None, None, None], dim=2)[:, :, 0]


class SamSupernet(nn.Module):
    """A Segment Anything model whose image encoder holds every subnet of `space`.

    The prompt encoder and the mask decoder are segment-anything's and shared by all subnets.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, sam: Sam, space: SearchSpace, *, attention: str = "auto") -> None:
        """Takes over the modules of `sam`, which must have the sizes of `space.shape`."""
        super().__init__()
        self.space = space
        self.image_encoder = ElasticImageEncoder(
            sam.image_encoder, space.shape, attention=attention
        )
        self.prompt_encoder = sam.prompt_encoder
        self.mask_decoder = sam.mask_decoder
        self.register_buffer("pixel_mean", sam.pixel_mean, persistent=False)
        self.register_buffer("pixel_std", sam.pixel_std, persistent=False)
        self._active = space.largest()
        self._training_decode = decode_masks

    @property
    def active_subnet(self) -> SubnetSpec:
        """The subnet that `forward` runs."""
        return self._active

    def set_active_subnet(self, spec: SubnetSpec) -> None:
        """Make `spec` the subnet that `forward` runs. No weight is moved.

        Raises ValueError where `spec` is not a slice of this encoder.
        """
        reason = spec.misfit(self.space.shape)
        if reason is not None:
            raise ValueError(f"not a subnet of this supernet: {reason}")
        self._active = spec

    @contextmanager
    def activated(self, spec: SubnetSpec) -> Iterator[None]:
        """Run `spec` inside the `with` block, then the former subnet again, even on an error."""
        former = self._active
        self.set_active_subnet(spec)
        try:
            yield
        finally:
            self._active = former

    def forward(self, images: Tensor, sizes: Tensor, points: Tensor, labels: Tensor) -> Prediction:
        """Predict the masks of every prompt by the active subnet; each image is encoded once.

        Args:
            images: (B, 3, S, S) uint8 RGB, padded right and below; S is the resolution of the
                active subnet (`resize_images`).
            sizes: (B, 2) int64, (height, width) inside the padding.
            points: (B, N, K, 2) float32, pixels (x, y) of the padded square.
            labels: (B, N, K) int64, LABEL_* of each point.
        """
        return self.predict(self.encode(images, sizes), points, labels)

    def begin(self, images: Tensor, sizes: Tensor, specs: Sequence[SubnetSpec]) -> SharedPrefix:
        """Compute the layers that all `specs` share, once; `forward_from` continues from there.

        images, sizes: as in `forward`; all `specs` have the same resolution.
        """
        layers = common_layers(specs)
        widest = max(specs, key=lambda spec: spec.embed_dim)
        x = self.image_encoder.embed(self.normalize(images, sizes), widest.embed_dim)
        end = self.image_encoder.run_layers(x, widest, last=layers)
        return SharedPrefix(layers, GraphCut.of(end))

    def forward_from(self, prefix: SharedPrefix, points: Tensor, labels: Tensor) -> Prediction:
        """`forward` of the active subnet, one of those that `prefix` was computed for."""
        return self.predict(self.encode_from(prefix), points, labels)

    def encode_from(self, prefix: SharedPrefix) -> Tensor:
        """`encode` by the active subnet, one of those that `prefix` was computed for."""
        x = prefix.stream[..., : self._active.embed_dim]
        x = self.image_encoder.run_layers(x, self._active, first=prefix.layers)
        return self.image_encoder.project(x)

    def predict(
        self, embedding: Tensor, points: Tensor, labels: Tensor, masks: Tensor | None = None
    ) -> Prediction:
        """Predict the masks of prompts on encoded images; see `decode`."""
        decoded, ious = self.decode(embedding, points, labels, masks)
        return Prediction(masks=decoded, ious=ious, embedding=embedding)

    def prepare_training(
        self, *, checkpoint_activations: bool, compiled: bool, backend: CompilerBackend = "inductor"
    ) -> None:
        """Choose how gradients are computed; results are the same but for rounding.

        compiled: the two halves of the encoder's layers and the mask decoder, one after another.
        """
        self.image_encoder.checkpointing = checkpoint_activations
        if compiled:
            space = self.space
            widths, heads = (len(set().union(*c)) + 1 for c in (space.mlp_widths, space.heads))
            shapes = max(widths, 2 * heads) * len({*space.embed_dims, space.shape.embed_dim})
            shapes *= len({*space.resolution_genes, None})
            self.image_encoder.training_halves = compile_halves(backend, limit=shapes)
            self._training_decode = torch.compile(decode_masks, backend=backend, dynamic=False)

    def encode(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Encode images by the active subnet: embeddings (B, 256, S / 16, S / 16).

        Raises ValueError where they are not of its resolution.
        """
        side = self.space.input_px(self._active)
        if images.shape[-1] != side:
            raise ValueError(
                f"images of {images.shape[-1]} px for a subnet of {side} px; scale them with "
                "resize_images"
            )
        embedding: Tensor = self.image_encoder(self.normalize(images, sizes), self._active)
        return embedding

    def decode(
        self, embedding: Tensor, points: Tensor, labels: Tensor, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decode mask logits (B, N, 4, s, s) and predicted IoUs (B, N, 4), both float32.

        points: pixels of the square of 16 g a side that the embedding (B, 256, g, g) is of. masks:
        (B, N, s, s) logits of former masks, which are then part of each prompt.
        """
        # Compiled, each number of clicks would be a graph of its own.
        compiled = torch.is_grad_enabled() and masks is None
        decoded, ious = (self._training_decode if compiled else decode_masks)(
            self.mask_decoder,
            self.prompt_encoder,
            embedding,
            self._prompt_tokens(points, labels, embedding.shape[-1]),
            masks=masks,
            kernels=self._decoder_kernels(embedding.device),
        )
        return decoded.float(), ious.float()

    def decode_single(self, embedding: Tensor, points: Tensor, labels: Tensor) -> Tensor:
        """Decode the single mask alone: (B, N, s, s) float32, as `decode` but for rounding.

        On a CPU it takes two thirds of that time, for a search over thousands of subnets.
        """
        masks = decode_single_masks(
            self.mask_decoder,
            self.prompt_encoder,
            embedding,
            self._prompt_tokens(points, labels, embedding.shape[-1]),
            kernels=FOLDED,
        )
        return masks.float()

    def _decoder_kernels(self, device: torch.device) -> DecoderKernels:
        if not self.image_encoder.is_exact(device):
            return FUSED
        return FOLDED if torch.is_grad_enabled() else EXACT

    def _prompt_tokens(self, points: Tensor, labels: Tensor, grid: int) -> Tensor:
        """(B, N, K, 256)."""
        tokens = embed_prompts(
            self.prompt_encoder,
            points.flatten(0, 1),
            labels.flatten(0, 1),
            side=grid * PATCH_PX,
        )
        return tokens.view(*points.shape[:2], *tokens.shape[1:])

    def normalize(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Normalise pixels: (B, 3, S, S) float32, zero in the padding as in segment-anything."""
        return normalize_images(images, sizes, mean=self.pixel_mean, std=self.pixel_std)


def normalize_images(images: Tensor, sizes: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise pixels: (B, 3, S, S) float32, zero in the padding as in segment-anything.

    images, sizes: as in `SamSupernet.forward`. mean, std: (3, 1, 1), as a `Sam` holds them.
    """
    pixels = (images - mean) / std
    position = torch.arange(images.shape[-1], device=images.device)
    inside = position < sizes[:, :, None]  # (B, 2, S): rows, columns
    return pixels * (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]
