"""Structured pruning: what the model loses without each layer, alone and one after the other.

The residual stream passes a removed layer by. The work of a round, sets of layers x batches, is
shared among the ranks, and its results are added in the same order on all of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from supersam.config.design import ScanConfig
from supersam.data.sample import Batch
from supersam.design.cache import EffectCache, RemovalEffect
from supersam.design.calibration import digest_batches, digest_weights
from supersam.evaluation import mask_iou
from supersam.model import SamSupernet
from supersam.runtime.bootstrap import mean_interval
from supersam.runtime.distributed import World, gather_objects
from supersam.space import EncoderShape

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sensitivity:
    """What each layer is worth to a model."""

    whole: RemovalEffect
    """The effect of removing nothing."""
    alone: tuple[RemovalEffect, ...]
    """Each layer removed alone, by layer."""
    greedy: tuple[RemovalEffect, ...]
    """Greedy removal: one layer more in each entry, the one whose loss hurts least."""

    @property
    def greedy_order(self) -> tuple[int, ...]:
        """The layers that greedy removal took, in that order."""
        sets = [frozenset[int]()] + [frozenset(effect.removed) for effect in self.greedy]
        return tuple(next(iter(b - a)) for a, b in zip(sets, sets[1:], strict=False))

    def drop_interval(self, effect: RemovalEffect) -> tuple[float, float] | None:
        """Return the 95 % interval of the mIoU that `effect` costs, batches of images resampled.

        None where there are fewer than two batches, or their scores were not kept.
        """
        if not self.whole.by_batch or len(self.whole.by_batch) != len(effect.by_batch):
            return None
        whole, after = (np.array(e.by_batch, float)[:, 0] for e in (self.whole, effect))
        objects = np.array(effect.by_batch, float)[:, 1].astype(int)
        lost = np.repeat((whole - after) / np.maximum(1, objects), objects)
        return mean_interval(lost, np.repeat(np.arange(len(objects)), objects))

    def predicted_drop(self, removed: Sequence[int]) -> float:
        """Predict the mIoU that a set of layers costs: the sum of what each costs alone."""
        return sum(self.whole.miou - self.alone[layer].miou for layer in removed)

    def predicted_distance(self, removed: Sequence[int]) -> float:
        """Predict the embedding distance by the same rule."""
        return sum(self.alone[layer].embedding_distance for layer in removed)


class RemovalMeter:
    """Measures sets of removed layers on a calibration set, each set once."""

    def __init__(
        self,
        supernet: SamSupernet,
        calibration: Sequence[Batch],
        *,
        world: World | None = None,
        cache: EffectCache | None = None,
    ) -> None:
        """calibration: the same batches on every rank. A collective with a `cache` or not."""
        self._supernet = supernet.eval()
        self._batches = calibration
        self._world = world or World.single()
        self._cache = EffectCache(None, "") if cache is None else cache
        self._references: dict[int, Tensor] = {}
        self.num_measured = 0
        """Sets measured here rather than found in the cache."""

    @property
    def depth(self) -> int:
        """Layers of the encoder."""
        return self._supernet.space.shape.depth

    def measure(self, sets: Sequence[Sequence[int]]) -> list[RemovalEffect]:
        """Measure the effect of removing each set of layers. A collective."""
        wanted = [tuple(sorted(removed)) for removed in sets]
        missing = [s for s in dict.fromkeys(wanted) if self._cache.get(s) is None]
        # Pieces as small as keep every rank busy: a kill loses no more than one of them.
        at_once = math.ceil(self._world.world_size / len(self._batches))
        for first in range(0, len(missing), at_once):
            for effect in self._measure_together(missing[first : first + at_once]):
                self._cache.add(effect)
                self.num_measured += 1
        found = [self._cache.get(removed) for removed in wanted]
        return [effect for effect in found if effect is not None]

    def _measure_together(self, sets: Sequence[tuple[int, ...]]) -> list[RemovalEffect]:
        items = [(s, b) for s in range(len(sets)) for b in range(len(self._batches))]
        mine = {
            (s, b): self._score(sets[s], b)
            for s, b in items[self._world.rank :: self._world.world_size]
        }
        scores = {key: value for part in gather_objects(mine) for key, value in part.items()}
        return [
            _summarize(removed, [scores[s, b] for b in range(len(self._batches))])
            for s, removed in enumerate(sets)
        ]

    @torch.no_grad()
    def _score(self, removed: tuple[int, ...], index: int) -> _BatchScore:
        batch = self._batches[index].to(self._supernet.pixel_mean.device)
        reference = self._reference(index, batch)
        with self._supernet.activated(self._supernet.space.largest().without(*removed)):
            embedding = self._supernet.encode(batch.images, batch.sizes)
            masks = self._supernet.decode_single(embedding, batch.points, batch.labels)
        iou = mask_iou(masks > 0, batch.masks > 127)[batch.valid]
        distance = (embedding - reference).flatten(1).norm(dim=1)
        relative = distance / reference.flatten(1).norm(dim=1)
        return _BatchScore(
            iou=float(iou.double().sum()),
            objects=int(batch.valid.sum()),
            distance=float(relative.double().sum()),
            images=len(batch.images),
        )

    def _reference(self, index: int, batch: Batch) -> Tensor:
        """The whole model's embedding of a batch."""
        if index not in self._references:
            with self._supernet.activated(self._supernet.space.largest()):
                embedding = self._supernet.encode(batch.images, batch.sizes)
            self._references[index] = embedding.cpu()
        return self._references[index].to(batch.images.device)


