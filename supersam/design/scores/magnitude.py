"""Magnitude: the sum of absolute weights that read or write a unit."""

from __future__ import annotations

import torch

from supersam.design.scores.columns import absolute_weight, collect_units, reading_weights
from supersam.design.scores.measurement import Measurement
from supersam.design.units import UnitScores


def score_magnitude(measurement: Measurement) -> UnitScores:
    """Score every unit by the absolute weights that read or write it."""
    shape = measurement.supernet.space.shape
    weights = reading_weights(measurement.supernet)
    columns = {name: absolute_weight(weight).sum(0) for name, weight in weights.items()}
    rows = {name: absolute_weight(weight).sum(1) for name, weight in weights.items()}
    for layer in range(shape.depth):
        columns[f"{layer}.mlp.lin2"] += rows[f"{layer}.mlp.lin1"]
        q_k_v = rows[f"{layer}.attn.qkv"].view(shape.num_heads, 3, shape.head_dim)
        columns[f"{layer}.attn.proj"] += q_k_v.sum(1).flatten()
    writers = {n: row for n, row in rows.items() if n.endswith(("lin2", "proj"))}
    scores = collect_units(columns, shape, even=True)
    written = torch.stack([row / row.mean() for row in writers.values()]).sum(0)
    return UnitScores(scores.mlp, scores.heads, scores.embed + written)
