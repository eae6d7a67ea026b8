"""Fit the positions of trained weights to another input size, as fine-tunings of SAM do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from supersam.space import EncoderShape
from supersam.space.shape import PATCH_PX

logger = logging.getLogger(__name__)

_POS_EMBED = "image_encoder.pos_embed"


def fit_positions(
    state: Mapping[str, Tensor], shape: EncoderShape, source: Path | None
) -> dict[str, Tensor]:
    """Return `state` with its positions interpolated to the input size of `shape`.

    The position embedding is interpolated bicubically, with antialiasing where it shrinks; the
    tables of relative positions of layers with global attention linearly, which is what
    segment-anything's `get_rel_pos` computes from a table of another length. Windows have the same
    size at every input size: their tables stay. The log tells of it.

    Args:
        state: under segment-anything's names, of a model or of a supernet.
        shape: the encoder that shall load it; where it has the state's own input size, or the state
            is not of square positions, every tensor stays the one that it was.
        source: where the state comes from, for the log.
    """
    grid = _grid_of(state)
    if grid is None or grid == shape.grid:
        return dict(state)
    tables = {
        name: _resized_table(state[name], 2 * shape.grid - 1)
        for layer in shape.global_layers
        for name in _table_names(layer)
        if name in state and len(state[name]) == 2 * grid - 1
    }
    logger.info(
        "%s: made for images of %d px; at %d px the position embedding (%d x %d to %d x %d, "
        "bicubic) and the relative positions of the global layers %s (linear) are interpolated",
        *(source, grid * PATCH_PX, shape.image_size, grid, grid, shape.grid, shape.grid),
        ", ".join(map(str, shape.global_layers)),
    )
    return {**state, _POS_EMBED: _resized_embedding(state[_POS_EMBED], shape.grid), **tables}


def _grid_of(state: Mapping[str, Tensor]) -> int | None:
    """Patches along a side of the input that `state` was made for; None where it is not square."""
    found = state.get(_POS_EMBED)
    if found is None or found.ndim != 4 or found.shape[1] != found.shape[2]:
        return None
    return found.shape[1]


def _table_names(layer: int) -> tuple[str, str]:
    prefix = f"image_encoder.blocks.{layer}.attn.rel_pos_"
    return f"{prefix}h", f"{prefix}w"


def _resized_embedding(embedding: Tensor, grid: int) -> Tensor:
    """(1, g, g, C) to (1, grid, grid, C)."""
    channels_first = embedding.float().permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, size=(grid, grid), mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous().to(embedding.dtype)


def _resized_table(table: Tensor, length: int) -> Tensor:
    """(n, d), the vector of each distance, to (length, d)."""
    resized = F.interpolate(table.float().T[None], size=length, mode="linear")[0].T
    return resized.contiguous().to(table.dtype)
