"""Small things that many tests share: a tiny encoder, its search space, supernets, shards."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from supersam.config import SourceConfig, SpaceConfig, SyntheticConfig, TrainRun
from supersam.data.convert import convert
from supersam.data.shards import ShardReader
from supersam.model import SamSupernet, load_sam
from supersam.runs.checkpoint_io import CheckpointManager
from supersam.runs.checkpoints import TrainState
from supersam.runs.folder import prepare_run_folder
from supersam.runtime.distributed import World
from supersam.space import EncoderShape, SearchSpace, build_space
from tests.export.runs import tiny_export_run

torch.set_num_threads(1)
# Tests that a shell script began in the background inherit that Ctrl-C is ignored, and so would
# the commands that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = EncoderShape(96, 4, 3, (1, 3), image_size=80, window_size=3)
"""Five patches a side in windows of three: windows are padded; two of four layers are global."""

MakeSupernet = Callable[..., SamSupernet]


@pytest.fixture(scope="session")
def tiny_shape() -> EncoderShape:
    return TINY


@pytest.fixture(scope="session")
def tiny_space() -> SearchSpace:
    """Every dimension elastic; layer 0 is a layer like any other."""
    config = SpaceConfig(
        removable=(0, 1, 2),
        elastic_heads=True,
        elastic_embed=True,
        head_fractions=(1 / 3, 2 / 3, 1.0),
        embed_fractions=(1 / 3, 2 / 3, 1.0),
        width_multiple=32,
    )
    return build_space(config, TINY)


@pytest.fixture(scope="session")
def tiny_resolutions(tiny_space: SearchSpace) -> SearchSpace:
    """The same, and three input sizes: the least is one window, the largest the model's own."""
    return replace(tiny_space, resolutions=(48, 64, 80))


@pytest.fixture(scope="session")
def make_supernet(tiny_space: SearchSpace) -> MakeSupernet:
    """Builds supernets of random weights, none of them zero."""

    def make(
        space: SearchSpace = tiny_space, *, attention: str = "reference", seed: int = 0
    ) -> SamSupernet:
        supernet = SamSupernet(load_sam(space.shape, seed=seed), space, attention=attention)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in supernet.parameters():  # biases and positions start at zero or one
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        return supernet

    return make


@pytest.fixture(scope="session")
def synthetic_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 small images in finished shards."""
    folder = tmp_path_factory.mktemp("shards") / "train"
    synthetic = SyntheticConfig(images=24, size_px=64, max_objects=6)
    convert(SourceConfig(kind="synthetic", synthetic=synthetic), folder, workers=1)
    return folder


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
