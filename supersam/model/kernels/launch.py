"""Attention with decomposed relative position on a GPU: how its kernels are cut and launched.

Letters: B images, g tokens along a side of the grid, n = g * g, h heads, d channels of a head, side
of a window (g in global attention), p = `pitch(side)`. The kernels run on a GPU, or anywhere under
TRITON_INTERPRET=1 (set before triton is imported).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from supersam.model.kernels.attention import backward_keys, backward_queries, forward
from supersam.model.kernels.positions import terms_backward, terms_forward
from supersam.model.kernels.shapes import pitch, side_of


@dataclass(frozen=True)
class Tiles:
    """How the work of one kernel is cut up."""

    rows: int
    """Rows of keys in a tile."""
    queries: int
    """Queries in a tile."""
    warps: int
    stages: int


TILES = {
    ("global", "hopper"): {
        "forward": Tiles(rows=1, queries=64, warps=4, stages=3),
        "queries": Tiles(rows=1, queries=64, warps=4, stages=3),
        "keys": Tiles(rows=1, queries=64, warps=4, stages=3),
    },
    ("window", "hopper"): {
        "forward": Tiles(rows=2, queries=64, warps=4, stages=3),
        "queries": Tiles(rows=2, queries=64, warps=4, stages=3),
        "keys": Tiles(rows=4, queries=64, warps=4, stages=2),
    },
    ("global", "ampere"): {
        "forward": Tiles(rows=1, queries=128, warps=8, stages=2),
        "queries": Tiles(rows=1, queries=64, warps=4, stages=2),
        "keys": Tiles(rows=1, queries=32, warps=4, stages=2),
    },
    ("window", "ampere"): {
        "forward": Tiles(rows=2, queries=64, warps=4, stages=2),
        "queries": Tiles(rows=2, queries=32, warps=4, stages=2),
        "keys": Tiles(rows=4, queries=32, warps=4, stages=1),
    },
}
"""By kind of attention and of GPU, then by kernel. Of Hopper one choice for heads of 64
and 80 channels, within 4 % of the fastest of up to 36 on an H200 (windows when they were cut out
before); of Ampere, not measured yet, the largest that NVIDIA's assembler fits into registers.
`python -m benchmarks.kernels attention` shows both."""

_PARTS = 8
"""Programs that share the gradients of one place of a window: global attention has places enough
for a GPU, windows have not."""


def tiles_of(kernel: str, side: int, capability: int) -> Tiles:
    """Tiles of the kernel named forward, queries or keys, for windows of side x side tokens.

    capability: the GPU's compute capability, its first number: 8 for Ampere and Ada, 9 for Hopper.
    """
    kind = "global" if side > 32 else "window"
    tiles = TILES[kind, "hopper" if capability >= 9 else "ampere"][kernel]
    return replace(tiles, rows=tiles.rows // 2) if 16 < side <= 32 else tiles


def constants(grid: int, side: int, dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return the constants that every kernel is compiled for."""
    first = dim if dim & (dim - 1) == 0 else triton.next_power_of_2(dim) // 2
    return {
        "GRID": grid,
        "SIDE": side,
        "PITCH": pitch(side),
        "COLUMNS": max(16, triton.next_power_of_2(side)),  # matrix units take 16 at least
        "D": dim,
        "D0": first,
        "D1": triton.next_power_of_2(dim - first) if dim > first else 0,
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
    }


def cut(tiles: Tiles) -> dict[str, int]:
    """Return the further constants of an attention kernel."""
    return {
        "ROWS": tiles.rows,
        "QUERIES": tiles.queries,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }


