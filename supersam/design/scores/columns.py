"""Which weights read a unit, and how a value per input column becomes a score per unit.

A unit leaves the model when the weights that read it lose their columns: columns of `lin2` for an
MLP unit, of `proj` for a head, of `qkv`, `lin1` and the neck for a channel. Every score is made of
these columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from supersam.design.units import UnitScores
from supersam.model import SamSupernet
from supersam.model.elastic import ElasticBlock
from supersam.space import EncoderShape

Columns = dict[str, Tensor]
"""A value for each input column of each reading weight, by name: `3.mlp.lin2`, `neck.0`."""
WRITERS = ("attn.proj", "mlp.lin2")
"""The weights of a layer that write to the residual stream; the others read from it."""


def reading_weights(supernet: SamSupernet) -> dict[str, Tensor]:
    """Return the weights that read units, (out, in) or (out, in, 1, 1), by name."""
    encoder = supernet.image_encoder
    found: dict[str, Tensor] = {}
    for layer, block in enumerate(encoder.blocks):
        assert isinstance(block, ElasticBlock)
        found[f"{layer}.attn.qkv"] = block.attn.qkv.weight
        found[f"{layer}.attn.proj"] = block.attn.proj.weight
        found[f"{layer}.mlp.lin1"] = block.mlp.lin1.weight
        found[f"{layer}.mlp.lin2"] = block.mlp.lin2.weight
    first = encoder.neck[0]
    assert isinstance(first, nn.Conv2d)  # segment-anything's 1 x 1 projection
    found["neck.0"] = first.weight
    return found


def collect_units(columns: Columns, embed: Tensor, shape: EncoderShape) -> UnitScores:
    """Add up the columns of each MLP unit and head; `embed` holds the channels' scores already."""
    layers = range(shape.depth)
    heads = torch.stack([columns[f"{i}.attn.proj"] for i in layers])
    return UnitScores(
        mlp=torch.stack([columns[f"{i}.mlp.lin2"] for i in layers]),
        heads=heads.view(shape.depth, shape.num_heads, -1).sum(2),
        embed=embed,
    )


def channel_score(columns: Columns, written: Columns) -> Tensor:
    """Score each channel by the weights that read it and those that write it, (C,) float64.

    columns: of the reading weights. written: a value for each output row of `proj` and `lin2`.
    Each weight is scaled to the same mean, so that all of them count alike.
    """
    reading = [value for name, value in columns.items() if not name.endswith(WRITERS)]
    parts = [*reading, *written.values()]
    return torch.stack([part / part.mean().clamp(min=1e-30) for part in parts]).sum(0)


def absolute_weight(weight: Tensor) -> Tensor:
    """Return the absolute values of a reading weight, (out, in) float64 on the CPU."""
    return weight.detach().flatten(1).abs().double().cpu()
