"""A subnet as a plain segment-anything model with small weights of its own."""

from __future__ import annotations

import copy
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, Sam
from segment_anything.modeling.common import MLPBlock
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn

from supersam.model.elastic import NORM_EPS, ElasticBlock
from supersam.model.encoder import ElasticImageEncoder, qkv_first
from supersam.model.supernet import SamSupernet
from supersam.space import EncoderShape, SubnetSpec
from supersam.space.shape import NECK_CHANNELS, PATCH_PX


def extract_subnet(supernet: SamSupernet, spec: SubnetSpec) -> Sam:
    """The subnet `spec` as a segment-anything `Sam`, in evaluation mode.

    Its modules are segment-anything's own classes, so `SamPredictor` and
    `SamAutomaticMaskGenerator` accept it. The weights are copies. The largest subnet's state dict
    has the names and shapes of an official checkpoint.

    Raises ValueError where `spec` is not a slice of this supernet.
    """
    reason = spec.misfit(supernet.space.shape)
    if reason is not None:
        raise ValueError(f"not a subnet of this supernet: {reason}")
    encoder = build_encoder(spec, supernet.space.shape)
    encoder.load_state_dict(_encoder_state(supernet.image_encoder, spec))
    sam = Sam(encoder, copy.deepcopy(supernet.prompt_encoder), copy.deepcopy(supernet.mask_decoder))
    return sam.to(supernet.pixel_mean.device).requires_grad_(False).eval()


def build_encoder(spec: SubnetSpec, shape: EncoderShape) -> ImageEncoderViT:
    """segment-anything's image encoder with the sizes of `spec`; weights are not initialised."""
    encoder = ImageEncoderViT(
        img_size=shape.image_size,
        patch_size=PATCH_PX,
        embed_dim=spec.embed_dim,
        depth=len(spec.layers),
        num_heads=1,  # replaced below: segment-anything ties head size to the embedding width
        mlp_ratio=1.0,
        out_chans=NECK_CHANNELS,
        norm_layer=partial(nn.LayerNorm, eps=NORM_EPS),
        window_size=shape.window_size,
        global_attn_indexes=tuple(
            index for index, layer in enumerate(spec.layers) if layer in shape.global_layers
        ),
    )
    layers = zip(encoder.blocks, spec.layers, spec.mlp_widths, spec.heads, strict=True)
    for block, layer, width, heads in layers:
        block.mlp = MLPBlock(embedding_dim=spec.embed_dim, mlp_dim=width)
        _resize_attention(block.attn, heads, spec.embed_dim, layer=layer, shape=shape)
    return encoder


def _resize_attention(
    attention: Attention, heads: int, dim: int, *, layer: int, shape: EncoderShape
) -> None:
    inner, side = heads * shape.head_dim, shape.window_of(layer) or shape.grid
    attention.num_heads = heads
    attention.scale = shape.head_dim**-0.5
    attention.qkv = nn.Linear(dim, 3 * inner)
    attention.proj = nn.Linear(inner, dim)
    attention.use_rel_pos = True
    attention.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, shape.head_dim))
    attention.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, shape.head_dim))


def _encoder_state(encoder: ElasticImageEncoder, spec: SubnetSpec) -> dict[str, Tensor]:
    """The active slices under segment-anything's names."""
    dim, bias = spec.embed_dim, encoder.patch_embed.bias
    assert bias is not None  # segment-anything's patch embedding has one
    state = {
        "patch_embed.proj.weight": encoder.patch_embed.weight[:dim],
        "patch_embed.proj.bias": bias[:dim],
        "pos_embed": encoder.pos_embed[..., :dim],
        **{f"neck.{name}": tensor for name, tensor in encoder.neck.state_dict().items()},
    }
    state["neck.0.weight"] = state["neck.0.weight"][:, :dim]
    layers = zip(spec.layers, spec.mlp_widths, spec.heads, strict=True)
    for index, (layer, width, heads) in enumerate(layers):
        block = encoder.blocks[layer]
        assert isinstance(block, ElasticBlock)
        for name, tensor in _block_state(block, dim, width, heads).items():
            state[f"blocks.{index}.{name}"] = tensor
    return {name: tensor.detach() for name, tensor in state.items()}


def _block_state(block: ElasticBlock, dim: int, width: int, heads: int) -> dict[str, Tensor]:
    attention, mlp = block.attn, block.mlp
    inner = heads * attention.head_dim
    return {
        "norm1.weight": block.norm1.weight[:dim],
        "norm1.bias": block.norm1.bias[:dim],
        "norm2.weight": block.norm2.weight[:dim],
        "norm2.bias": block.norm2.bias[:dim],
        "attn.qkv.weight": qkv_first(attention.qkv.weight[: 3 * inner, :dim], heads),
        "attn.qkv.bias": qkv_first(attention.qkv.bias[: 3 * inner], heads),
        "attn.proj.weight": attention.proj.weight[:dim, :inner],
        "attn.proj.bias": attention.proj.bias[:dim],
        "attn.rel_pos_h": attention.rel_pos_h,
        "attn.rel_pos_w": attention.rel_pos_w,
        "mlp.lin1.weight": mlp.lin1.weight[:width, :dim],
        "mlp.lin1.bias": mlp.lin1.bias[:width],
        "mlp.lin2.weight": mlp.lin2.weight[:dim, :width],
        "mlp.lin2.bias": mlp.lin2.bias[:dim],
    }
