"""The model of a run: before training, or at one of its checkpoints. Imports no deepspeed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from supersam.config.files import CHECKPOINT_MANIFEST, RUN_FILE
from supersam.config import ModelConfig, TrainRun, UserError, load_run
from supersam.model import SamSupernet, load_sam
from supersam.model.checkpoint_file import read_checkpoint
from supersam.model.input_size import fit_positions
from supersam.model.sam import build_sam, infer_model, infer_shape
from supersam.space import EncoderShape, SearchSpace, published_space, resolve_shape
from supersam.runs.checkpoint_io import read_average, read_weights
from supersam.runs.checkpoints import Manifest, SavedCheckpoints, verify
from supersam.runs.weights import WeightSource


def load_supernet(run: TrainRun, space: SearchSpace, source: WeightSource) -> SamSupernet:
    """Load the supernet with those weights, on the CPU, in evaluation mode.

    They are the moving average of the weights where the run kept one.
    """
    if source.path is None or source.manifest is None:
        return build_supernet(run, space).eval()
    return _restored(run, space, _weights_to_use(source.path, source.manifest)).eval()


def load_model(
    checkpoint: Path, *, image_size: int | None = None
) -> tuple[SamSupernet, TrainRun | None]:
    """Load the whole model that a checkpoint holds, in evaluation mode, and the run it comes from.

    checkpoint: a file in the format of `sam_vit_b_01ec64.pth`, whose run is None, or the folder of
    a run or of one of its checkpoints. image_size: of its input, pixels, where it shall be another
    than its own. Raises UserError for anything else.
    """
    if not checkpoint.is_dir():
        state = read_checkpoint(checkpoint)
        shape = infer_shape(state)
        if shape is None:
            raise UserError(f"checkpoint {checkpoint} is {infer_model(state)}")
        shape = _at_size(shape, image_size)
        return SamSupernet(load_sam(shape, checkpoint), published_space(shape)), None
    is_checkpoint = (checkpoint / CHECKPOINT_MANIFEST).is_file()
    file = (checkpoint.parent.parent if is_checkpoint else checkpoint) / RUN_FILE
    if not file.is_file():
        raise UserError(
            f"checkpoint {checkpoint} is not a run: it has no run.yaml; name a folder of runs/"
        )
    run = load_run(TrainRun, file)
    model = resized(run.model, image_size).model_copy(update={"checkpoint": checkpoint})
    space = published_space(resolve_shape(model))
    return build_supernet(run.model_copy(update={"model": model}), space).eval(), run


def resized(model: ModelConfig, image_size: int | None) -> ModelConfig:
    """Return `model` with another input size; None keeps its own."""
    return model if image_size is None else model.model_copy(update={"image_size": image_size})


def _at_size(shape: EncoderShape, image_size: int | None) -> EncoderShape:
    try:
        return shape if image_size is None else replace(shape, image_size=image_size)
    except ValueError as fault:
        raise UserError(f"--image-size: {fault}") from fault


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
    """Restore the supernet of a checkpoint to train on: its weights, not their average.

    What training began from is not read, as it may be gone.
    """
    return _restored(run, space, read_weights(path, manifest))


def _restored(run: TrainRun, space: SearchSpace, weights: dict[str, Tensor]) -> SamSupernet:
    with torch.random.fork_rng(devices=[]):
        sam = build_sam(space.shape)
    supernet = SamSupernet(sam, space, attention=run.model.attention)
    supernet.load_state_dict(weights)
    return supernet


def _load_run_weights(supernet: SamSupernet, other_run: Path, run: TrainRun) -> None:
    found: tuple[Path, Manifest] | None
    if (other_run / CHECKPOINT_MANIFEST).is_file():  # one checkpoint of it
        found = other_run, verify(other_run)
    else:
        found = SavedCheckpoints(other_run).latest()
    if found is None:
        raise UserError(f"--model.checkpoint {other_run} is a folder without checkpoints of a run")
    weights = fit_positions(_weights_to_use(*found), supernet.space.shape, other_run)
    shapes = {name: tensor.shape for name, tensor in supernet.state_dict().items()}
    if {name: tensor.shape for name, tensor in weights.items()} != shapes:
        raise UserError(
            f"--model.checkpoint {other_run} trained a model of other sizes; see its run.yaml"
        )
    supernet.load_state_dict(weights)


def _weights_to_use(path: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Return the weights to evaluate, export or start from: averaged where the run did so."""
    return read_weights(path, manifest) | read_average(path, manifest)
