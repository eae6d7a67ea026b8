"""Magnitude: the sum of absolute weights that read or write a unit."""

from __future__ import annotations

from supersam.design.scores.columns import (
    WRITERS,
    absolute_weight,
    channel_score,
    collect_units,
    reading_weights,
)
from supersam.design.scores.measurement import Measurement
from supersam.design.units import UnitScores
from supersam.model.elastic import ElasticBlock


def score_magnitude(measurement: Measurement) -> UnitScores:
    """Score every unit by the absolute weights that read or write it."""
    supernet, shape = measurement.supernet, measurement.supernet.space.shape
    weights = reading_weights(supernet)
    columns = {name: absolute_weight(weight).sum(0) for name, weight in weights.items()}
    rows = {name: absolute_weight(weight).sum(1) for name, weight in weights.items()}
    for layer in range(shape.depth):
        columns[f"{layer}.mlp.lin2"] += rows[f"{layer}.mlp.lin1"]
        q_k_v = rows[f"{layer}.attn.qkv"].view(shape.num_heads, 3, shape.head_dim)
        columns[f"{layer}.attn.proj"] += q_k_v.sum(1).flatten()
    for layer, block in enumerate(supernet.image_encoder.blocks):
        assert isinstance(block, ElasticBlock)
        # Behind a layer norm a weight reads its channel times the norm's gain.
        columns[f"{layer}.attn.qkv"] *= block.norm1.weight.detach().abs().double().cpu()
        columns[f"{layer}.mlp.lin1"] *= block.norm2.weight.detach().abs().double().cpu()
    written = {name: row for name, row in rows.items() if name.endswith(WRITERS)}
    return collect_units(columns, channel_score(columns, written), shape)
