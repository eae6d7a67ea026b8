"""Units of the encoder that slices can drop: their scores, their order, and the axes they lie on.

A unit is a hidden unit of an MLP, an attention head, or a channel of the residual stream. Letters:
L layers, W MLP units of a layer, H heads of a layer, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from supersam.config.design import DIMENSIONS, Dimension
from supersam.space import EncoderShape

_ROUNDING = 1e-4
"""Share of a layer's largest score by which two measurements of one unit may differ."""


@dataclass(frozen=True)
class UnitScores:
    """The importance of each unit, larger for a more important one; comparable within a row."""

    mlp: Tensor
    """(L, W) float64."""
    heads: Tensor
    """(L, H) float64."""
    embed: Tensor
    """(C,) float64."""

    def __add__(self, other: UnitScores) -> UnitScores:
        return UnitScores(self.mlp + other.mlp, self.heads + other.heads, self.embed + other.embed)

    def __mul__(self, factor: float) -> UnitScores:
        return UnitScores(self.mlp * factor, self.heads * factor, self.embed * factor)

    def abs(self) -> UnitScores:
        """Return the scores without their signs."""
        return UnitScores(self.mlp.abs(), self.heads.abs(), self.embed.abs())


@dataclass(frozen=True)
class UnitOrder:
    """For each new position, the unit that takes it. int64, on the CPU."""

    mlp: Tensor
    """(L, W)."""
    heads: Tensor
    """(L, H)."""
    embed: Tensor
    """(C,)."""

    @property
    def is_identity(self) -> bool:
        """Whether every unit stays where it is."""
        return all(
            torch.equal(rows, torch.arange(rows.shape[-1]).expand_as(rows))
            for rows in (self.mlp, self.heads, self.embed)
        )


def rank_units(scores: UnitScores, dimensions: Sequence[Dimension] = DIMENSIONS) -> UnitOrder:
    """The most important units first, in the dimensions that are named; the others stay.

    Units of equal score keep their order, and a row that is in order up to rounding stays as it
    is: scores measured again after a reordering move nothing.
    """

    def ranked(values: Tensor, dimension: Dimension) -> Tensor:
        rows = values.cpu().reshape(-1, values.shape[-1])
        kept = dimension not in dimensions
        ranks = [
            torch.arange(len(row)) if kept or _is_ordered(row) else _ranks(row) for row in rows
        ]
        return torch.stack(ranks).reshape(values.shape)

    return UnitOrder(
        mlp=ranked(scores.mlp, "mlp"),
        heads=ranked(scores.heads, "heads"),
        embed=ranked(scores.embed, "embed"),
    )


def permute_tensor(name: str, tensor: Tensor, order: UnitOrder, shape: EncoderShape) -> Tensor:
    """A supernet's tensor with its units in `order`: a weight, or an optimizer's moment of it.

    name: as in the supernet's `named_parameters`. Returns `tensor` itself where no unit lies on it.
    """
    local = name.removeprefix("image_encoder.")
    if local == name:
        return tensor
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", local)
    layer, key = (0, local) if match is None else (int(match[1]), match[2])
    axes: dict[int, Tensor] = {}
    for axis, units in _AXES.get(key, {}).items():
        if units == "embed":
            axes[axis] = order.embed
        elif units == "mlp":
            axes[axis] = order.mlp[layer]
        else:
            block = shape.head_dim * (3 if units == "qkv" else 1)
            axes[axis] = _spread(order.heads[layer], block)
    for axis, index in axes.items():
        tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor


def channel_axis(name: str) -> int | None:
    """Return the axis of an encoder's tensor on which the channels lie; None where none does."""
    key = re.sub(r"^blocks\.\d+\.", "", name)
    return next((axis for axis, units in _AXES.get(key, {}).items() if units == "embed"), None)


# Axis -> what lies on it, for each tensor of the encoder by its name within the encoder or layer.
# `qkv` and `heads` are blocks of 3 x head_dim and head_dim rows or columns for each head.
_AXES: dict[str, dict[int, str]] = {
    "patch_embed.weight": {0: "embed"},
    "patch_embed.bias": {0: "embed"},
    "pos_embed": {3: "embed"},
    "neck.0.weight": {1: "embed"},
    "norm1.weight": {0: "embed"},
    "norm1.bias": {0: "embed"},
    "norm2.weight": {0: "embed"},
    "norm2.bias": {0: "embed"},
    "attn.qkv.weight": {0: "qkv", 1: "embed"},
    "attn.qkv.bias": {0: "qkv"},
    "attn.proj.weight": {0: "embed", 1: "heads"},
    "attn.proj.bias": {0: "embed"},
    "mlp.lin1.weight": {0: "mlp", 1: "embed"},
    "mlp.lin1.bias": {0: "mlp"},
    "mlp.lin2.weight": {0: "embed", 1: "mlp"},
    "mlp.lin2.bias": {0: "embed"},
}


def _ranks(row: Tensor) -> Tensor:
    return row.argsort(descending=True, stable=True)


def _is_ordered(row: Tensor) -> bool:
    """Whether no unit comes after one of a score that is smaller beyond rounding."""
    least = row.cummin(0).values
    return bool((row <= least + _ROUNDING * row.abs().max()).all())


def _spread(units: Tensor, block: int) -> Tensor:
    """Rows of units that are blocks of `block` rows each."""
    return (units[:, None] * block + torch.arange(block)).flatten()
