"""The fused GPU attention of `triton_attention` as one differentiable operator of PyTorch.

An operator, so that the compiler leaves it whole; triton is imported where it first runs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def fused_attention(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """`AttentionKernel` on a GPU, with gradients for all three inputs."""
    mixed: Tensor = _attend(qkv, rel_h, rel_w)[0]
    return mixed.flatten(2)


@torch.library.custom_op("supersam::fused_attention", mutates_args=())
def _attend(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mixed values (B, n, h, d), softmax denominators, and the terms by key row and column."""
    from supersam.model.triton_attention import attend

    q_rows, q_columns = _queries(qkv)
    by_row = q_rows @ _padded(rel_h, qkv.dtype).transpose(1, 2)
    by_column = q_columns @ _padded(rel_w, qkv.dtype).transpose(1, 2)
    by_row, by_column = (_split(term) for term in (by_row, by_column))
    mixed, lse = attend(qkv, by_row, by_column)
    return mixed, lse, by_row, by_column


@_attend.register_fake
def _(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, n, heads, _, dim = qkv.shape
    side = len(rel_h)
    term = qkv.new_empty(batch, side, side, heads, pitch(side))
    lse = qkv.new_empty(batch, heads, n, dtype=torch.float32)
    return qkv.new_empty(batch, n, heads, dim), lse, term, torch.empty_like(term)


@torch.library.custom_op("supersam::fused_attention_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    qkv: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    mixed: Tensor,
    lse: Tensor,
    by_row: Tensor,
    by_column: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    from supersam.model.triton_attention import attend_backward

    side = len(rel_h)
    grad = grad.to(qkv.dtype).contiguous()
    d_qkv, d_row, d_column = attend_backward(qkv, by_row, by_column, mixed, lse, grad)
    d_row, d_column = (term.flatten(2, 3) for term in (d_row, d_column))  # (B, side, side * h, p)
    d_queries = _rows(d_qkv)
    by_image = _padded(rel_h, qkv.dtype).expand(len(qkv), -1, -1, -1)
    d_queries.flatten(0, 1).baddbmm_(d_row.flatten(0, 1), by_image.flatten(0, 1))
    from_columns = _split(d_column @ _padded(rel_w, qkv.dtype))
    _split(d_queries).add_(from_columns.transpose(1, 2))
    q_rows, q_columns = _queries(qkv)
    d_rel_h, d_rel_w = (
        (term.transpose(2, 3) @ q).sum(0, dtype=torch.float32)[:, :side].to(rel.dtype).contiguous()
        for term, q, rel in ((d_row, q_rows, rel_h), (d_column, q_columns, rel_w))
    )
    return d_qkv, d_rel_h, d_rel_w


@_attend_backward.register_fake
def _(
    grad: Tensor, qkv: Tensor, rel_h: Tensor, rel_w: Tensor, *saved: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(qkv), torch.empty_like(rel_h), torch.empty_like(rel_w)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = _attend_backward(grad, *ctx.saved_tensors)
    return gradients


_attend.register_autograd(_backward, setup_context=_keep)


def _queries(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Queries (B, side, side * h, d): by row of the grid, a view, and by column, a copy."""
    rows = _rows(qkv)
    columns = _split(rows).transpose(1, 2).reshape(rows.shape)
    return rows, columns


def _rows(qkv: Tensor) -> Tensor:
    """The queries in `qkv` by row of the grid, (B, side, side * h, d): a view."""
    batch, n, heads, _, dim = qkv.shape
    side = math.isqrt(n)
    return qkv.view(batch, side, side * heads, 3, dim)[:, :, :, 0]


def _split(x: Tensor) -> Tensor:
    """(B, side, side * h, c) -> (B, side, side, h, c)."""
    return x.view(*x.shape[:2], x.shape[1], -1, x.shape[-1])


def _padded(rel: Tensor, dtype: torch.dtype) -> Tensor:
    """(side, side, d) -> (side, p, d), p = pitch(side)."""
    return F.pad(rel.to(dtype), (0, 0, 0, pitch(rel.shape[1]) - rel.shape[1]))


def pitch(side: int) -> int:
    """Slots of the terms of one query: `side` rounded up to a multiple of 8, rows of 16 bytes."""
    return -(-side // 8) * 8
