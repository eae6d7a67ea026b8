"""The checkpoints of a run: which there are, and whether they are as written. No torch."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supersam.config import UserError
from supersam.config.files import CHECKPOINT_MANIFEST, CHECKPOINTS, PROGRESS_FILE
from supersam.runtime.atomic import file_sha256
from supersam.health.records import saved_step

logger = logging.getLogger(__name__)

FORMAT = 2
_READABLE = (1, FORMAT)
"""Format 1 had whole moments, gathered by all ranks."""
_NAME = re.compile(r"step-(\d{6,})")


@dataclass
class TrainState:
    """All that changes during a run besides weights and moments; the whole of what resuming needs.

    The loader's position, the learning rate and the subnet draws follow from `step`.
    """

    step: int = 0
    """Optimizer steps taken."""
    best_score: float | None = None
    """Highest validation score so far; None before the first validation."""
    best_step: int | None = None
    """The step of that score."""
    validated_step: int | None = None
    """The step of the last validation."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    state: TrainState
    order: dict[str, Any]
    """The sample order's constants (`SampleOrder.describe`)."""
    data: list[str]
    """Fingerprints of the training sets."""
    world_size: int
    """Ranks of the run that wrote it; any other number may read it."""
    files: dict[str, str]
    """SHA-256 of each file, by name."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of this software and of torch."""

    @property
    def has_average(self) -> bool:
        """Whether the checkpoint holds a moving average of the weights."""
        return any(name.startswith("average-") for name in self.files)


class SavedCheckpoints:
    """The finished checkpoints of one run folder."""

    def __init__(self, folder: Path) -> None:
        """folder: the run's folder; its checkpoints are in its `checkpoints`."""
        self._run = folder
        self._folder = folder / CHECKPOINTS

    def latest(self) -> tuple[Path, Manifest] | None:
        """The newest checkpoint whose files are all as they were written; None in a new run.

        Raises UserError where the run made progress and no valid checkpoint is left: training must
        not start again from nothing by itself.
        """
        for path in reversed(self.all()):
            try:
                return path, verify(path)
            except UserError as fault:
                logger.warning("passing over a damaged checkpoint: %s", fault)
        if (self._run / PROGRESS_FILE).exists():
            raise UserError(
                f"{self._run} saved a checkpoint at step {saved_step(self._run)}, and no valid one "
                f"is left in {self._folder}; restore one, or start anew in another folder with "
                "--run"
            )
        return None

    def all(self) -> list[Path]:
        """Folders of the finished checkpoints, oldest first."""
        if not self._folder.is_dir():
            return []
        named = [(m, p) for p in self._folder.iterdir() if (m := _NAME.fullmatch(p.name))]
        return [path for _, path in sorted(named, key=lambda pair: int(pair[0][1]))]

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` is or would be."""
        return self._folder / f"step-{step:06d}"


def verify(path: Path) -> Manifest:
    """The manifest of a checkpoint whose files all have their hashes.

    Raises UserError that names the file that is missing or changed.
    """
    try:
        values = json.loads((path / CHECKPOINT_MANIFEST).read_text(encoding="utf-8"))
        version = values.pop("format")
        state = TrainState(**values["state"])
        if "validated_step" not in values["state"]:  # 0.1.0 validated before it saved
            state.validated_step = state.step
        manifest = Manifest(**{**values, "state": state})
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise UserError(f"{path / CHECKPOINT_MANIFEST} is missing or damaged ({fault})") from None
    if version not in _READABLE:
        raise UserError(f"{path} has format {version}; this software reads 1 to {FORMAT}")
    for name, digest in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{file} is missing")
        if file_sha256(file) != digest:
            raise UserError(f"{file} is damaged: its content is not what was written")
    return manifest
