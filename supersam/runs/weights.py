"""Which weights of a run are meant: found and verified, not read. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from supersam.config.files import RUN_FILE
from supersam.config import TrainRun, UserError, load_run
from supersam.runs.checkpoints import Manifest, SavedCheckpoints, verify


@dataclass(frozen=True)
class WeightSource:
    """Where the weights of a supernet come from."""

    step: int
    """Optimizer steps taken; 0 before training."""
    path: Path | None = None
    """The checkpoint's folder, verified; None for the weights before training."""
    manifest: Manifest | None = None
    """What the checkpoint says of itself; None before training."""


def read_run(folder: Path) -> TrainRun:
    """The training run of a folder. Raises UserError where there is none."""
    if not (folder / RUN_FILE).is_file():
        raise UserError(f"{folder} is not a run: it has no run.yaml; name a folder under runs/")
    return load_run(TrainRun, folder / RUN_FILE).model_copy(update={"run": folder})


def find_weights(run: TrainRun, checkpoint: str) -> WeightSource:
    """The weights that last, best, initial or a step number means. Raises UserError."""
    if checkpoint == "initial":
        return WeightSource(step=0)
    checkpoints = SavedCheckpoints(run.folder)
    found = checkpoints.latest()
    if found is None:
        raise UserError(f"{run.folder} has no checkpoint yet; train it first")
    path, manifest = found
    if checkpoint != "last":
        step = manifest.state.best_step if checkpoint == "best" else _step_number(checkpoint)
        path = checkpoints.path(step or 0)
        if not path.is_dir():
            there = ", ".join(p.name for p in checkpoints.all())
            raise UserError(f"{run.folder} has no checkpoint {checkpoint!r}; it has {there}")
        manifest = verify(path)
    return WeightSource(manifest.state.step, path, manifest)


def _step_number(text: str) -> int:
    if not text.isdigit():
        raise UserError(f"--checkpoint {text!r}: use last, best, initial or a step number")
    return int(text)
