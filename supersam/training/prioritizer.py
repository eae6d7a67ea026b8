"""Parameter prioritization during training: weights, fp32 copies and moments move together."""

from __future__ import annotations

import logging
from functools import partial

import torch
from torch import Tensor

from supersam.config import TrainRun
from supersam.data.dataset import ShardDataset
from supersam.data.sample import Batch
from supersam.design import (
    embedding_loss,
    permute_tensor,
    prioritize_parameters,
    score_units,
)
from supersam.design.calibration import draw_batches
from supersam.model import Prediction, SamSupernet
from supersam.model.losses import subnet_loss
from supersam.runtime.device import computes_bf16
from supersam.runtime.distributed import World
from supersam.training.engine import Engine

logger = logging.getLogger(__name__)


class Prioritizer:
    """Puts the most important units first, before the steps that `run.prioritize` names.

    What it does depends on the step and the weights alone.
    """

    def __init__(
        self,
        run: TrainRun,
        world: World,
        *,
        supernet: SamSupernet,
        engine: Engine,
        dataset: ShardDataset,
        steps_per_epoch: int,
    ) -> None:
        """dataset: the training images, a few of which the scores are measured on."""
        self._run = run
        self._world = world
        self._supernet = supernet
        self._engine = engine
        self._steps_per_epoch = steps_per_epoch
        config = run.prioritize
        self._calibration = draw_batches(dataset, images=config.images, batch=config.batch)

    def is_due(self, step: int) -> bool:
        """Tell whether to reorder before `step`."""
        config = self._run.prioritize
        if config.when == "start":
            return step == 0
        every = self._steps_per_epoch if config.when == "epoch" else config.every_steps
        return step % every == 0

    def prioritize(self, step: int) -> None:
        """Score, and reorder weights and optimizer. A collective."""
        config = self._run.prioritize
        device = self._supernet.pixel_mean.device
        bf16 = computes_bf16(self._run.engine.precision, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            scores = score_units(
                self._supernet,
                self._calibration,
                score=config.score,
                world=self._world,
                loss=self._task_loss if config.loss == "task" else embedding_loss(config.seed),
                seed=config.seed,
            )
        order = prioritize_parameters(self._supernet, scores, dimensions=config.dimensions)
        if not order.is_identity:
            shape = self._supernet.space.shape
            self._engine.reorder(partial(permute_tensor, order=order, shape=shape))
        logger.info("step %d  units reordered by %s", step, config.score)

    def _task_loss(self, prediction: Prediction, batch: Batch) -> Tensor:
        return subnet_loss(prediction, batch, self._run.loss, teacher=None).total
