"""Evaluation data beside a run's training data. Apart from `shards`: no torch, as a search needs it.

Whether training saw the images, and which data it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from supersam.config import TrainRun
from supersam.data.identity import shared_sources
from supersam.data.shards import ShardReader
from supersam.runs.provenance import training_folders
from supersam.runs.weights import WeightSource


@dataclass(frozen=True)
class SeenData:
    """Whether training looked at the evaluation images."""

    seen: bool | None
    """Whether any evaluation image is in a training set; None where that is unknown."""
    detail: str
    """What was found, in words."""


def seen_in_training(run: TrainRun, source: WeightSource, folders: tuple[Path, ...]) -> SeenData:
    """Compare the evaluation's images with the training's, whole sets first, then image by image.

    Where shards of an old version do not hold their images' content, names decide.
    """
    trained_on = [] if source.manifest is None else source.manifest.data
    readers = [ShardReader(folder) for folder in folders]
    same = [str(f) for f, r in zip(folders, readers, strict=True) if r.fingerprint in trained_on]
    if same:
        return SeenData(True, f"{', '.join(same)} is a training set of this run")
    train = training_folders(run)
    missing = [str(folder) for folder in train if not folder.is_dir()]
    if missing:
        return SeenData(None, f"training set {', '.join(missing)} is not here to compare with")
    shared = shared_sources(readers, [ShardReader(folder) for folder in train])
    found = f"{shared.images} evaluation images are in the training sets, compared {shared.how}"
    return SeenData(shared.images > 0, found)


def data_id(folders: Sequence[Path]) -> str:
    """16 hex digits of the content of the evaluation shards."""
    prints = [ShardReader(path).fingerprint for path in folders]
    return hashlib.sha256("".join(prints).encode()).hexdigest()[:16]
