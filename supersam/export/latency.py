"""How fast an exported model is, and on what: a line of its card."""

from __future__ import annotations

from typing import Any

from segment_anything.modeling import Sam

from supersam.config.search import LatencyConfig
from supersam.evaluation import SamModelPredictor
from supersam.evaluation.latency import predictor_latency
from supersam.runtime.device import describe_device


def describe_latency(sam: Sam) -> dict[str, Any]:
    """Median and spread of one image and prompt on the model's device, and what the device is."""
    config = LatencyConfig()
    latency = predictor_latency(
        SamModelPredictor(sam), config, side=sam.image_encoder.img_size, device=sam.device
    )
    return {
        "median_ms": latency.median_ms,
        "iqr_ms": latency.iqr_ms,
        "warmup": config.warmup,
        "repeats": config.repeats,
        "precision": "fp32",
        "device": describe_device(sam.device),
    }
