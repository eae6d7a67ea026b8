"""Random weights that a Segment Anything model can be trained from, without a checkpoint.

segment-anything's constructors leave weights for a checkpoint to fill. From those, nothing tells
the mask decoder where a prompt is: the loss rests on a plateau for hundreds of steps, until the
cross-attentions have found that queries and keys carry the same position code. Here they start
with that knowledge, and the plateau is gone (docs/results.md).
"""

from __future__ import annotations

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn

_STD = 0.02
_TOKEN_STD = 0.3  # a position code has a standard deviation of 0.7: tokens must not drown it
_LOCALITY = 1.5
_PASS_ON = 0.7


def initialize(sam: Sam) -> None:
    """Draw all weights that matter anew, from torch's global random state."""
    with torch.no_grad():
        _initialize_encoder(sam.image_encoder)
        _initialize_tokens(sam.prompt_encoder, sam.mask_decoder)
        _initialize_decoder(sam.prompt_encoder, sam.mask_decoder)


def _initialize_encoder(encoder: ImageEncoderViT) -> None:
    nn.init.trunc_normal_(encoder.pos_embed, std=_STD)  # zero from the constructor
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=_STD)
            nn.init.zeros_(module.bias)


def _initialize_tokens(prompts: PromptEncoder, decoder: MaskDecoder) -> None:
    embeddings = (prompts.not_a_point_embed, prompts.no_mask_embed, *prompts.point_embeddings)
    for embedding in (*embeddings, decoder.iou_token, decoder.mask_tokens):
        nn.init.normal_(embedding.weight, std=_TOKEN_STD)


def _initialize_decoder(prompts: PromptEncoder, decoder: MaskDecoder) -> None:
    transformer = decoder.transformer
    first, *_ = transformer.layers
    # Mask tokens take over the prompt's position in the first self-attention.
    _near_identity(first.self_attn.v_proj, _PASS_ON)
    _near_identity(first.self_attn.out_proj, 1.0)
    crossings = [
        attention
        for layer in transformer.layers
        for attention in (layer.cross_attn_token_to_image, layer.cross_attn_image_to_token)
    ]
    frequencies = prompts.pe_layer.positional_encoding_gaussian_matrix
    broad_to_narrow = frequencies.norm(dim=0).argsort()
    for index, attention in enumerate((*crossings, transformer.final_attn_token_to_image)):
        _attend_to_same_place(attention, broad_to_narrow[index % 2 :: 2])


def _attend_to_same_place(attention: Attention, frequencies: Tensor) -> None:
    """Queries and keys read the same frequencies of the position code.

    Their product then peaks where the positions agree: cos(a - b) = cos a cos b + sin a sin b.
    Heads go from broad to narrow with the frequencies.
    """
    inner, channels = attention.q_proj.weight.shape
    per_head = inner // attention.num_heads // 2
    select = torch.zeros(inner, channels)
    for head in range(attention.num_heads):
        chosen = frequencies[head * per_head : (head + 1) * per_head]
        rows = head * 2 * per_head + torch.arange(len(chosen))
        select[rows, chosen] = _LOCALITY  # the code's first half are sines, its second cosines
        select[rows + per_head, channels // 2 + chosen] = _LOCALITY
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.copy_(select + _STD * torch.randn_like(select))
        projection.bias.zero_()


def _near_identity(linear: nn.Linear, scale: float) -> None:
    eye = torch.eye(*linear.weight.shape)
    linear.weight.copy_(scale * eye + _STD * torch.randn_like(eye))
