"""Attention with decomposed relative position: one interface, several kernels; and its windows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from supersam.model.kernels.operator import fused_attention
from supersam.model.kernels.shapes import side_of

AttentionKernel = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(qkv, padding, rel_pos_h, rel_pos_w) -> mixed.

qkv: (B, g, g, heads, 3, d), a grid of tokens. padding: (heads, 3, d), what qkv is of a token in the
padding, whose key and value take part in the attention of its window. rel_pos_h, rel_pos_w: (2 *
side - 1, d), the vector of each distance between the rows, and between the columns, of a query and
a key in a window of that side; in global attention it is the grid's. mixed: (B, g, g, heads * d).
"""


class WindowGeometry:
    """How a square grid of tokens is cut into attention windows and put together again."""

    def __init__(self, grid: int, window: int) -> None:
        """grid: tokens along a side; window: side of a window, 0 for global attention."""
        self.grid = grid
        self.window = window
        self.side = window or grid
        self.pad = -grid % window if window else 0

    def at(self, grid: int) -> WindowGeometry:
        """Return the same windows of a grid of another side."""
        return self if grid == self.grid else WindowGeometry(grid, self.window)

    def partition(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, g, g, c) -> (B * windows, side, side, c); padded below and right.

        padding: (c,), or zeros.
        """
        if self.window == 0:
            return x
        if padding is None:
            x = F.pad(x, (0, 0, 0, self.pad, 0, self.pad))
        elif self.pad:
            padding = padding.to(x.dtype)
            x = torch.cat([x, padding.expand(*x.shape[:2], self.pad, -1)], dim=2)
            x = torch.cat([x, padding.expand(len(x), self.pad, x.shape[2], -1)], dim=1)
        count, side = x.shape[1] // self.side, self.side
        x = x.view(len(x), count, side, count, side, x.shape[-1])
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, side, side, x.shape[-1])

    def merge(self, windows: Tensor, images: int) -> Tensor:
        """The inverse of `partition`, for `images` images."""
        if self.window == 0:
            return windows
        count, side = (self.grid + self.pad) // self.side, self.side
        x = windows.view(images, count, count, side, side, windows.shape[-1])
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(images, count * side, count * side, -1)
        return x[:, : self.grid, : self.grid].contiguous() if self.pad else x


def reference_attention(
    qkv: Tensor, padding: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor
) -> Tensor:
    """segment-anything's own sequence of operations, bit for bit."""
    return in_windows(_reference, qkv, padding, rel_pos_h, rel_pos_w)


def sdpa_attention(qkv: Tensor, padding: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor) -> Tensor:
    """PyTorch's fused attention with the position bias as its mask."""
    return in_windows(_sdpa, qkv, padding, rel_pos_h, rel_pos_w)


def in_windows(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    qkv: Tensor,
    padding: Tensor,
    rel_pos_h: Tensor,
    rel_pos_w: Tensor,
) -> Tensor:
    """Apply `attend`, which does not know windows, as an `AttentionKernel`.

    attend: (qkv, rel_h, rel_w) -> mixed. qkv: (B, n, heads, 3, d), whole windows of n = side * side
    tokens. rel_h, rel_w: (side, side, d), the vector of each (query row, key row) and (query
    column, key column). mixed: (B, n, heads * d).
    """
    batch, grid, side = len(qkv), qkv.shape[1], side_of(rel_pos_h)
    position = torch.arange(side, device=qkv.device)
    distance = position[:, None] - position[None, :] + side - 1
    geometry = WindowGeometry(grid, side if side != grid else 0)
    windows = geometry.partition(qkv.flatten(3), padding.flatten())
    mixed = attend(
        windows.view(len(windows), side * side, *qkv.shape[3:]),
        rel_pos_h[distance],
        rel_pos_w[distance],
    )
    return geometry.merge(mixed.view(len(windows), side, side, -1), batch)


