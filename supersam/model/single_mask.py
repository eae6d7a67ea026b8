"""SAM's single mask alone, for a search: the decoder with its projections folded onto the tokens.

A prompt has a handful of tokens and an image hundreds or thousands. segment-anything projects
every token of the image to keys, values and queries, again for each prompt; here the few tokens are
brought to the image's channels instead, which is the same sum in another order (tested):

    (q W_q) . (x W_k) = ((q W_q) W_k^T) . x        sum_n w_n (x_n W_v) = (sum_n w_n x_n) W_v

Biases of keys fall out of a softmax over the keys; those of values pass through, as its weights add
up to one. Of the other masks and of the estimate of their quality nothing is computed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn

from supersam.model.decoder import attend, cells_in_order, exact_mix, upscale

_SINGLE = 1
"""Place of the single mask's token, after that of the quality."""


def decode_single_masks(
    decoder: MaskDecoder, encoder: PromptEncoder, embedding: Tensor, prompts: Tensor
) -> Tensor:
    """The single mask of N prompts on each of B images.

    Args:
        decoder: SAM's mask decoder.
        encoder: SAM's prompt encoder, for the position encoding and the no-mask embedding.
        embedding: (B, 256, g, g) image embeddings.
        prompts: (B, N, K, 256) prompt tokens.

    Returns:
        Mask logits (B, N, 4g, 4g).
    """
    batch, count = prompts.shape[:2]
    grid = embedding.shape[-1]
    output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output.expand(batch * count, -1, -1), prompts.flatten(0, 1)], dim=1)
    image = embedding + encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    with torch.autocast(embedding.device.type, enabled=False):
        position = encoder.get_dense_pe()
    image, position = (x.flatten(2).mT for x in (image, position))  # (B or 1, g * g, 256)

    transformer = decoder.transformer
    queries = tokens
    for layer in transformer.layers:
        queries, image = _two_way(layer, queries, image, tokens, position)
    final = transformer.final_attn_token_to_image
    one, its_token = (x[:, _SINGLE, None] for x in (queries, tokens))
    one = one + _tokens_from_image(final, one + its_token, image + position, image)
    one = transformer.norm_final_attn(one)

    weights = decoder.output_hypernetworks_mlps[0](one)  # (B * N, 1, 32)
    masks = weights @ upscale(decoder.output_upscaling, image).mT
    return cells_in_order(masks, grid).view(batch, count, 4 * grid, 4 * grid)


def _two_way(
    layer: TwoWayAttentionBlock, queries: Tensor, image: Tensor, tokens: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """`layer.forward`. image: (B, n, C) before the first layer, (B * N, n, C) after it."""
    if layer.skip_first_layer_pe:
        queries = attend(layer.self_attn, queries, queries, queries, exact_mix)
    else:
        placed = queries + tokens
        queries = queries + attend(layer.self_attn, placed, placed, queries, exact_mix)
    queries = layer.norm1(queries)
    placed_image = image + position
    to_image, to_tokens = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
    queries = queries + _tokens_from_image(to_image, queries + tokens, placed_image, image)
    queries = layer.norm2(queries)
    queries = layer.norm3(queries + layer.mlp(queries))
    image = _image_from_tokens(to_tokens, image, placed_image, queries + tokens, queries)
    return queries, layer.norm4(image)


def _tokens_from_image(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attention.forward` where few tokens ask and the image answers.

    q: (P, t, C). k, v: (R, n, C), R images for P prompts. Returns (P, t, C).
    """
    asked = _into(attention.k_proj, _heads(attention, attention.q_proj(q)), len(k))
    weights = (asked @ k.mT).softmax(dim=-1)
    seen = (weights @ v).view(len(q), attention.num_heads, -1, v.shape[-1])  # (P, h, t, C)
    values = seen @ _by_head(attention.v_proj.weight, attention.num_heads).mT
    values = values.transpose(1, 2).flatten(2) + attention.v_proj.bias
    return F.linear(values, attention.out_proj.weight, attention.out_proj.bias)


def _image_from_tokens(
    attention: Attention, image: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """`image` plus `attention.forward` where the image asks and few tokens answer.

    image, q: (R, n, C), R images for P prompts. k, v: (P, t, C). Returns (P, n, C).
    """
    keys = _heads(attention, attention.k_proj(k))  # (P, h, t, d)
    bias = attention.q_proj.bias.view(attention.num_heads, 1, -1)
    offset = (keys * bias).sum(-1).flatten(1)[..., None]  # (P, h * t, 1)
    asked = _into(attention.q_proj, keys, len(q))
    scores = (asked @ q.mT).view(len(k), -1, q.shape[1]) + offset
    # The image's tokens stay last: over the short last dimension a softmax takes 13 times as long.
    weights = scores.view(*keys.shape[:3], -1).softmax(dim=-2).flatten(1, 2)
    heads = attention.num_heads
    values = attention.v_proj(v).view(*v.shape[:2], heads, -1).transpose(1, 2)
    # The weights of a head add up to one, so each may bring its share of the bias.
    bias = attention.out_proj.bias / heads
    answers = values @ _by_head(attention.out_proj.weight.T, heads) + bias  # (P, h, t, C)
    seen = weights.mT @ answers.flatten(1, 2)  # (P, n, C)
    added: Tensor = image[:, None] + seen.view(len(image), -1, *seen.shape[1:])
    return added.flatten(0, 1)


def _heads(attention: Attention, x: Tensor) -> Tensor:
    """(P, t, h * d) to (P, h, t, d), scaled as the scores of attention are."""
    by_head: Tensor = x.view(*x.shape[:2], attention.num_heads, -1).transpose(1, 2)
    return by_head / math.sqrt(by_head.shape[-1])


def _into(projection: nn.Linear, x: Tensor, images: int) -> Tensor:
    """What `projection`'s input is asked for: (P, h, t, d) to (images, P / images * h * t, C)."""
    asked: Tensor = x @ _by_head(projection.weight, x.shape[1])
    return asked.reshape(images, -1, asked.shape[-1])


def _by_head(weight: Tensor, heads: int) -> Tensor:
    """(h * d, C) to (h, d, C)."""
    return weight.view(heads, -1, weight.shape[-1])
