"""What a design has measured, on disk and keyed by content, so that a killed design resumes.

The content is a digest of weights and calibration set (`sensitivity.cache_content`).
"""

from __future__ import annotations

import hashlib
import json
import os
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
        line = json.dumps({"content": self._content, **asdict(effect)}) + "\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
            line = "\n" + line  # a kill cut the line before this one short
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def _read(self, path: Path) -> dict[tuple[int, ...], RemovalEffect]:
        if not path.exists():
            return {}
        found = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            values = _parse(line)
            if values.pop("content", None) == self._content:
                effect = RemovalEffect(**{**values, "removed": tuple(values["removed"])})
                found[effect.removed] = effect
        return found


def _parse(line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


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
    what = f"1 {content} {config.score} {config.loss} {config.seed}"
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
