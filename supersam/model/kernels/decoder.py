"""The operations of SAM's mask decoder on images, three ways: exact, fused, folded.

A prompt has a handful of tokens and an image hundreds or thousands, so the decoder's time goes into
what is done to each token of the image. segment-anything projects it to queries, keys and values
for each prompt. Folded, the few tokens are brought to the image's channels instead, which is the
same sum in another order:

    (q W_q) . (x W_k) = ((q W_q) W_k^T) . x        sum_n w_n (x_n W_v) = (sum_n w_n x_n) W_v

and the bias of the values passes through, as the weights of a softmax add up to one.

Letters: P prompts on R images (each image's prompts together, or R = P); t tokens of a prompt, n of
an image; C channels, in an attention h heads of d.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn

AttentionCore = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys, values (P, h, n, d) -> mixed values, like the queries."""


@dataclass(frozen=True)
class DecoderKernels:
    """The operations of the decoder on the tokens of an image."""

    keep: Callable[[Tensor], Tensor]
    """Converts the tokens or positions of an image between two operations."""
    mix: AttentionCore
    """Attention among the tokens of a prompt."""
    tokens_from_image: Callable[[Attention, Tensor, Tensor, Tensor], Tensor]
    """(attention, q, k, v) -> (P, t, C): `attention.forward` where few tokens ask and the image
    answers. q: (P, t, C). k, v: (R, n, C)."""
    image_from_tokens: Callable[[Attention, Tensor, Tensor, Tensor, Tensor], Tensor]
    """(attention, image, q, k, v) -> (P, n, C): `image` plus `attention.forward` where the image
    asks and few tokens answer. image, q: (R, n, C). k, v: (P, t, C)."""
    draw: Callable[[nn.Sequential, Tensor, Tensor], Tensor]
    """(upscaling layers, image, weights) -> (P, M, 4 * g, 4 * g) logits of masks. image:
    (P, g * g, C). weights: (P, M, C / 8), one vector a mask."""


def attend(attention: Attention, q: Tensor, k: Tensor, v: Tensor, *, mix: AttentionCore) -> Tensor:
    """`attention.forward` where some of q, k, v are given once for several rows of the others."""
    rows = max(len(q), len(k))
    projected = (attention.q_proj(q), attention.k_proj(k), attention.v_proj(v))
    q, k, v = (_repeated(_split_heads(attention, x), rows) for x in projected)
    seen: Tensor = attention.out_proj(mix(q, k, v).transpose(1, 2).flatten(2))
    return seen


def _attended(
    attention: Attention, image: Tensor, q: Tensor, k: Tensor, v: Tensor, *, mix: AttentionCore
) -> Tensor:
    return _repeated(image, len(k)) + attend(attention, q, k, v, mix=mix)


def _as_they_are(x: Tensor) -> Tensor:
    return x


def _as_computed(x: Tensor) -> Tensor:
    """In the type that autocast computes in.

    What follows is a matrix product, which rounds anyway. Norms give float32: of 16 images with 8
    prompts the tokens between two layers are half a gigabyte of it.
    """
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _exact_mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v


def _exact_draw(layers: nn.Sequential, image: Tensor, weights: Tensor) -> Tensor:
    grid = math.isqrt(image.shape[1])
    upscaled = layers(image.mT.view(len(image), -1, grid, grid))
    masks: Tensor = weights @ upscaled.flatten(2)
    return masks.view(*masks.shape[:2], *upscaled.shape[2:])


def _draw(layers: nn.Sequential, image: Tensor, weights: Tensor) -> Tensor:
    # This way round the cells' gradient comes with the channels last, as GELU's kernels want it.
    masks = (_upscale(layers, image) @ weights.mT).mT
    return _in_order(masks, math.isqrt(image.shape[1]))


def _upscale(layers: nn.Sequential, image: Tensor) -> Tensor:
    """What `layers` make of (P, g * g, C): (P, 16 * g * g, C / 8); see `_in_order`.

    A transposed convolution whose stride is its kernel's size makes four cells of each token by
    four matrices. Here the channels stay last, where matrix products and norms want them, and the
    cells keep the order in which they arise.
    """
    first, norm, _, second, _ = layers  # segment-anything's have GELU between them
    assert isinstance(first, nn.ConvTranspose2d)
    assert isinstance(second, nn.ConvTranspose2d)
    assert isinstance(norm, LayerNorm2d)
    x = _four_cells(first, image)
    x = F.gelu(_as_computed(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)))
    return F.gelu(_four_cells(second, x))


