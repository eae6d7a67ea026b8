"""Importance of MLP units, attention heads and embedding channels, on a calibration set."""

from supersam.design.scores.gradients import embedding_loss
from supersam.design.scores.measurement import ScoreLoss
from supersam.design.scores.registry import SCORES, score_units

__all__ = ["SCORES", "ScoreLoss", "embedding_loss", "score_units"]
