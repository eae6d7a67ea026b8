"""Validation during training: a few fixed subnets, such as the largest, on held-out images."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping

from supersam.config import CheckpointConfig
from supersam.data.loader import EvalLoader
from supersam.data.sample import EvalImage
from supersam.evaluation import Predictor, SubnetPredictor, evaluate
from supersam.evaluation.overlay import draw_overlays
from supersam.model import SamSupernet
from supersam.runtime.distributed import World
from supersam.runtime.metrics import MetricWriter
from supersam.space import SubnetSpec

logger = logging.getLogger(__name__)


class Validator:
    """Scores a few fixed subnets and draws the masks of the same few images each time."""

    def __init__(
        self,
        subnets: Mapping[str, SubnetSpec],
        images: EvalLoader,
        world: World,
        writer: MetricWriter,
        config: CheckpointConfig,
        *,
        bf16: bool,
    ) -> None:
        """subnets: by their names in metrics. images: this rank's share of the held-out ones."""
        self._subnets = subnets
        self._images = images
        self._world = world
        self._writer = writer
        self._config = config
        self._bf16 = bf16
        self._shown: list[EvalImage] | None = None
        self.last: dict[str, float] = {}
        """The newest scores by metric name."""

    def validate(self, supernet: SamSupernet, step: int) -> float:
        """Return the mean mIoU of the subnets, the same on every rank. A collective."""
        supernet.eval()
        predictors: dict[str, Predictor] = {
            n: SubnetPredictor(supernet, s, bf16=self._bf16) for n, s in self._subnets.items()
        }
        results = {n: evaluate(p, self._images, boundary=False) for n, p in predictors.items()}
        self.last = {f"val/miou/{name}": result.miou for name, result in results.items()}
        self.last |= {f"val/iou_error/{n}": r.iou_estimate_mae for n, r in results.items()}
        self.last["val/miou/box_fill"] = next(iter(results.values())).box_fill_miou
        self._writer.scalars(self.last, step)
        self._draw(predictors, step)
        scores = [result.miou for result in results.values()]
        listed = "  ".join(f"{name} {result.miou:.3f}" for name, result in results.items())
        logger.info("step %d  validation mIoU: %s", step, listed)
        return sum(scores) / len(scores)

    def _draw(self, predictors: dict[str, Predictor], step: int) -> None:
        if not self._world.is_first or self._config.overlay_images == 0:
            return
        if self._shown is None:
            wanted = self._config.overlay_images
            spread = max(1, len(self._images) // wanted)
            self._shown = list(itertools.islice(self._images, 0, wanted * spread, spread))
        picture = draw_overlays(self._shown, predictors)
        columns = ", ".join(["prompts", "truth", *predictors])
        self._writer.image(f"val/masks: {columns}", picture, step)
