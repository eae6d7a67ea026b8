"""How a subnet is judged: mask metrics, evaluator, intervals."""

import supersam.runtime.light_torchvision  # noqa: F401 - before segment_anything
from supersam.evaluation.evaluator import (
    DivergedError,
    Predictor,
    evaluate,
    evaluate_all,
    require_finite,
    single_mask_ious,
)
from supersam.evaluation.metrics import (
    box_fill_iou,
    mask_iou,
)
from supersam.evaluation.predictor import SamModelPredictor, SubnetPredictor
from supersam.evaluation.priors import Priors, learn_priors
from supersam.evaluation.result import EvalResult, ObjectTable
from supersam.runtime.bootstrap import (
    Difference,
    bootstrap_interval,
    mean_interval,
    paired_difference,
)

__all__ = [
    "Difference",
    "DivergedError",
    "EvalResult",
    "ObjectTable",
    "Predictor",
    "Priors",
    "SamModelPredictor",
    "SubnetPredictor",
    "bootstrap_interval",
    "box_fill_iou",
    "evaluate",
    "evaluate_all",
    "learn_priors",
    "mask_iou",
    "mean_interval",
    "paired_difference",
    "require_finite",
    "single_mask_ious",
]
