"""A tiny trained run, and searches of it in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from supersam.config import SearchRun, SourceConfig, SyntheticConfig, TrainRun, merge
from supersam.config.sections import CheckpointConfig
from supersam.data.convert import convert
from supersam.data.shards import ShardReader
from supersam.runs.checkpoint_io import CheckpointManager
from supersam.runs.checkpoints import TrainState
from supersam.runs.folder import prepare_run_folder
from supersam.runs.supernet import build_supernet
from supersam.runtime.distributed import World
from supersam.search.front import SearchResult
from supersam.search.session import run_search
from supersam.space import read_space, resolve_shape

TINY: dict[str, Any] = {
    "model": {
        "name": "tiny", "embed_dim": 32, "depth": 4, "num_heads": 2, "global_layers": [1, 3],
        "image_size": 64, "window_size": 2,
    },
    "space": {"removable": [1, 2], "width_multiple": 16, "elastic_heads": True},
    "engine": {"device": "cpu", "threads": 1},
}  # fmt: skip
SEARCH: dict[str, Any] = {
    "trials": 12,
    "population": 4,
    "chunk": 2,
    "searcher": "nsga2",
    "device": "cpu",
    "threads": 1,
    "protocol": {"images": 6, "images_per_batch": 2},
    "cluster": {"cluster": "inline"},
}


def make_shards(folder: Path, *, images: int, seed: int) -> Path:
    """A folder of generated shards."""
    synthetic = SyntheticConfig(images=images, size_px=64, max_objects=4, seed=seed)
    convert(SourceConfig(kind="synthetic", synthetic=synthetic), folder)
    return folder


def make_run(folder: Path, shards: Path, *, spread: float = 0.05, **changes: Any) -> TrainRun:
    """A run with a checkpoint whose weights are random: nothing here depends on their quality.

    spread: of what is added to the encoder's weights; NaN makes a diverged run.
    """
    place = {
        "run": str(folder),
        "data": {"train": [str(shards / "train")], "val": [str(shards / "val")]},
    }
    run = TrainRun.model_validate(merge(TINY, place, changes))
    prepare_run_folder(run)
    space = read_space(folder / "space.yaml", resolve_shape(run.model))
    supernet = build_supernet(run, space)
    torch.manual_seed(0)
    for parameter in supernet.image_encoder.parameters():
        parameter.data += spread * torch.randn_like(parameter)
    CheckpointManager(folder, CheckpointConfig(), World.single()).save(
        supernet,
        iter(()),
        TrainState(step=7),
        order={},
        data=[ShardReader(path).fingerprint for path in run.data.train],
        versions={},
    )
    return run


def tiny_search(run: TrainRun, out: Path, /, **changes: Any) -> SearchRun:
    """What a tiny search asks for."""
    place = {"run": str(run.folder), "out": str(out)}
    return SearchRun.model_validate(merge(SEARCH, place, changes))


def search(run: TrainRun, out: Path, /, **changes: Any) -> SearchResult:
    """Search in this process."""
    return run_search(tiny_search(run, out, **changes))
