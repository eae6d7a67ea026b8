"""Parameters and FLOPs of a subnet in closed form. FLOPs = 2 x multiply-adds of matrix products.

The counts equal PyTorch's FlopCounterMode on the extracted subnet, digit by digit (tested).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from supersam.space.shape import NECK_CHANNELS, PATCH_PX, EncoderShape
from supersam.space.spec import SubnetSpec

PROMPT_TOKENS = 2
"""A point with its padding, or the two corners of a box."""
_OUTPUT_TOKENS = 5  # one IoU token and four mask tokens
_PROMPT_ENCODER_PARAMS = 6_220
_MASK_DECODER_PARAMS = 4_058_340


@dataclass(frozen=True)
class SubnetCost:
    """Parameters and FLOPs of a subnet, per image."""

    encoder_params: int
    """Weights of the image encoder."""
    params: int
    """Weights of the whole model: image encoder, prompt encoder and mask decoder."""
    encoder_flops: int
    """FLOPs to encode one image."""
    prompt_flops: int
    """FLOPs to decode one prompt on an encoded image; the same in every subnet of a resolution."""

    @property
    def params_m(self) -> float:
        """Weights of the whole model, millions."""
        return self.params / 1e6

    @property
    def flops_g(self) -> float:
        """FLOPs to encode one image and decode one prompt, in units of 1e9."""
        return (self.encoder_flops + self.prompt_flops) / 1e9


def subnet_cost(spec: SubnetSpec, shape: EncoderShape) -> SubnetCost:
    """Count parameters and FLOPs of `spec`, a subnet of an encoder of `shape`.

    At a smaller resolution the tables of positions are smaller too, and so are the parameters.
    """
    shape = shape.at(spec.resolution)
    params = _patch_and_neck_params(spec.embed_dim, shape)
    flops = _patch_and_neck_flops(spec.embed_dim, shape)
    for layer, width, heads in zip(spec.layers, spec.mlp_widths, spec.heads, strict=True):
        params += _layer_params(layer, width, heads, spec.embed_dim, shape)
        flops += _layer_flops(layer, width, heads, spec.embed_dim, shape)
    return SubnetCost(
        encoder_params=params,
        params=params + _PROMPT_ENCODER_PARAMS + _MASK_DECODER_PARAMS,
        encoder_flops=flops,
        prompt_flops=_prompt_flops(shape.grid),
    )


def _patch_and_neck_params(dim: int, shape: EncoderShape) -> int:
    patch_embed = 3 * PATCH_PX**2 * dim + dim
    position = shape.grid**2 * dim
    norms = 2 * 2 * NECK_CHANNELS
    neck = dim * NECK_CHANNELS + 9 * NECK_CHANNELS**2 + norms
    return patch_embed + position + neck


def _patch_and_neck_flops(dim: int, shape: EncoderShape) -> int:
    patch_embed = 3 * PATCH_PX**2 * dim
    neck = dim * NECK_CHANNELS + 9 * NECK_CHANNELS**2
    return 2 * shape.grid**2 * (patch_embed + neck)


def _layer_params(layer: int, width: int, heads: int, dim: int, shape: EncoderShape) -> int:
    inner = heads * shape.head_dim
    attention = (dim + 1) * 3 * inner + (inner + 1) * dim
    side = shape.window_of(layer) or shape.grid
    rel_pos = 2 * (2 * side - 1) * shape.head_dim
    mlp = (dim + 1) * width + (width + 1) * dim
    norms = 2 * 2 * dim
    return attention + rel_pos + mlp + norms


def _layer_flops(layer: int, width: int, heads: int, dim: int, shape: EncoderShape) -> int:
    side = shape.window_of(layer) or shape.grid
    windows = math.ceil(shape.grid / side) ** 2
    seen = side**2  # tokens that attend to each other, padding included
    inner = heads * shape.head_dim
    projections = windows * seen * 4 * dim * inner
    attention = windows * seen * seen * 2 * inner
    rel_pos = windows * seen * 2 * side * inner
    mlp = shape.grid**2 * 2 * dim * width
    return 2 * (projections + attention + rel_pos + mlp)


def _prompt_flops(grid: int) -> int:
    """Count the FLOPs of SAM's mask decoder per prompt: two layers, upscaling, four masks."""
    tokens, pixels = _OUTPUT_TOKENS + PROMPT_TOKENS, grid**2
    full, half, mlp = NECK_CHANNELS, NECK_CHANNELS // 2, 2048

    def attend(queries: int, keys: int, inner: int) -> int:
        projections = 2 * (queries + keys) * full * inner
        return projections + 2 * queries * keys * inner

    layer = (
        attend(tokens, tokens, full)
        + attend(tokens, pixels, half)
        + attend(pixels, tokens, half)
        + 2 * tokens * full * mlp
    )
    transformer = 2 * layer + attend(tokens, pixels, half)
    upscaling = pixels * 4 * full * 64 + 4 * pixels * 4 * 64 * 32
    hypernetworks = 4 * (2 * full * full + full * 32)
    masks = 4 * 32 * 16 * pixels
    iou_head = 2 * full * full + full * 4
    return 2 * (transformer + upscaling + hypernetworks + masks + iou_head)
