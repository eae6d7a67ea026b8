"""Calibration batches of generated images, and the task's loss on them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from supersam.config import LossConfig
from supersam.config.design import CalibrationConfig
from supersam.data.sample import Batch
from supersam.data.shards import ShardReader
from supersam.design.calibration import load_calibration
from supersam.model import Prediction
from supersam.model.losses import subnet_loss

SIDE = 80  # of the tiny encoder


def tiny_calibration(shards: Path, *, images: int = 6, batch: int = 2) -> list[Batch]:
    config = CalibrationConfig(images=images, batch=batch, prompts_per_image=3)
    return load_calibration([ShardReader(shards)], config, side=SIDE)


def task_loss(prediction: Prediction, batch: Batch) -> Tensor:
    return subnet_loss(prediction, batch, LossConfig(), teacher=None).total
