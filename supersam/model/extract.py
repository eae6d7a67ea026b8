"""A subnet as a plain segment-anything model with small weights of its own."""

from __future__ import annotations

import copy

from segment_anything.modeling import Sam
from torch import Tensor

from supersam.model.elastic import ElasticBlock
from supersam.model.encoder import ElasticImageEncoder, qkv_first
from supersam.model.supernet import SamSupernet
from supersam.space import EncoderShape, SubnetSpec
from supersam.space.shape import NECK_CHANNELS, PATCH_PX
from supersam.standalone import LayerSizes, SamSizes, build_encoder, build_prompt_encoder


def extract_subnet(supernet: SamSupernet, spec: SubnetSpec) -> Sam:
    """The subnet `spec` as a segment-anything `Sam`, in evaluation mode.

    Its modules are segment-anything's own classes, so `SamPredictor` and
    `SamAutomaticMaskGenerator` accept it. The weights are copies. The largest subnet's state dict
    has the names and shapes of an official checkpoint. At a smaller resolution positions are
    interpolated, and the model is one for images of that size.

    Raises ValueError where `spec` is not a slice of this supernet.
    """
    reason = spec.misfit(supernet.space.shape)
    if reason is not None:
        raise ValueError(f"not a subnet of this supernet: {reason}")
    sizes = sizes_of(spec, supernet.space.shape)
    encoder = build_encoder(sizes)
    encoder.load_state_dict(_encoder_state(supernet.image_encoder, spec, sizes.grid))
    prompts = build_prompt_encoder(sizes.image_size, sizes.grid, NECK_CHANNELS)
    prompts.load_state_dict(supernet.prompt_encoder.state_dict())
    sam = Sam(encoder, prompts, copy.deepcopy(supernet.mask_decoder))
    return sam.to(supernet.pixel_mean.device).requires_grad_(False).eval()


def sizes_of(spec: SubnetSpec, shape: EncoderShape) -> SamSizes:
    """The sizes of `spec`, a subnet of an encoder of `shape`, as a model of its own."""
    layers = zip(spec.layers, spec.mlp_widths, spec.heads, strict=True)
    return SamSizes(
        image_size=shape.at(spec.resolution).image_size,
        patch_px=PATCH_PX,
        window_size=shape.window_size,
        embed_dim=spec.embed_dim,
        head_dim=shape.head_dim,
        neck_channels=NECK_CHANNELS,
        layers=tuple(
            LayerSizes(width, heads, is_global=layer in shape.global_layers)
            for layer, width, heads in layers
        ),
    )


def _encoder_state(encoder: ElasticImageEncoder, spec: SubnetSpec, grid: int) -> dict[str, Tensor]:
    """The active slices under segment-anything's names, positions of `grid` patches a side."""
    dim, bias = spec.embed_dim, encoder.patch_embed.bias
    assert bias is not None  # segment-anything's patch embedding has one
    state = {
        "patch_embed.proj.weight": encoder.patch_embed.weight[:dim],
        "patch_embed.proj.bias": bias[:dim],
        "pos_embed": encoder.positions(grid, dim),
        **{f"neck.{name}": tensor for name, tensor in encoder.neck.state_dict().items()},
    }
    state["neck.0.weight"] = state["neck.0.weight"][:, :dim]
    layers = zip(spec.layers, spec.mlp_widths, spec.heads, strict=True)
    for index, (layer, width, heads) in enumerate(layers):
        block = encoder.blocks[layer]
        assert isinstance(block, ElasticBlock)
        for name, tensor in _block_state(block, dim, width, heads, grid).items():
            state[f"blocks.{index}.{name}"] = tensor
    return {name: tensor.detach() for name, tensor in state.items()}


def _block_state(
    block: ElasticBlock, dim: int, width: int, heads: int, grid: int
) -> dict[str, Tensor]:
    attention, mlp = block.attn, block.mlp
    vertical, horizontal = attention.relative_positions(grid)
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
        "attn.rel_pos_h": vertical,
        "attn.rel_pos_w": horizontal,
        "mlp.lin1.weight": mlp.lin1.weight[:width, :dim],
        "mlp.lin1.bias": mlp.lin1.bias[:width],
        "mlp.lin2.weight": mlp.lin2.weight[:dim, :width],
        "mlp.lin2.bias": mlp.lin2.bias[:dim],
    }
