"""A plain segment-anything model of any sizes. Needs torch and segment-anything, nothing else.

The rest of the package builds its models here too; an exported subnet is read where only this and
safetensors are there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from segment_anything.modeling.common import MLPBlock
from segment_anything.modeling.image_encoder import Attention
from torch import nn

NORM_EPS = 1e-6  # as segment-anything builds its encoders


@dataclass(frozen=True)
class LayerSizes:
    """One transformer layer of an image encoder."""

    mlp_width: int
    """MLP hidden units."""
    heads: int
    """Attention heads."""
    is_global: bool
    """Whether attention sees the whole image, or a window."""


@dataclass(frozen=True)
class SamSizes:
    """All that must be known, besides weights, to build a segment-anything model."""

    image_size: int
    """Side of the square input, pixels."""
    patch_px: int
    """Side of a patch, pixels."""
    window_size: int
    """Side of an attention window, patches."""
    embed_dim: int
    """Channels of the residual stream."""
    head_dim: int
    """Channels of one attention head."""
    neck_channels: int
    """Channels of the image embedding: the mask decoder's width."""
    layers: tuple[LayerSizes, ...]

    @property
    def grid(self) -> int:
        """Patches along one side of the input."""
        return self.image_size // self.patch_px

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SamSizes:
        """The inverse of `to_dict`. Raises KeyError or TypeError on anything else."""
        return cls(**{**values, "layers": tuple(LayerSizes(**each) for each in values["layers"])})


def build_plain_sam(sizes: SamSizes) -> Sam:
    """A `Sam` of `sizes`; weights are not initialised."""
    return Sam(
        build_encoder(sizes),
        build_prompt_encoder(sizes.image_size, sizes.grid, sizes.neck_channels),
        build_mask_decoder(sizes.neck_channels),
    )


def build_encoder(sizes: SamSizes) -> ImageEncoderViT:
    """segment-anything's image encoder with `sizes`; weights are not initialised."""
    encoder = ImageEncoderViT(
        img_size=sizes.image_size,
        patch_size=sizes.patch_px,
        embed_dim=sizes.embed_dim,
        depth=len(sizes.layers),
        num_heads=1,  # replaced below: segment-anything ties head size to the embedding width
        mlp_ratio=1.0,
        out_chans=sizes.neck_channels,
        norm_layer=partial(nn.LayerNorm, eps=NORM_EPS),
        window_size=sizes.window_size,
        global_attn_indexes=tuple(i for i, layer in enumerate(sizes.layers) if layer.is_global),
    )
    for block, layer in zip(encoder.blocks, sizes.layers, strict=True):
        block.mlp = MLPBlock(embedding_dim=sizes.embed_dim, mlp_dim=layer.mlp_width)
        _resize_attention(block.attn, layer, sizes)
    return encoder


def build_prompt_encoder(image_size: int, grid: int, channels: int) -> PromptEncoder:
    """SAM's prompt encoder for square images of `image_size` pixels, `grid` patches a side."""
    return PromptEncoder(
        embed_dim=channels,
        image_embedding_size=(grid, grid),
        input_image_size=(image_size, image_size),
        mask_in_chans=16,
    )


def build_mask_decoder(channels: int) -> MaskDecoder:
    """SAM's mask decoder; the same in every model."""
    return MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(depth=2, embedding_dim=channels, mlp_dim=2048, num_heads=8),
        transformer_dim=channels,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
    )


def _resize_attention(attention: Attention, layer: LayerSizes, sizes: SamSizes) -> None:
    inner, side = layer.heads * sizes.head_dim, sizes.grid if layer.is_global else sizes.window_size
    attention.num_heads = layer.heads
    attention.scale = sizes.head_dim**-0.5
    attention.qkv = nn.Linear(sizes.embed_dim, 3 * inner)
    attention.proj = nn.Linear(inner, sizes.embed_dim)
    attention.use_rel_pos = True
    attention.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, sizes.head_dim))
    attention.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, sizes.head_dim))
