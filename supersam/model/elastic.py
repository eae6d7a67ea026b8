"""Layers whose active part is a prefix slice of shared weights: views, never copies.

The input tells how many input channels are active, the caller how many outputs; no layer holds
state besides its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supersam.model.attention import AttentionKernel, WindowGeometry, reference_attention
from supersam.model.input_size import resize_table
from supersam.space import EncoderShape
from supersam.standalone import NORM_EPS

ALIGNMENT = 16
"""Units. A GPU's matrix units want rows of whole 16 bytes at least: on an H200 an MLP of 1020 units
took 1.45 times as long as one of 1024, forward and backward, in bfloat16."""


def active_linear(layer: nn.Linear, x: Tensor, out_features: int) -> Tensor:
    """The first outputs of `layer` from the active input channels.

    x: (..., c) with c active channels. Returns (..., out_features).
    """
    return F.linear(x, layer.weight[:out_features, : x.shape[-1]], layer.bias[:out_features])


def active_layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """Layer norm over the active channels alone. x: (..., c). Returns the same shape."""
    dim = x.shape[-1]
    return F.layer_norm(x, (dim,), layer.weight[:dim], layer.bias[:dim], layer.eps)


class ElasticAttention(nn.Module):
    """Multi-head attention with decomposed relative position, elastic in whole heads.

    Rows of `qkv` are ordered head by head, (head, q/k/v, channel), so that the first heads are a
    prefix; segment-anything orders them (q/k/v, head, channel).
    """

    def __init__(self, shape: EncoderShape, *, layer: int) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.geometry = WindowGeometry(shape.grid, shape.window_of(layer))
        self.qkv = nn.Linear(shape.embed_dim, 3 * shape.embed_dim)
        self.proj = nn.Linear(shape.embed_dim, shape.embed_dim)
        offsets = 2 * self.geometry.side - 1
        self.rel_pos_h = nn.Parameter(torch.zeros(offsets, shape.head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(offsets, shape.head_dim))

    def forward(self, x: Tensor, heads: int, kernel: AttentionKernel) -> Tensor:
        """x: (B, g, g, c). Returns (B, g, g, c)."""
        if kernel is not reference_attention:
            return self.attend(x, heads, kernel)
        # segment-anything cuts the windows first, and projects their padding as well.
        geometry = self.geometry.at(x.shape[1])
        return geometry.merge(self.attend(geometry.partition(x), heads, kernel), len(x))

    def attend(self, x: Tensor, heads: int, kernel: AttentionKernel) -> Tensor:
        """x: (B, s, s, c), whole images or windows. Returns (B, s, s, c)."""
        qkv = active_linear(self.qkv, x, 3 * heads * self.head_dim)
        qkv = qkv.view(*x.shape[:3], heads, 3, self.head_dim)
        padding = self.qkv.bias[: 3 * heads * self.head_dim].view(heads, 3, -1)  # of a zero
        mixed = kernel(qkv, padding, *self.relative_positions(x.shape[1]))
        return active_linear(self.proj, mixed, x.shape[-1])

    def relative_positions(self, grid: int) -> tuple[Tensor, Tensor]:
        """Return the tables of a grid of `grid` tokens a side; windows have one size in all."""
        tables = self.rel_pos_h, self.rel_pos_w
        if self.geometry.window or grid == self.geometry.grid:
            return tables
        vertical, horizontal = (resize_table(table, 2 * grid - 1) for table in tables)
        return vertical, horizontal


class ElasticMLP(nn.Module):
    """The two-layer perceptron of a transformer layer, elastic in its hidden units."""

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.lin1 = nn.Linear(shape.embed_dim, shape.mlp_width)
        self.lin2 = nn.Linear(shape.mlp_width, shape.embed_dim)

    def forward(self, x: Tensor, width: int) -> Tensor:
        """x: (..., c). Returns (..., c) through the first `width` hidden units."""
        if x.is_cuda and width % ALIGNMENT:
            return self.padded(x, width)
        hidden = F.gelu(active_linear(self.lin1, x, width))
        return active_linear(self.lin2, hidden, x.shape[-1])

    def padded(self, x: Tensor, width: int) -> Tensor:
        """`forward` with zero weights for some units more, which make a fast matrix product."""
        dim, spare = x.shape[-1], -width % ALIGNMENT
        rows = F.pad(self.lin1.weight[:width, :dim], (0, 0, 0, spare))
        hidden = F.gelu(F.linear(x, rows, F.pad(self.lin1.bias[:width], (0, spare))))
        columns = F.pad(self.lin2.weight[:dim, :width], (0, spare))
        return F.linear(hidden, columns, self.lin2.bias[:dim])


class ElasticBlock(nn.Module):
    """One transformer layer."""

    def __init__(self, shape: EncoderShape, *, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.embed_dim, eps=NORM_EPS)
        self.attn = ElasticAttention(shape, layer=layer)
        self.norm2 = nn.LayerNorm(shape.embed_dim, eps=NORM_EPS)
        self.mlp = ElasticMLP(shape)

    def attend(self, x: Tensor, *, heads: int, kernel: AttentionKernel) -> Tensor:
        """The first half, attention. x: (B, g, g, c). Returns the same shape."""
        attended: Tensor = self.attn(active_layer_norm(self.norm1, x), heads, kernel)
        return x + attended

    def feed(self, x: Tensor, *, mlp_width: int) -> Tensor:
        """The second half, the MLP. x: (B, g, g, c). Returns the same shape."""
        fed: Tensor = self.mlp(active_layer_norm(self.norm2, x), mlp_width)
        return x + fed


@dataclass(frozen=True)
class Halves:
    """The two halves of a layer as functions of the block: plain, or compiled."""

    attend: Callable[..., Tensor] = ElasticBlock.attend
    feed: Callable[..., Tensor] = ElasticBlock.feed


PLAIN_HALVES = Halves()


CompilerBackend = str | Callable[..., Any]
"""What `torch.compile` takes as backend."""


def compile_halves(backend: CompilerBackend = "inductor", *, limit: int = 8) -> Halves:
    """Halves compiled for each kind of attention, number of heads and MLP width on their own.

    All layers share the two functions, so that their graphs are as few as their shapes; removed
    layers need none. limit: shapes of one half that may come.
    """
    # Beyond its limit the compiler quietly goes back to plain execution. The limit is on the graphs
    # of all models of a process; PyTorch 2.6 knows it by this name alone.
    torch._dynamo.config.cache_size_limit += limit
    return Halves(
        attend=torch.compile(ElasticBlock.attend, backend=backend, dynamic=False),
        feed=torch.compile(ElasticBlock.feed, backend=backend, dynamic=False),
    )
