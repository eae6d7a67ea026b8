"""Scores on disk, keyed by what they depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from safetensors.torch import load_file

from supersam.config.design import ImportanceConfig
from supersam.data.sample import Batch
from supersam.design.importance import ScoreLoss, score_units
from supersam.design.units import UnitScores
from supersam.model import SamSupernet
from supersam.runtime.atomic import atomic_file
from supersam.runtime.distributed import World, from_first
from supersam.runtime.tensors import save_tensors


def cached_scores(
    folder: Path,
    content: str,
    supernet: SamSupernet,
    calibration: Sequence[Batch],
    config: ImportanceConfig,
    world: World,
    *,
    loss: ScoreLoss,
) -> UnitScores:
    """`score_units`, or what it gave before for this content and configuration. A collective.

    content: digest of weights and calibration set.
    """
    what = f"1 {content} {config.score} {config.loss} {config.seed}"
    path = folder / f"scores-{hashlib.sha256(what.encode()).hexdigest()[:32]}.safetensors"
    known = from_first(_read(path) if world.is_first else None)
    if known is not None:
        return known
    scores = score_units(
        supernet, calibration, score=config.score, world=world, loss=loss, seed=config.seed
    )
    if world.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            tensors = {field.name: getattr(scores, field.name) for field in fields(scores)}
            save_tensors(tensors, temporary)
    return scores


def _read(path: Path) -> UnitScores | None:
    return UnitScores(**load_file(path)) if path.is_file() else None
