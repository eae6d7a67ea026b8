"""The calibration set: a few training samples as batches, the same on every rank and machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from supersam.config import DataConfig, UserError
from supersam.config.data import AugmentConfig
from supersam.config.design import CalibrationConfig
from supersam.data.dataset import ShardDataset
from supersam.data.loader import collate
from supersam.data.sample import Batch
from supersam.data.shards import ShardReader


def load_calibration(
    readers: Sequence[ShardReader], config: CalibrationConfig, *, side: int
) -> list[Batch]:
    """The batches of `config`, cropped as it says and not flipped; `side`: the model's, pixels.

    Raises UserError where the shards hold fewer images.
    """
    total = sum(reader.num_images for reader in readers)
    if total < config.images:
        raise UserError(
            f"--calibration.images {config.images}, and the shards hold {total} images; ask for "
            f"--calibration.images {total}, or name more shards with --data"
        )
    data = DataConfig(
        prompts_per_image=config.prompts_per_image,
        prompt=config.prompt,
        box_jitter=config.box_jitter,
        augment=AugmentConfig(flip_horizontal=0.0, crop_px=config.crop_px),
    )
    dataset = ShardDataset(readers, data, side=side, seed=config.seed)
    return draw_batches(dataset, images=config.images, batch=config.batch)


def draw_batches(dataset: ShardDataset, *, images: int, batch: int) -> list[Batch]:
    """Up to `images` samples of `dataset`, evenly spread, in batches of `batch`."""
    first = np.cumsum([0, *(reader.num_images for reader in dataset.readers)])
    total = int(first[-1])
    count = min(images, total)
    places = [i * total // count for i in range(count)]
    sets = np.searchsorted(first, places, side="right") - 1
    samples = [dataset[w, p - int(first[w]), 0] for w, p in zip(sets.tolist(), places, strict=True)]
    return [collate(samples[first : first + batch]) for first in range(0, count, batch)]


def digest_batches(batches: Sequence[Batch]) -> str:
    """SHA-256 of everything that the batches hold."""
    digest = hashlib.sha256()
    for batch in batches:
        for tensor in (batch.images, batch.sizes, batch.points, batch.labels, batch.masks):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def digest_weights(model: torch.nn.Module) -> str:
    """SHA-256 of a model's weights and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
