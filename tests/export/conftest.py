"""A tiny training run with a checkpoint, without training."""

from pathlib import Path

import pytest

from supersam.config import SourceConfig, SyntheticConfig, TrainRun
from supersam.data.convert import convert
from supersam.data.shards import ShardReader
from supersam.model import SamSupernet
from supersam.runtime.distributed import World
from supersam.training.checkpoint import CheckpointManager, TrainState
from supersam.training.run_folder import prepare_run_folder
from tests.export.runs import tiny_export_run


@pytest.fixture(scope="session")
def held_out_shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "val"
    synthetic = SyntheticConfig(images=5, size_px=64, max_objects=4, seed=1)
    convert(SourceConfig(kind="synthetic", synthetic=synthetic), folder, workers=1)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, synthetic_shards, held_out_shards, make_supernet) -> TrainRun:
    """A run whose newest checkpoint is of step 3."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run = tiny_export_run(folder, synthetic_shards, held_out_shards)
    supernet: SamSupernet = make_supernet(prepare_run_folder(run))
    CheckpointManager(folder, run.checkpoint, World.single()).save(
        supernet,
        iter(()),
        TrainState(step=3),
        order={},
        data=[ShardReader(synthetic_shards).fingerprint],
        versions={},
    )
    return run
