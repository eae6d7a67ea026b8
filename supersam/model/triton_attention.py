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

from supersam.model.fused_attention import pitch
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


TILES = {
    ("global", "hopper"): {
        "forward": Tiles(rows=1, queries=64, warps=4, stages=3),
        "queries": Tiles(rows=1, queries=64, warps=4, stages=3),
        "keys": Tiles(rows=1, queries=64, warps=4, stages=3),
    },
    ("window", "hopper"): {
        "forward": Tiles(rows=2, queries=64, warps=4, stages=3),
        "queries": Tiles(rows=2, queries=64, warps=4, stages=3),
        "keys": Tiles(rows=4, queries=64, warps=4, stages=3),
    },
    ("global", "ampere"): {
        "forward": Tiles(rows=1, queries=128, warps=8, stages=2),
        "queries": Tiles(rows=1, queries=64, warps=4, stages=2),
        "keys": Tiles(rows=1, queries=32, warps=4, stages=2),
    },
    ("window", "ampere"): {
        "forward": Tiles(rows=2, queries=64, warps=4, stages=2),
        "queries": Tiles(rows=2, queries=64, warps=4, stages=2),
        "keys": Tiles(rows=4, queries=32, warps=4, stages=2),
    },
}
"""By kind of attention and of GPU, then by kernel. Of Hopper one choice for heads of 64
and 80 channels, within 4 % of the fastest of up to 36 on an H200; of Ampere, not measured yet, the
largest that NVIDIA's assembler fits into registers. benchmarks/attention_tiles.py shows both."""


def tiles_of(kernel: str, side: int, capability: int) -> Tiles:
    """Those of the kernel named forward, queries or keys, for a grid of side x side tokens.

    capability: the GPU's compute capability, its first number: 8 for Ampere and Ada, 9 for Hopper.
    """
    kind = "global" if side > 32 else "window"
    tiles = TILES[kind, "hopper" if capability >= 9 else "ampere"][kernel]
    return replace(tiles, rows=tiles.rows // 2) if 16 < side <= 32 else tiles


def _capability(x: Tensor) -> int:
    """Of the device that x is on; the interpreter takes any tiles."""
    return torch.cuda.get_device_capability(x.device)[0] if x.is_cuda else 9


def constants(tiles: Tiles, side: int, dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """What a kernel is compiled for."""
    first = dim if dim & (dim - 1) == 0 else triton.next_power_of_2(dim) // 2
    return {
        "SIDE": side,
        "PITCH": pitch(side),
        "ROWS": tiles.rows,
        "COLUMNS": max(16, triton.next_power_of_2(side)),  # matrix units take 16 at least
        "QUERIES": tiles.queries,
        "D": dim,
        "D0": first,
        "D1": triton.next_power_of_2(dim - first) if dim > first else 0,
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }


def attend(qkv: Tensor, by_row: Tensor, by_column: Tensor) -> tuple[Tensor, Tensor]:
    """Mixed values, and the logarithm to base 2 of each softmax's denominator.

    Args:
        qkv: (B, n, h, 3, d) contiguous.
        by_row: (B, row, column, h, p): term of a query at (row, column) for each of `side` key
            rows; p is `pitch(side)`.
        by_column: (B, column, row, h, p): the same for each key column; columns come first.

    Returns:
        (B, n, h, d) in the type of `qkv`, and (B, h, n) float32.
    """
    batch, n, heads, _, dim = qkv.shape
    mixed = qkv.new_empty(batch, n, heads, dim)
    lse = qkv.new_empty(batch, heads, n, dtype=torch.float32)
    tiles = tiles_of("forward", by_row.shape[1], _capability(qkv))
    forward[triton.cdiv(n, tiles.queries), batch * heads](
        qkv, by_row, by_column, mixed, lse, heads,
        **constants(tiles, by_row.shape[1], dim, qkv.dtype),
    )  # fmt: skip
    return mixed, lse


def attend_backward(
    qkv: Tensor, by_row: Tensor, by_column: Tensor, mixed: Tensor, lse: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `qkv`, `by_row` and `by_column`; grad: that of `mixed`, (B, n, h, d)."""
    batch, n, heads, _, dim = qkv.shape
    side = by_row.shape[1]
    d_qkv, d_column = torch.empty_like(qkv), torch.empty_like(by_column)
    d_row = torch.zeros_like(by_row)  # a kernel for rows of one tile writes no padding
    delta = torch.empty_like(lse)
    tiles = tiles_of("queries", side, _capability(qkv))
    backward_queries[triton.cdiv(n, tiles.queries), batch * heads](
        qkv, by_row, by_column, mixed, grad, lse, delta, d_qkv, d_row, d_column, heads,
        **constants(tiles, side, dim, qkv.dtype),
    )  # fmt: skip
    tiles = tiles_of("keys", side, _capability(qkv))
    backward_keys[triton.cdiv(side, tiles.rows), batch * heads](
        qkv, by_row, by_column, grad, lse, delta, d_qkv, heads,
        **constants(tiles, side, dim, qkv.dtype),
    )  # fmt: skip
    return d_qkv, d_row, d_column
