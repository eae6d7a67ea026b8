"""How a subnet is judged: mask metrics, evaluator, intervals."""

from supersam.evaluation.bootstrap import bootstrap_interval
from supersam.evaluation.evaluator import (
    DivergedError,
    Predictor,
    evaluate,
    require_finite,
    score_image,
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
from supersam.evaluation.result import EvalResult, ObjectTable, SizeScore, format_table
from supersam.evaluation.single import single_mask_ious

__all__ = [
    "SIZE_BUCKETS",
    "DivergedError",
    "EvalResult",
    "ObjectTable",
    "Predictor",
    "SamModelPredictor",
    "SizeBucket",
    "SizeScore",
    "SubnetPredictor",
    "bootstrap_interval",
    "boundary_band_px",
    "boundary_iou",
    "box_fill_iou",
    "evaluate",
    "format_table",
    "mask_iou",
    "require_finite",
    "score_image",
    "single_mask_ious",
]
