"""SAM's prompt encoder and mask decoder over a batch of images at once.

segment-anything decodes one image per call. Here the prompts of all images pass the decoder in one
batch, and what the first layer computes from an image alone is computed once for all its prompts.
The modules are segment-anything's own, and so are the results (tested): bit for bit with the
kernels `EXACT`, except for rounding with the others. Positions are always encoded in float32: a
bfloat16 cannot tell neighbouring pixels of 1024 apart.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.modeling.transformer import TwoWayAttentionBlock
from torch import Tensor

from supersam.data.sample import LABEL_PAD
from supersam.model.kernels.decoder import EXACT, DecoderKernels, attend

_SINGLE = 1
"""Place of the single mask's token, after that of the quality."""


def embed_prompts(
    encoder: PromptEncoder, points: Tensor, labels: Tensor, *, side: int | None = None
) -> Tensor:
    """Embed point and box prompts, mixed in one batch, as tokens.

    Args:
        encoder: SAM's prompt encoder.
        points: (P, K, 2) float32, pixels (x, y) of the padded square.
        labels: (P, K) int64, LABEL_* of each point, as in segment-anything's ONNX export.
        side: of that square, pixels; None is the one that the encoder was made for.

    Returns:
        (P, K, 256) float32.
    """
    table = torch.cat(
        [encoder.not_a_point_embed.weight] + [e.weight for e in encoder.point_embeddings]
    )
    with torch.autocast(points.device.type, enabled=False):
        square = encoder.input_image_size if side is None else (side, side)
        position: Tensor = encoder.pe_layer.forward_with_coords(points + 0.5, square)
    position = position.masked_fill((labels == LABEL_PAD)[..., None], 0.0)
    return position + table[labels + 1]


def decode_masks(
    decoder: MaskDecoder,
    encoder: PromptEncoder,
    embedding: Tensor,
    prompts: Tensor,
    *,
    masks: Tensor | None = None,
    kernels: DecoderKernels = EXACT,
) -> tuple[Tensor, Tensor]:
    """Decode the masks of N prompts on each of B images.

    Args:
        decoder: SAM's mask decoder.
        encoder: SAM's prompt encoder, for the position encoding and the no-mask embedding.
        embedding: (B, 256, g, g) image embeddings.
        prompts: (B, N, K, 256) prompt tokens.
        masks: (B, N, 4g, 4g) logits that are part of each prompt; None without.
        kernels: how it is computed.

    Returns:
        Mask logits (B, N, 4, 4g, 4g), the single mask first, and predicted IoUs (B, N, 4).
    """
    shown = _shown(encoder, embedding, masks)
    tokens, queries, image, position = _transform(decoder, encoder, shown, prompts, kernels)
    final = decoder.transformer.final_attn_token_to_image
    queries = queries + kernels.tokens_from_image(final, queries + tokens, image + position, image)
    seen = decoder.transformer.norm_final_attn(queries)
    weights = torch.stack(
        [mlp(seen[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
    )
    decoded = kernels.draw(decoder.output_upscaling, image, weights)
    ious = decoder.iou_prediction_head(seen[:, 0])
    each = prompts.shape[:2]
    return decoded.view(*each, *decoded.shape[1:]), ious.view(*each, -1)


def decode_single_masks(
    decoder: MaskDecoder,
    encoder: PromptEncoder,
    embedding: Tensor,
    prompts: Tensor,
    *,
    kernels: DecoderKernels,
) -> Tensor:
    """Decode the single masks alone: logits (B, N, 4g, 4g); see `decode_masks`.

    The other masks and the IoU estimates are not computed.
    """
    shown = _shown(encoder, embedding, None)
    tokens, queries, image, position = _transform(decoder, encoder, shown, prompts, kernels)
    one, its_token = (x[:, _SINGLE, None] for x in (queries, tokens))
    final = decoder.transformer.final_attn_token_to_image
    one = one + kernels.tokens_from_image(final, one + its_token, image + position, image)
    weights = decoder.output_hypernetworks_mlps[0](decoder.transformer.norm_final_attn(one))
    masks = kernels.draw(decoder.output_upscaling, image, weights)
    return masks.view(*prompts.shape[:2], *masks.shape[2:])


def _shown(encoder: PromptEncoder, embedding: Tensor, masks: Tensor | None) -> Tensor:
    """The images as prompts show them: (B, 256, g, g), or with masks (B * N, 256, g, g)."""
    if masks is None:
        without: Tensor = encoder.no_mask_embed.weight
        return embedding + without.reshape(1, -1, 1, 1)
    of_masks: Tensor = encoder.mask_downscaling(masks.flatten(0, 1)[:, None])
    return embedding.repeat_interleave(masks.shape[1], dim=0) + of_masks


def _transform(
    decoder: MaskDecoder,
    encoder: PromptEncoder,
    image: Tensor,
    prompts: Tensor,
    kernels: DecoderKernels,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The layers of `decoder.transformer` for several prompts on each image.

    image: what `_shown` returns. Returns the tokens that went in and that came out, (B * N, t, C),
    those of an image together; the image's tokens, (B * N, g * g, C); and its positions, (1, g * g,
    C).
    """
    pairs = prompts.shape[0] * prompts.shape[1]
    output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output.expand(pairs, -1, -1), prompts.flatten(0, 1)], dim=1)
    with torch.autocast(image.device.type, enabled=False):
        position = encoder.pe_layer(image.shape[-2:])[None]  # `get_dense_pe` at this grid
    image, position = (kernels.keep(x.flatten(2).permute(0, 2, 1)) for x in (image, position))
    queries = tokens
    for layer in decoder.transformer.layers:
        queries, image = _two_way(layer, queries, image, tokens, position, kernels)
    return tokens, queries, image, position


def _two_way(
    layer: TwoWayAttentionBlock,
    queries: Tensor,
    image: Tensor,
    tokens: Tensor,
    position: Tensor,
    kernels: DecoderKernels,
) -> tuple[Tensor, Tensor]:
    """`layer.forward`. image: (B, g * g, C) before the first layer, (B * N, g * g, C) after."""
    if layer.skip_first_layer_pe:
        queries = attend(layer.self_attn, queries, queries, queries, mix=kernels.mix)
    else:
        placed = queries + tokens
        queries = queries + attend(layer.self_attn, placed, placed, queries, mix=kernels.mix)
    queries = layer.norm1(queries)
    placed_image = image + position
    to_image, to_tokens = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
    queries = queries + kernels.tokens_from_image(to_image, queries + tokens, placed_image, image)
    queries = layer.norm2(queries)
    queries = layer.norm3(queries + layer.mlp(queries))
    image = kernels.image_from_tokens(to_tokens, image, placed_image, queries + tokens, queries)
    return queries, kernels.keep(layer.norm4(image))
