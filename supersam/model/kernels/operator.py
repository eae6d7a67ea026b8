"""Fused attention on a GPU as one differentiable PyTorch operator.

`launch` runs the kernels. As an operator it stays whole under the compiler, and triton is imported
only when it first runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from supersam.model.kernels.shapes import pitch, side_of


def fused_attention(qkv: Tensor, padding: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor) -> Tensor:
    """`AttentionKernel` on a GPU, with gradients for all four inputs."""
    mixed: Tensor = _attend(qkv.contiguous(), padding, rel_pos_h, rel_pos_w)[0]
    return mixed.flatten(3)


@torch.library.custom_op("supersam::fused_attention", mutates_args=())
def _attend(
    qkv: Tensor, padding: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mixed values (B, g, g, h, d), softmax denominators, and the position terms."""
    from supersam.model.kernels.launch import attend

    mixed, lse, terms = attend(qkv, *(t.to(qkv.dtype) for t in (padding, rel_pos_h, rel_pos_w)))
    return mixed, lse, terms


@_attend.register_fake
def _(
    qkv: Tensor, padding: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, grid, _, heads, _, dim = qkv.shape
    lse = qkv.new_empty(batch, heads, grid * grid, dtype=torch.float32)
    terms = qkv.new_empty(batch, grid, grid, heads, 2, pitch(side_of(rel_pos_h)))
    return qkv.new_empty(batch, grid, grid, heads, dim), lse, terms


@torch.library.custom_op("supersam::fused_attention_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    qkv: Tensor,
    padding: Tensor,
    rel_pos_h: Tensor,
    rel_pos_w: Tensor,
    mixed: Tensor,
    lse: Tensor,
    terms: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from supersam.model.kernels.launch import attend_backward

    d_qkv, d_padding, d_rel_h, d_rel_w = attend_backward(
        grad.to(qkv.dtype).contiguous(),
        qkv,
        padding.to(qkv.dtype),
        rel_pos_h.to(qkv.dtype),
        rel_pos_w.to(qkv.dtype),
        mixed,
        lse,
        terms,
    )
    return (
        d_qkv,
        d_padding.to(padding.dtype),
        d_rel_h.to(rel_pos_h.dtype),
        d_rel_w.to(rel_pos_w.dtype),
    )


@_attend_backward.register_fake
def _(
    grad: Tensor, qkv: Tensor, padding: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, *saved: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_qkv, d_padding, d_rel_h, d_rel_w = (
        torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in (qkv, padding, rel_pos_h, rel_pos_w)
    )
    return d_qkv, d_padding, d_rel_h, d_rel_w


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor, Tensor] = _attend_backward(grad, *ctx.saved_tensors)
    return gradients


_attend.register_autograd(_backward, setup_context=_keep)
