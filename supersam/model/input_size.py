"""Other input sizes: positions of weights, as fine-tunings of SAM fit them, images and prompts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from supersam.data.sample import LOGIT_STRIDE, Batch
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
        name: resize_table(state[name], 2 * shape.grid - 1)
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
    return {**state, _POS_EMBED: resize_positions(state[_POS_EMBED], shape.grid), **tables}


def _grid_of(state: Mapping[str, Tensor]) -> int | None:
    """Patches along a side of the input that `state` was made for; None where it is not square."""
    found = state.get(_POS_EMBED)
    if found is None or found.ndim != 4 or found.shape[1] != found.shape[2]:
        return None
    return found.shape[1]


def _table_names(layer: int) -> tuple[str, str]:
    prefix = f"image_encoder.blocks.{layer}.attn.rel_pos_"
    return f"{prefix}h", f"{prefix}w"


def resize_positions(embedding: Tensor, grid: int) -> Tensor:
    """Interpolate a position embedding, (1, g, g, C) to (1, grid, grid, C); has a gradient."""
    channels_first = embedding.float().permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, size=(grid, grid), mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous().to(embedding.dtype)


def resize_table(table: Tensor, length: int) -> Tensor:
    """Interpolate (n, d), the vector of each distance, to (length, d); has a gradient."""
    resized = F.interpolate(table.float().T[None], size=length, mode="linear")[0].T
    return resized.contiguous().to(table.dtype)


def resize_batch(batch: Batch, side: int) -> Batch:
    """Return `batch` as if its images had been loaded at `side` pixels; itself where they were."""
    if batch.images.shape[-1] == side:
        return batch
    images, sizes = resize_images(batch.images, batch.sizes, side)
    cells = side // LOGIT_STRIDE
    return replace(
        batch,
        images=images,
        sizes=sizes,
        points=scale_points(batch.points, batch.images.shape[-1], side),
        masks=F.interpolate(batch.masks.float(), (cells, cells), mode="area").round().byte(),
    )


def resize_images(images: Tensor, sizes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Scale padded squares, with the sizes inside of them, to `side` pixels.

    images, sizes: as in `Batch`; returned themselves where they have that side.
    """
    before = images.shape[-1]
    if before == side:
        return images, sizes
    inside = (sizes * (side / before)).round().long().clamp(min=1)
    return resize_maps(images, side).round().clamp(0, 255).byte(), inside


def scale_points(points: Tensor, before: int, after: int) -> Tensor:
    """Scale pixels (x, y) of a square of `before` pixels to one of `after`.

    As segment-anything's `ResizeLongestSide` does; the prompt encoder divides by the square's side.
    """
    return points if before == after else points * (after / before)


def resize_maps(maps: Tensor, side: int) -> Tensor:
    """Scale (B, C, h, w) to (B, C, side, side), float32: images, mask logits, embeddings."""
    return F.interpolate(
        maps.float(), size=(side, side), mode="bilinear", align_corners=False, antialias=True
    )