def _four_cells(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """`layer` with kernel and stride 2 on (P, n, c) channels. Returns (P, 4 * n, c')."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
    assert layer.bias is not None  # segment-anything's have one
    cells = F.linear(x, weight, layer.bias.repeat(4))
    return cells.reshape(len(x), -1, layer.out_channels)


def _in_order(masks: Tensor, grid: int) -> Tensor:
    """(P, M, 16 * g * g) cells as `_upscale` makes them to (P, M, 4g, 4g)."""
    pairs, count = masks.shape[:2]
    cells = masks.view(pairs, count, grid, grid, 2, 2, 2, 2)  # row, column; of a token, of a cell
    ordered = cells.permute(0, 1, 2, 4, 6, 3, 5, 7)
    return ordered.reshape(pairs, count, 4 * grid, 4 * grid)


def _folded_tokens_from_image(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    asked = _split_heads(attention, attention.q_proj(q))
    weights = _scores(asked, attention.k_proj, k).softmax(dim=-1)  # (P, h, t, n)
    seen = weights.reshape(len(v), -1, weights.shape[-1]) @ v
    values = seen.view(*weights.shape[:3], -1) @ _of_heads(attention, attention.v_proj.weight).mT
    values = values.transpose(1, 2).flatten(2) + attention.v_proj.bias
    return F.linear(values, attention.out_proj.weight, attention.out_proj.bias)


def _folded_image_from_tokens(
    attention: Attention, image: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    keys = _split_heads(attention, attention.k_proj(k))
    # The image's tokens stay last: over a short last dimension a softmax takes 13 times as long.
    weights = _scores(keys, attention.q_proj, q).softmax(dim=-2)  # (P, h, t, n)
    values = _split_heads(attention, attention.v_proj(v))
    # The weights of a head add up to one, so each may bring its share of the bias.
    bias = attention.out_proj.bias / attention.num_heads
    answers = values @ _of_heads(attention, attention.out_proj.weight.T) + bias  # (P, h, t, C)
    seen = weights.flatten(1, 2).mT @ answers.flatten(1, 2)  # (P, n, C)
    added: Tensor = image[:, None] + seen.view(len(image), -1, *seen.shape[1:])
    return added.flatten(0, 1)


def _scores(x: Tensor, projection: nn.Linear, image: Tensor) -> Tensor:
    """Scaled products of (P, h, t, d) with what `projection` makes of an image: (P, h, t, n)."""
    x = x / math.sqrt(x.shape[-1])
    heads = x.shape[1]
    asked = x @ projection.weight.view(heads, -1, image.shape[-1])  # (P, h, t, C)
    offset = x @ projection.bias.view(heads, -1, 1)
    scores = asked.reshape(len(image), -1, image.shape[-1]) @ image.mT
    return scores.view(*x.shape[:3], -1) + offset


def _split_heads(attention: Attention, x: Tensor) -> Tensor:
    """(P, t, h * d) to (P, h, t, d)."""
    return x.view(*x.shape[:2], attention.num_heads, -1).transpose(1, 2)


def _of_heads(attention: Attention, weight: Tensor) -> Tensor:
    """(h * d, C) to (h, d, C)."""
    return weight.view(attention.num_heads, -1, weight.shape[-1])


def _repeated(x: Tensor, rows: int) -> Tensor:
    """Each row of `x` as often as it takes to make `rows` of them."""
    return x if len(x) == rows else x.repeat_interleave(rows // len(x), dim=0)


EXACT = DecoderKernels(
    keep=_as_they_are,
    mix=_exact_mix,
    tokens_from_image=partial(attend, mix=_exact_mix),
    image_from_tokens=partial(_attended, mix=_exact_mix),
    draw=_exact_draw,
)
"""segment-anything's own sequence of operations, bit for bit."""

FUSED = DecoderKernels(
    keep=_as_computed,
    mix=F.scaled_dot_product_attention,
    tokens_from_image=partial(attend, mix=F.scaled_dot_product_attention),
    image_from_tokens=partial(_attended, mix=F.scaled_dot_product_attention),
    draw=_draw,
)
"""Fast on a GPU: PyTorch's fused attention, upscaling as matrix products."""

FOLDED = DecoderKernels(
    keep=_as_computed,
    mix=_exact_mix,
    tokens_from_image=_folded_tokens_from_image,
    image_from_tokens=_folded_image_from_tokens,
    draw=_draw,
)
"""Fast on a CPU, with less than half of the attention's products."""