def scan_sensitivity(
    supernet: SamSupernet,
    calibration: Sequence[Batch],
    config: ScanConfig | None = None,
    *,
    world: World | None = None,
    cache: EffectCache | None = None,
) -> Sensitivity:
    """Remove every layer alone, then greedily as many as `config` says. A collective.

    Any number of ranks finds the same numbers; what `cache` knows is not measured again.
    """
    config = config or ScanConfig()
    meter = RemovalMeter(supernet, calibration, world=world, cache=cache)
    depth = meter.depth
    most = depth // 2 if config.max_removed is None else min(config.max_removed, depth - 1)
    whole, *alone = meter.measure([(), *((layer,) for layer in range(depth))])
    logger.info("whole model: mIoU %.3f on the calibration set", whole.miou)
    path: list[RemovalEffect] = []
    for _ in range(most):
        gone = path[-1].removed if path else ()
        fixed = _fixed_layers(supernet.space.shape, gone, config.keep_global)
        candidates = [(*gone, layer) for layer in range(depth) if layer not in (*gone, *fixed)]
        if not candidates:
            break
        path.append(min(meter.measure(candidates), key=lambda effect: _harm(effect, config)))
        logger.info("without %s: mIoU %.3f", list(path[-1].removed), path[-1].miou)
    return Sensitivity(whole=whole, alone=tuple(alone), greedy=tuple(path))


def cache_content(supernet: SamSupernet, calibration: Sequence[Batch]) -> str:
    """Digest all that a measurement depends on besides the layers: weights, calibration set."""
    return f"1 {digest_weights(supernet)} {digest_batches(calibration)}"


@dataclass(frozen=True)
class _BatchScore:
    """Sums over a batch."""

    iou: float
    objects: int
    distance: float
    images: int


def _summarize(removed: tuple[int, ...], parts: Sequence[_BatchScore]) -> RemovalEffect:
    objects, images = sum(part.objects for part in parts), sum(part.images for part in parts)
    return RemovalEffect(
        removed=removed,
        miou=sum(part.iou for part in parts) / max(1, objects),
        embedding_distance=sum(part.distance for part in parts) / images,
        by_batch=tuple((part.iou, part.objects) for part in parts),
    )


def _fixed_layers(shape: EncoderShape, gone: Sequence[int], keep_global: int) -> list[int]:
    """Return the global-attention layers that must stay because too few of them are left."""
    left = [layer for layer in shape.global_layers if layer not in gone]
    return left if len(left) <= keep_global else []


def _harm(effect: RemovalEffect, config: ScanConfig) -> float:
    return -effect.miou if config.by == "miou" else effect.embedding_distance
