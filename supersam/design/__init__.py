"""The search space, designed from weights and a calibration set."""

from supersam.design.designer import design_space
from supersam.design.prioritize import FunctionProbe, prioritize_parameters
from supersam.design.scores import ScoreLoss, embedding_loss, score_units
from supersam.design.sensitivity import RemovalMeter, Sensitivity, scan_sensitivity
from supersam.design.units import UnitScores, permute_tensor, rank_units

__all__ = [
    "RemovalMeter",
    "FunctionProbe",
    "ScoreLoss",
    "Sensitivity",
    "UnitScores",
    "design_space",
    "embedding_loss",
    "permute_tensor",
    "prioritize_parameters",
    "rank_units",
    "scan_sensitivity",
    "score_units",
]
