"""A run that is stopped and resumed, on this or another number of ranks, is the run unbroken."""

from __future__ import annotations

import contextlib
import json
import os
import signal

import pytest
import torch
from torch import Tensor

from supersam.config import TrainRun
from supersam.runs.checkpoint_io import CheckpointManager, read_moments, read_weights
from supersam.runs.folder import prepare_run_folder
from supersam.runtime.distributed import World
from supersam.training.session import train
from supersam.training.trainer import InterruptedRunError, Trainer
from tests.distributed.ranks import run_ranks
from tests.training.runs import tiny_run

pytestmark = pytest.mark.slow


def train_and_stop(run: TrainRun, stop_after: int) -> None:
    """Train until the last rank gets SIGTERM in the middle of a step; all must stop at its end."""
    original = Trainer.train_step

    def step_then_signal(trainer: Trainer, batches: object) -> None:
        if (
            trainer.state.step + 1 == stop_after
            and trainer.world.rank + 1 == trainer.world.world_size
        ):
            os.kill(os.getpid(), signal.SIGTERM)
        original(trainer, batches)

    Trainer.train_step = step_then_signal
    with contextlib.suppress(InterruptedRunError):
        train(run)


def start(run: TrainRun, world_size: int, *, stop_after: int = 0) -> None:
    prepare_run_folder(run)
    assert run_ranks(world_size, train_and_stop, run, stop_after) == [0] * world_size
    reached = newest(run)[1].state.step
    assert reached == (stop_after or run.optim.steps)


def newest(run: TrainRun):
    found = CheckpointManager(run.folder, run.checkpoint, World.single()).latest()
    assert found is not None
    return found


def tensors(run: TrainRun) -> dict[str, Tensor]:
    return read_weights(*newest(run)) | read_moments(*newest(run))


def losses(run: TrainRun) -> dict[int, dict[str, float]]:
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    return {
        line["step"]: {name: v for name, v in line.items() if name.startswith("train/loss")}
        for line in lines
    }


def sample_ids(run: TrainRun) -> dict[int, list[int]]:
    """The ids of each global batch, rank after rank."""
    ids: dict[int, list[int]] = {}
    for path in sorted((run.folder / "logs").glob("sample_ids-*.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()):
            ids[line["step"]] = ids.get(line["step"], []) + line["ids"]
    return ids


def test_a_run_stopped_at_every_step_is_bit_for_bit_the_run_never_stopped(
    synthetic_shards, tmp_path
):
    checkpoint = {"every_steps": 100}
    unbroken, broken = (
        tiny_run(tmp_path / name, synthetic_shards, {"checkpoint": checkpoint})
        for name in ("unbroken", "broken")
    )
    start(unbroken, 1)
    for step in range(1, unbroken.optim.steps):
        start(broken, 1, stop_after=step)
    start(broken, 1)
    expected, found = tensors(unbroken), tensors(broken)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert losses(broken) == losses(unbroken)
    assert sample_ids(broken) == sample_ids(unbroken)


def test_a_run_moved_from_4_to_2_to_3_ranks_sees_the_same_samples_and_losses(
    synthetic_shards, tmp_path
):
    # At a higher rate Adam turns the rounding of near-zero gradients into whole steps.
    optim = {"global_batch": 12, "steps": 6, "lr": 2e-5}
    changes = {"optim": optim, "checkpoint": {"every_steps": 100}}
    alone, moved = (
        tiny_run(tmp_path / name, synthetic_shards, changes) for name in ("alone", "moved")
    )
    start(alone, 1)
    start(moved, 4, stop_after=2)
    start(moved, 2, stop_after=4)
    start(moved, 3)
    assert sample_ids(moved) == sample_ids(alone)
    assert len(sample_ids(alone)) == 6
    expected, found = losses(alone), losses(moved)
    assert found.keys() == expected.keys() == set(range(1, 7))
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, abs=1e-5)


def test_a_complete_run_is_left_as_it_is(synthetic_shards, tmp_path):
    run = tiny_run(tmp_path / "run", synthetic_shards, {"optim": {"steps": 1}})
    start(run, 1)
    before = {path: path.read_bytes() for path in newest(run)[0].iterdir()}
    start(run, 1)
    assert {path: path.read_bytes() for path in newest(run)[0].iterdir()} == before
