"""Segment Anything made elastic."""

import supersam.runtime.light_torchvision  # noqa: F401 - before segment_anything
from supersam.model.extract import extract_subnet
from supersam.model.sam import load_sam
from supersam.model.supernet import Prediction, SamSupernet, normalize_images

__all__ = [
    "Prediction",
    "SamSupernet",
    "extract_subnet",
    "load_sam",
    "normalize_images",
]
