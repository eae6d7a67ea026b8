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


def collect_units(columns: Columns, shape: EncoderShape, *, even: bool) -> UnitScores:
    """Add up the columns of each unit.

    even: scale the weights that read the channels to the same mean before adding.
    """
    layers = range(shape.depth)
    heads = torch.stack([columns[f"{i}.attn.proj"] for i in layers])
    reading = [columns[n] for i in layers for n in (f"{i}.attn.qkv", f"{i}.mlp.lin1")]
    reading.append(columns["neck.0"])
    embed = torch.stack([c / c.mean().clamp(min=1e-30) if even else c for c in reading]).sum(0)
    return UnitScores(
        mlp=torch.stack([columns[f"{i}.mlp.lin2"] for i in layers]),
        heads=heads.view(shape.depth, shape.num_heads, -1).sum(2),
        embed=embed,
    )


def absolute_weight(weight: Tensor) -> Tensor:
    """Return the absolute values of a reading weight, (out, in) float64 on the CPU."""
    return weight.detach().flatten(1).abs().double().cpu()
