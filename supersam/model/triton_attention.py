"""Attention with decomposed relative position on a GPU: how its kernels are cut and launched.

Letters: B windows or images, h heads, n tokens = side * side, d channels of a head. The kernels run
on a GPU, or anywhere under TRITON_INTERPRET=1 (set before triton is imported).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from supersam.model.triton_kernels import backward_keys, backward_queries, forward


@dataclass(frozen=True)
class Tiles:
    """How the work of one kernel is cut up."""

    rows: int
    """Rows of keys in a tile."""
    queries: int
    """Queries in a tile."""
    warps: int
    stages: int


GLOBAL = {
    "forward": Tiles(rows=1, queries=128, warps=8, stages=3),
    "queries": Tiles(rows=1, queries=128, warps=8, stages=3),
    "keys": Tiles(rows=1, queries=64, warps=4, stages=3),
}
"""For grids of more than 32 tokens a side."""
WINDOW = {
    "forward": Tiles(rows=4, queries=64, warps=4, stages=2),
    "queries": Tiles(rows=4, queries=64, warps=4, stages=2),
    "keys": Tiles(rows=4, queries=64, warps=4, stages=2),
}
"""For grids of up to 16 tokens a side; with fewer rows of keys in a tile, of up to 32."""


def _launch(kernel: str, qkv: Tensor, by_row: Tensor) -> tuple[Tiles, dict[str, Any]]:
    """How a kernel's work is cut, and all it is compiled for."""
    side, dim = by_row.shape[1], qkv.shape[-1]
    columns = max(16, int(triton.next_power_of_2(side)))  # matrix units take 16 at least
    tiles = (GLOBAL if side > 32 else WINDOW)[kernel]
    if 16 < side <= 32:
        tiles = replace(tiles, rows=tiles.rows // 2)
    first = dim if dim & (dim - 1) == 0 else triton.next_power_of_2(dim) // 2
    return tiles, {
        "SIDE": side,
        "PITCH": by_row.shape[-1],
        "ROWS": tiles.rows,
        "COLUMNS": columns,
        "QUERIES": tiles.queries,
        "D": dim,
        "D0": first,
        "D1": triton.next_power_of_2(dim - first) if dim > first else 0,
        "PRECISION": "ieee" if qkv.dtype == torch.float32 else "tf32",
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }


def attend(qkv: Tensor, by_row: Tensor, by_column: Tensor) -> tuple[Tensor, Tensor]:
    """Mixed values, and the logarithm to base 2 of each softmax's denominator.

    Args:
        qkv: (B, n, h, 3, d) contiguous.
        by_row: (B, row, column, h, p): term of a query at (row, column) for each of `side` key
            rows; p is `side` rounded up to a multiple of 8.
        by_column: (B, column, row, h, p): the same for each key column; columns come first.

    Returns:
        (B, n, h, d) in the type of `qkv`, and (B, h, n) float32.
    """
    batch, n, heads, _, dim = qkv.shape
    mixed = qkv.new_empty(batch, n, heads, dim)
    lse = qkv.new_empty(batch, heads, n, dtype=torch.float32)
    tiles, constants = _launch("forward", qkv, by_row)
    grid = (triton.cdiv(n, tiles.queries), batch * heads)
    forward[grid](qkv, by_row, by_column, mixed, lse, heads, **constants)
    return mixed, lse


def attend_backward(
    qkv: Tensor, by_row: Tensor, by_column: Tensor, mixed: Tensor, lse: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `qkv`, `by_row` and `by_column`; grad: that of `mixed`, (B, n, h, d)."""
    batch, n, heads, _, _ = qkv.shape
    d_qkv, d_column = torch.empty_like(qkv), torch.empty_like(by_column)
    d_row = torch.zeros_like(by_row)  # a kernel for rows of one tile writes no padding
    delta = torch.empty_like(lse)
    tiles, constants = _launch("queries", qkv, by_row)
    grid = (triton.cdiv(n, tiles.queries), batch * heads)
    backward_queries[grid](
        qkv, by_row, by_column, mixed, grad, lse, delta, d_qkv, d_row, d_column, heads, **constants
    )
    tiles, constants = _launch("keys", qkv, by_row)
    grid = (triton.cdiv(by_row.shape[1], tiles.rows), batch * heads)
    backward_keys[grid](qkv, by_row, by_column, grad, lse, delta, d_qkv, heads, **constants)
    return d_qkv, d_row, d_column
