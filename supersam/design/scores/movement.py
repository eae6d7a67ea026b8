"""Movement (arXiv 2005.07683): how far training steps push a unit's weights away from zero."""

from __future__ import annotations

import torch

from supersam.design.scores.columns import Columns, collect_units, reading_weights
from supersam.design.scores.gradients import weight_times_gradient
from supersam.design.scores.measurement import Measurement
from supersam.design.units import UnitScores

_STRIDE = 1e-3
"""Each step moves a matrix by this share of its norm."""


def score_movement(measurement: Measurement) -> UnitScores:
    """Score every unit over one training step per batch; the weights are restored at the end.

    A step needs the one before it, so that every rank takes all of them.
    """
    supernet = measurement.supernet
    weights = reading_weights(supernet)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    moved: Columns = {}
    channels = torch.zeros(supernet.space.shape.embed_dim, dtype=torch.float64)
    try:
        for batch in measurement.calibration:
            found = weight_times_gradient(supernet, batch, measurement.loss)
            channels -= found.channels
            for name, weight in weights.items():
                moved[name] = moved.get(name, 0.0) - found.columns[name]
                gradient = found.gradients[name]
                stride = _STRIDE * weight.detach().norm() / gradient.norm().clamp(min=1e-30)
                weight.data.sub_(stride * gradient)
    finally:
        for name, weight in weights.items():
            weight.data.copy_(before[name])
    return collect_units(moved, channels, supernet.space.shape)
