"""The fused GPU attention of `triton_attention` as one differentiable operator of PyTorch.

An operator, so that the compiler leaves it whole; triton is imported where it first runs.
"""

from __future__ import annotations

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

    q_rows, q_columns = _queries(qkv, len(rel_h))
    by_row = q_rows @ _padded(rel_h, qkv.dtype).transpose(1, 2)
    by_column = q_columns @ _padded(rel_w, qkv.dtype).transpose(1, 2)
    by_row, by_column = (_split(term, len(rel_h)) for term in (by_row, by_column))
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
    from_rows = d_row @ _padded(rel_h, qkv.dtype)
    from_columns = _split(d_column @ _padded(rel_w, qkv.dtype), side)
    d_queries = d_qkv[:, :, :, 0]
    d_queries += from_rows.view(d_queries.shape)
    d_queries += from_columns.transpose(1, 2).reshape(d_queries.shape)
    q_rows, q_columns = _queries(qkv, side)
    d_rel_h, d_rel_w = (
        (term.transpose(2, 3) @ q).sum(0, dtype=torch.float32)[:, :side].to(rel.dtype)
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


def _queries(qkv: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Queries (B, side, side * h, d): by row of the grid, a view, and by column, a copy."""
    batch, _, heads, _, dim = qkv.shape
    rows = qkv.view(batch, side, side * heads, 3, dim)[:, :, :, 0]
    columns = _split(rows, side).transpose(1, 2).reshape(rows.shape)
    return rows, columns


def _split(x: Tensor, side: int) -> Tensor:
    """(B, side, side * h, c) -> (B, side, side, h, c)."""
    return x.view(*x.shape[:2], side, -1, x.shape[-1])


def _padded(rel: Tensor, dtype: torch.dtype) -> Tensor:
    """(side, side, d) -> (side, p, d), p = pitch(side)."""
    return F.pad(rel.to(dtype), (0, 0, 0, pitch(rel.shape[1]) - rel.shape[1]))


def pitch(side: int) -> int:
    """Slots of the terms of one query: `side` rounded up to a multiple of 8, rows of 16 bytes."""
    return -(-side // 8) * 8
