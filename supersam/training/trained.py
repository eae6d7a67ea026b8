"""The model of a run: before training, or at one of its checkpoints. Imports no deepspeed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from supersam.config import TrainRun, UserError, load_run
from supersam.model import SamSupernet, load_sam
from supersam.model.sam import build_sam
from supersam.runtime.distributed import World
from supersam.runtime.vitals import MANIFEST
from supersam.space import SearchSpace, SubnetSpec, read_subnet
from supersam.training.checkpoint import (
    CheckpointManager,
    Manifest,
    read_weights,
    verify,
)


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
    if not (folder / "run.yaml").is_file():
        raise UserError(f"{folder} is no run: it has no run.yaml; name a folder under runs/")
    return load_run(TrainRun, folder / "run.yaml").model_copy(update={"run": folder})


def choose_subnet(name: str, space: SearchSpace) -> SubnetSpec:
    """largest, medium, smallest, or what a JSON file holds. Raises UserError for anything else."""
    fixed = {
        "largest": space.largest,
        "medium": space.medium,
        "smallest": space.smallest,
    }
    if name in fixed:
        return fixed[name]()
    path = Path(name)
    if not path.is_file():
        raise UserError(f"--subnet {name}: not one of {', '.join(fixed)}, and no such file")
    return read_subnet(path, space)


def find_weights(run: TrainRun, checkpoint: str) -> WeightSource:
    """The weights that last, best, initial or a step number means. Raises UserError."""
    if checkpoint == "initial":
        return WeightSource(step=0)
    checkpoints = CheckpointManager(run.folder, run.checkpoint, World.single())
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


def load_supernet(run: TrainRun, space: SearchSpace, source: WeightSource) -> SamSupernet:
    """The supernet with those weights, on the CPU, in evaluation mode."""
    if source.path is None or source.manifest is None:
        return build_supernet(run, space).eval()
    return restore_supernet(run, space, source.path, source.manifest).eval()


def _step_number(text: str) -> int:
    if not text.isdigit():
        raise UserError(f"--checkpoint {text!r}: use last, best, initial or a step number")
    return int(text)


def build_supernet(run: TrainRun, space: SearchSpace) -> SamSupernet:
    """The supernet before training: random weights, a checkpoint file, or another run's newest."""
    start = run.model.checkpoint
    other_run = start if start is not None and start.is_dir() else None
    sam = load_sam(space.shape, None if other_run else start, seed=run.optim.seed)
    supernet = SamSupernet(sam, space, attention=run.model.attention)
    if other_run is not None:
        _load_run_weights(supernet, other_run, run)
    return supernet


def restore_supernet(
    run: TrainRun, space: SearchSpace, path: Path, manifest: Manifest
) -> SamSupernet:
    """The supernet at a checkpoint. What training began from is not read: it may be gone."""
    with torch.random.fork_rng(devices=[]):
        sam = build_sam(space.shape)
    supernet = SamSupernet(sam, space, attention=run.model.attention)
    supernet.load_state_dict(read_weights(path, manifest))
    return supernet


def _load_run_weights(supernet: SamSupernet, other_run: Path, run: TrainRun) -> None:
    found: tuple[Path, Manifest] | None
    if (other_run / MANIFEST).is_file():  # one checkpoint of it
        found = other_run, verify(other_run)
    else:
        found = CheckpointManager(other_run, run.checkpoint, World.single()).latest()
    if found is None:
        raise UserError(f"model.checkpoint {other_run} is a folder without checkpoints of a run")
    weights = read_weights(*found)
    shapes = {name: tensor.shape for name, tensor in supernet.state_dict().items()}
    if {name: tensor.shape for name, tensor in weights.items()} != shapes:
        raise UserError(
            f"model.checkpoint {other_run} trained a model of other sizes; see its run.yaml"
        )
    supernet.load_state_dict(weights)
