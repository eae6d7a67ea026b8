"""segment-anything models of any size, with random weights or those of a checkpoint file."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT, Sam
from torch import Tensor, nn

from supersam.config import UserError
from supersam.model.checkpoint_file import read_checkpoint
from supersam.model.initialize import initialize
from supersam.model.input_size import fit_positions
from supersam.space import SHAPES, EncoderShape
from supersam.space.shape import NECK_CHANNELS, PATCH_PX
from supersam.standalone import NORM_EPS, build_mask_decoder, build_prompt_encoder

_MAX_NAMES_SHOWN = 6


def load_sam(model: str | EncoderShape, checkpoint: Path | None = None, *, seed: int = 0) -> Sam:
    """A segment-anything model in evaluation mode.

    Args:
        model: a name in `SHAPES` (vit_t, vit_s, vit_b, vit_l, vit_h) or the sizes themselves.
        checkpoint: weights as `read_checkpoint` reads them, of any input size (`fit_positions`);
            None draws random ones.
        seed: seeds the random weights; the global random state is left alone.

    Raises:
        UserError: the name is unknown, or the file is damaged or of another model.
    """
    if isinstance(model, str):
        if model not in SHAPES:
            raise UserError(f"model {model!r} is not one of {', '.join(SHAPES)}")
        model = SHAPES[model]
    state = None if checkpoint is None else read_checkpoint(checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sam = build_sam(model)
        if state is None:
            initialize(sam)
    if state is not None:
        sam.load_state_dict(_fitted(sam, model, state, checkpoint))
    return sam.eval()


def build_sam(shape: EncoderShape) -> Sam:
    """A Sam of `shape` with the weights that segment-anything's constructors leave."""
    encoder = ImageEncoderViT(
        img_size=shape.image_size,
        patch_size=PATCH_PX,
        embed_dim=shape.embed_dim,
        depth=shape.depth,
        num_heads=shape.num_heads,
        mlp_ratio=shape.mlp_ratio,
        out_chans=NECK_CHANNELS,
        norm_layer=partial(nn.LayerNorm, eps=NORM_EPS),
        use_rel_pos=True,
        window_size=shape.window_size,
        global_attn_indexes=shape.global_layers,
    )
    prompt_encoder = build_prompt_encoder(shape.image_size, shape.grid, NECK_CHANNELS)
    return Sam(encoder, prompt_encoder, build_mask_decoder(NECK_CHANNELS))


def infer_shape(state: dict[str, Tensor]) -> EncoderShape | None:
    """The sizes of the image encoder that a state dict holds; None where it holds none.

    A layer whose table of relative positions spans the whole grid has global attention.
    """
    pos, rel = state.get("image_encoder.pos_embed"), "image_encoder.blocks.{}.attn.rel_pos_h"
    first = state.get("image_encoder.blocks.0.mlp.lin1.weight")
    if pos is None or pos.ndim != 4 or first is None or rel.format(0) not in state:
        return None
    depth = len({k.split(".")[2] for k in state if k.startswith("image_encoder.blocks.")})
    grid, dim = pos.shape[1], pos.shape[-1]
    sides = [(len(state[rel.format(i)]) + 1) // 2 for i in range(depth) if rel.format(i) in state]
    windows = [side for side in sides if side != grid]
    return EncoderShape(
        embed_dim=dim,
        depth=depth,
        num_heads=dim // state[rel.format(0)].shape[-1],
        global_layers=tuple(i for i, side in enumerate(sides) if side == grid),
        image_size=grid * PATCH_PX,
        window_size=windows[0] if windows else EncoderShape.window_size,
        mlp_ratio=len(first) / dim,
    )


def infer_model(state: dict[str, Tensor]) -> str:
    """What a state dict seems to be, in words: for error messages."""
    found = infer_shape(state)
    if found is None:
        return "not a segment-anything model"
    sizes = (found.embed_dim, found.depth, found.num_heads)
    for name, shape in SHAPES.items():
        if (shape.embed_dim, shape.depth, shape.num_heads) == sizes:
            return f"{name} at image_size {found.image_size}"
    return (
        f"embed_dim {found.embed_dim}, depth {found.depth}, num_heads {found.num_heads}, "
        f"image_size {found.image_size}"
    )


def require_fitting(shape: EncoderShape, checkpoint: Path) -> None:
    """Raise UserError, as `load_sam` would, where the file does not hold a model of `shape`."""
    with torch.device("meta"):
        sam = build_sam(shape)
    _fitted(sam, shape, read_checkpoint(checkpoint), checkpoint)


def _fitted(
    sam: Sam, shape: EncoderShape, saved: dict[str, Tensor], path: Path | None
) -> dict[str, Tensor]:
    """`saved` at the input size of `sam`. Raises UserError where it is of another model."""
    wanted, state = sam.state_dict(), fit_positions(saved, shape, path)
    faults = {
        "missing": [name for name in wanted if name not in state],
        "unexpected": [name for name in state if name not in wanted],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
            for name in wanted
            if name in state and state[name].shape != wanted[name].shape
        ],
    }
    if any(faults.values()):
        details = "; ".join(f"{len(v)} {k}: {_few(v)}" for k, v in faults.items() if v)
        raise UserError(
            f"checkpoint {path} does not fit this model: {details}. The file looks like: "
            f"{infer_model(saved)}"
        )
    return state


def _few(names: Iterable[Any]) -> str:
    listed = list(names)
    rest = len(listed) - _MAX_NAMES_SHOWN
    return ", ".join(listed[:_MAX_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
