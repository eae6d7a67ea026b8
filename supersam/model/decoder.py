"""SAM's prompt encoder and mask decoder over a batch of images at once.

segment-anything decodes one image per call. Here the prompts of all images go through the
decoder in one batch; the modules and the results are segment-anything's own (tested).
"""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder
from torch import Tensor

from supersam.data.sample import LABEL_PAD


def embed_prompts(encoder: PromptEncoder, points: Tensor, labels: Tensor) -> Tensor:
    """Prompt tokens of point and box prompts mixed in one batch.

    Args:
        encoder: SAM's prompt encoder.
        points: (P, K, 2) float32, pixels (x, y) of the padded square.
        labels: (P, K) int64, LABEL_* of each point, as in segment-anything's ONNX export.

    Returns:
        (P, K, 256) float32.
    """
    table = torch.cat(
        [encoder.not_a_point_embed.weight] + [e.weight for e in encoder.point_embeddings]
    )
    position: Tensor = encoder.pe_layer.forward_with_coords(points + 0.5, encoder.input_image_size)
    position = position.masked_fill((labels == LABEL_PAD)[..., None], 0.0)
    return position + table[labels + 1]


def decode_masks(
    decoder: MaskDecoder, encoder: PromptEncoder, embedding: Tensor, prompts: Tensor
) -> tuple[Tensor, Tensor]:
    """Masks of N prompts on each of B images.

    Args:
        decoder: SAM's mask decoder.
        encoder: SAM's prompt encoder, for the position encoding and the no-mask embedding.
        embedding: (B, 256, g, g) image embeddings.
        prompts: (B, N, K, 256) prompt tokens.

    Returns:
        Mask logits (B, N, 4, 4g, 4g), the single mask first, and predicted IoUs (B, N, 4).
    """
    batch, count = prompts.shape[:2]
    pairs = batch * count
    output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output.expand(pairs, -1, -1), prompts.flatten(0, 1)], dim=1)
    image = embedding + encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    image = image.repeat_interleave(count, dim=0)
    position = encoder.get_dense_pe().expand(pairs, -1, -1, -1)

    seen, image_tokens = decoder.transformer(image, position, tokens)
    masks_out = seen[:, 1 : 1 + decoder.num_mask_tokens]
    upscaled = decoder.output_upscaling(image_tokens.transpose(1, 2).view_as(image))
    weights = torch.stack(
        [mlp(masks_out[:, i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1
    )
    masks = weights @ upscaled.flatten(2)
    ious = decoder.iou_prediction_head(seen[:, 0])
    return masks.view(batch, count, -1, *upscaled.shape[2:]), ious.view(batch, count, -1)
