"""How a subnet is judged: mask metrics, evaluator, intervals."""

import supersam.runtime.light_torchvision  # noqa: F401 - before segment_anything
from supersam.evaluation.evaluator import (
    DivergedError,
    Predictor,
    as_stored,
    evaluate,
    evaluate_all,
    require_finite,
    score_image,
    single_mask_ious,
)
from supersam.evaluation.metrics import (
    SIZE_BUCKETS,
    SizeBucket,
    boundary_band_px,
    boundary_iou,
    box_fill_iou,
    mask_iou,
)
from supersam.evaluation.predictor import SamModelPredictor, SubnetPredictor
from supersam.evaluation.priors import Priors, learn_priors
from supersam.evaluation.result import EvalResult, ObjectTable, SizeScore
from supersam.evaluation.table import format_table, remarks
from supersam.runtime.bootstrap import (
    Difference,
    bootstrap_interval,
    mean_interval,
    paired_difference,
)

__all__ = [
    "SIZE_BUCKETS",
    "Difference",
    "DivergedError",
    "EvalResult",
    "ObjectTable",
    "Predictor",
    "Priors",
    "SamModelPredictor",
    "SizeBucket",
    "SizeScore",
    "SubnetPredictor",
    "as_stored",
    "bootstrap_interval",
    "boundary_band_px",
    "boundary_iou",
    "box_fill_iou",
    "evaluate",
    "evaluate_all",
    "format_table",
    "learn_priors",
    "mask_iou",
    "mean_interval",
    "paired_difference",
    "remarks",
    "require_finite",
    "score_image",
    "single_mask_ious",
]
