"""Random: the control. Noise that stays with a unit wherever a reordering puts it."""

from __future__ import annotations

import torch
from torch import Tensor

from supersam.design.scores.columns import reading_weights
from supersam.design.scores.measurement import Measurement
from supersam.design.units import UnitScores


def score_random(measurement: Measurement) -> UnitScores:
    """Draw a score for every unit from the bits of the weights that read it, in any order."""
    weights = reading_weights(measurement.supernet)
    salt = (2 * measurement.seed + 1) * 0x9E3779B97F4A7C1  # odd, and so it stays modulo 2**64
    salt = (salt + 2**63) % 2**64 - 2**63  # as the signed 64-bit number that a tensor takes
    keys = {name: _mix(weight, salt) for name, weight in weights.items()}
    shape = measurement.supernet.space.shape
    layers = range(shape.depth)
    heads = torch.stack([keys[f"{i}.attn.proj"] for i in layers])
    return UnitScores(
        mlp=_uniform(torch.stack([keys[f"{i}.mlp.lin2"] for i in layers])),
        heads=_uniform(heads.view(shape.depth, shape.num_heads, -1).sum(2)),
        embed=_uniform(torch.stack([keys[f"{i}.mlp.lin1"] for i in layers]).sum(0)),
    )


def _mix(weight: Tensor, salt: int) -> Tensor:
    """Return a 64-bit key of each input column: the bits of its entries, mixed and added."""
    bits = weight.detach().flatten(1).float().cpu().contiguous().view(torch.int32).long()
    bits = (bits ^ (bits >> 13)) * salt
    return ((bits ^ (bits >> 29)) * 0x2545F4914F6CDD1D).sum(0)


def _uniform(keys: Tensor) -> Tensor:
    """Map 64-bit keys to numbers in [0, 1)."""
    keys = (keys ^ (keys >> 31)) * 0x5851F42D4C957F2D
    return ((keys >> 11) & ((1 << 40) - 1)).double() / (1 << 40)
