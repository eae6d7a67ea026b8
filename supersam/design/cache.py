"""What a design has measured, on disk and keyed by content, so that a killed design resumes.

The content is a digest of weights and calibration set (`sensitivity.cache_content`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from supersam.config.design import ImportanceConfig
from supersam.data.sample import Batch
from supersam.design.scores import ScoreLoss, score_units
from supersam.design.units import UnitScores
from supersam.model import SamSupernet
from supersam.runtime.atomic import atomic_file
from supersam.runtime.distributed import World, from_first
from supersam.runtime.jsonl import append_jsonl, read_jsonl
from supersam.runtime.tensors import save_tensors


@dataclass(frozen=True)
class RemovalEffect:
    """How the model does on the calibration set without some layers."""

    removed: tuple[int, ...]
    """Removed layers, ascending."""
    miou: float
    """Mean IoU of the single mask with its object, in mask-logit cells."""
    embedding_distance: float
    """Distance to the whole model's image embedding, as a share of its norm."""
    by_batch: tuple[tuple[float, int], ...] = ()
    """Of each batch of images the sum of IoU and the number of objects; empty where an older
    version measured."""


class EffectCache:
    """Removal effects as JSON lines in one file; lines of other contents stay and are ignored."""

    def __init__(self, path: Path | None, content: str, *, is_first: bool = True) -> None:
        """path: None keeps the effects in memory only. A collective."""
        # Rank 0 alone reads and appends: over a network file system two ranks may see two files.
        self._path = path if is_first else None
        self._content = hashlib.sha256(content.encode()).hexdigest()[:32]
        self._known = from_first({} if self._path is None else self._read(self._path))

    def __len__(self) -> int:
        return len(self._known)

    def get(self, removed: tuple[int, ...]) -> RemovalEffect | None:
        """Return the effect of removing these layers; None if it was not measured."""
        return self._known.get(removed)

    def add(self, effect: RemovalEffect) -> None:
        """Store an effect. All ranks call it with the same one."""
        self._known[effect.removed] = effect
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        append_jsonl(self._path, {"content": self._content, **asdict(effect)})

    def _read(self, path: Path) -> dict[tuple[int, ...], RemovalEffect]:
        mine = [effect for content, effect in read_jsonl(path, _parse) if content == self._content]
        return {effect.removed: effect for effect in mine}


def _parse(values: dict[str, Any]) -> tuple[str, RemovalEffect]:
    content = values.pop("content")
    values["removed"] = tuple(values["removed"])
    values["by_batch"] = tuple(map(tuple, values.get("by_batch", ())))
    return content, RemovalEffect(**values)


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
    """Return `score_units`, or its stored result for this content and configuration.

    A collective.
    """
    what = f"2 {content} {config.score} {config.loss} {config.seed}"
    path = folder / f"scores-{hashlib.sha256(what.encode()).hexdigest()[:32]}.safetensors"
    known = from_first(_read_scores(path) if world.is_first else None)
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


def _read_scores(path: Path) -> UnitScores | None:
    return UnitScores(**load_file(path)) if path.is_file() else None