def attend(
    qkv: Tensor, padding: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor
) -> tuple[Tensor, ...]:
    """Attention in windows of the grid.

    Args:
        qkv: (B, g, g, h, 3, d) contiguous.
        padding: (h, 3, d): of each token beyond the grid.
        rel_pos_h: (2 * side - 1, d), the position vector of each distance between rows.
        rel_pos_w: the same of columns. All four are of one type.

    Returns:
        Mixed values (B, g, g, h, d); the logarithm to base 2 of each softmax's denominator, (B, h,
        n) float32; and the position terms, (B, g, g, h, 2, p): of each query for each row of keys,
        then for each column.
    """
    batch, grid, _, heads, _, dim = qkv.shape
    side = side_of(rel_pos_h)
    windows = triton.cdiv(grid, side) ** 2
    made = constants(grid, side, dim, qkv.dtype)
    terms = qkv.new_empty(batch, grid, grid, heads, 2, pitch(side))
    items = batch * windows * heads
    capability = _capability(qkv)
    cuts = term_cut("terms", capability)
    terms_forward[side * side, triton.cdiv(items, cuts["ITEMS"])](
        qkv, rel_pos_h, rel_pos_w, terms, items, heads, **made, **cuts
    )
    mixed = qkv.new_empty(batch, grid, grid, heads, dim)
    lse = qkv.new_empty(batch, heads, grid * grid, dtype=torch.float32)
    tiles = tiles_of("forward", side, capability)
    forward[(triton.cdiv(side * side, tiles.queries) * items,)](
        qkv, padding, terms, mixed, lse, heads, **made, **cut(tiles)
    )
    return mixed, lse, terms


def attend_backward(
    grad: Tensor,
    qkv: Tensor,
    padding: Tensor,
    rel_pos_h: Tensor,
    rel_pos_w: Tensor,
    mixed: Tensor,
    lse: Tensor,
    terms: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `qkv`, and in float32 of `padding`, `rel_pos_h` and `rel_pos_w`.

    grad: that of `mixed`, contiguous and in its type; the others as in `attend`.
    """
    batch, grid, _, heads, _, dim = qkv.shape
    side = side_of(rel_pos_h)
    windows = triton.cdiv(grid, side) ** 2
    made = constants(grid, side, dim, qkv.dtype)
    items = batch * windows * heads
    d_qkv, d_terms, delta = (torch.empty_like(t) for t in (qkv, terms, lse))
    capability = _capability(qkv)
    tiles = tiles_of("queries", side, capability)
    backward_queries[(triton.cdiv(side * side, tiles.queries) * items,)](
        qkv, padding, terms, mixed, grad, lse, delta, d_qkv, d_terms, heads, **made, **cut(tiles)
    )
    tiles = tiles_of("keys", side, capability)
    key_tiles = triton.cdiv(side, tiles.rows)
    padded = (batch * windows, heads, key_tiles) if grid % side else (0, heads, 0)
    d_padding = lse.new_empty(*padded, 2, dim)
    backward_keys[(key_tiles * items,)](
        qkv, padding, terms, grad, lse, delta, d_qkv, d_padding, heads, **made, **cut(tiles)
    )
    cuts = term_cut("terms_back", capability)
    parts = min(1 if side == grid else _PARTS, triton.cdiv(items, cuts["ITEMS"]))
    d_rel = lse.new_empty(parts, side, side, 2, side, dim)
    terms_backward[side * side, parts](
        qkv, rel_pos_h, rel_pos_w, d_terms, d_qkv, d_rel, items, heads, **made, **cuts
    )
    d_rows, d_columns = d_rel[:, :, :, 0].sum((0, 2)), d_rel[:, :, :, 1].sum((0, 1))
    d_padding = F.pad(d_padding.sum((0, 2)), (0, 0, 1, 0))
    return d_qkv, d_padding, _by_distance(d_rows), _by_distance(d_columns)


def _by_distance(x: Tensor) -> Tensor:
    """Sums (side, side, d) over the pairs of a query and a key at the same distance.

    Returns (2 * side - 1, d). Each row is pushed one place further than the row above it, and the
    columns are added up: no atomic additions.
    """
    side, _, dim = x.shape
    wide = F.pad(x.flip(1), (0, 0, 0, side)).flatten(0, 1)
    return wide[: side * (2 * side - 1)].view(side, 2 * side - 1, dim).sum(0)


def term_cut(kernel: str, capability: int) -> dict[str, int]:
    """How the kernel of position terms named terms or terms_back is cut up, to fit into registers.

    ITEMS: queries of one place of a window that a program takes at once.
    """
    items = 64 if kernel == "terms" else 32 if capability >= 9 else 16
    return {"ITEMS": items, "num_warps": 4, "num_stages": 2}


def _capability(x: Tensor) -> int:
    """Compute capability of the device that x is on, its first number; the interpreter has 9."""
    return torch.cuda.get_device_capability(x.device)[0] if x.is_cuda else 9