def _reference(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    batch, n, heads, _, dim = qkv.shape
    side = len(rel_h)
    q, k, v = split_heads(qkv)
    by_row, by_column = row_and_column_bias(q, rel_h, rel_w)
    q, k, v = (t.reshape(batch * heads, n, dim) for t in (q, k, v))
    scores = (q * dim**-0.5) @ k.transpose(-2, -1)
    scores = scores.view(batch * heads, side, side, side, side) + by_row + by_column
    weights = scores.view(batch * heads, n, n).softmax(dim=-1)
    return join_heads((weights @ v).view(batch, heads, n, dim))


def _sdpa(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    q, k, v = split_heads(qkv)
    bias = position_bias(q, rel_h, rel_w)
    return join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=_aligned(bias)))


def split_heads(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, (B, heads, n, d) each: views of `qkv`."""
    q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
    return q, k, v


def join_heads(mixed: Tensor) -> Tensor:
    """(B, heads, n, d) to (B, n, heads * d)."""
    return mixed.transpose(1, 2).flatten(2)


def position_bias(q: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """Return what relative positions add to the scores, (B, heads, tokens, tokens)."""
    batch, heads, n, _ = q.shape
    by_row, by_column = row_and_column_bias(q, rel_h, rel_w)
    # Contiguous small terms make the large sum contiguous, so that the view below is one.
    return (by_row.contiguous() + by_column.contiguous()).view(batch, heads, n, n)


def row_and_column_bias(q: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms of the decomposed relative-position bias.

    Returns (B * heads, side, side, side, 1) and (B * heads, side, side, 1, side): query row, query
    column, key row, key column. Source: MViTv2 (arXiv 2112.01526), equation 4.
    """
    batch, heads, _, dim = q.shape
    grid = q.reshape(batch * heads, len(rel_h), len(rel_w), dim)
    by_row = torch.einsum("bhwc,hkc->bhwk", grid, rel_h)
    by_column = torch.einsum("bhwc,wkc->bhwk", grid, rel_w)
    return by_row[:, :, :, :, None], by_column[:, :, :, None, :]


def _aligned(bias: Tensor) -> Tensor:
    """`bias` with the rows of its storage padded to a multiple of 8 elements (CUDA only).

    Fused kernels read the mask in rows of 8 elements and would copy an unaligned one whole.
    """
    spare = -bias.shape[-1] % 8
    if spare == 0 or not bias.is_cuda:
        return bias
    return F.pad(bias, (0, spare))[..., : bias.shape[-1]]


def in_kernel_attention(
    qkv: Tensor, padding: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor
) -> Tensor:
    """Kernels that cut windows and add positions themselves.

    In float32, which spills their registers, sdpa.
    """
    whole = qkv.is_cuda and qkv.dtype == torch.float32
    return (sdpa_attention if whole else fused_attention)(qkv, padding, rel_pos_h, rel_pos_w)


KERNELS: dict[str, AttentionKernel] = {
    "reference": reference_attention,
    "sdpa": sdpa_attention,
    "in_kernel": in_kernel_attention,
}


def choose_kernel(name: str, device: torch.device) -> AttentionKernel:
    """The kernel that `auto`, `sdpa`, `in_kernel` or `reference` means on `device`.

    On a GPU `auto` is in_kernel: on an H200 global layers took 0.2 of sdpa's time and windows 0.5.
    A CPU has neither: PyTorch has no fused kernel with a mask's gradient there, and the reference
    took 0.87 CPU seconds where sdpa took 1.15 (a training step of vit_t, 4 images, 8 prompts, bf16,
    one core).
    """
    if device.type != "cuda":
        name = "reference" if name in ("auto", "in_kernel") else name
    elif name == "auto":
        name = "in_kernel" if _runs_triton(device) else "sdpa"
    return KERNELS[name]


@functools.cache  # every layer of every step asks
def _runs_triton(device: torch.device) -> bool:
    """PyTorch brings triton on Linux alone, and it has bfloat16 from Ampere on."""
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (8, 0)
