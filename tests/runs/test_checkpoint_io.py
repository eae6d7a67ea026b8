"""Checkpoints: complete or absent, whatever kills the writer; damaged ones are passed over."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from supersam.config import CheckpointConfig, UserError
from supersam.config.files import CHECKPOINT_MANIFEST
from supersam.runs import checkpoint_io as checkpoint
from supersam.runs.checkpoint_io import CheckpointManager, Share, read_moments, read_weights
from supersam.runs.checkpoints import FORMAT, TrainState, verify
from supersam.runtime.atomic import file_sha256
from supersam.runtime.distributed import World, barrier, close_world, init_world
from tests.distributed.ranks import run_ranks

LARGE = 1 << 19  # float32 values of a tensor that a small disk does not hold


def model(value: float, *, size: int = 64) -> nn.Module:
    made = nn.Linear(size, 1)
    with torch.no_grad():
        made.weight.fill_(value)
        made.bias.fill_(-value)
    return made


def moments(value: float) -> dict[str, Tensor]:
    names = ("exp_avg/weight", "exp_avg/bias", "exp_avg_sq/weight")
    return {name: torch.arange(12.0) + value for name in names}


def shares(value: float, world: World) -> Iterator[Share]:
    """Of both ranks, or of one alone: the first has the two ends."""
    for name, whole in moments(value).items():
        cuts = [(0, 2), (2, 10), (10, 12)]
        for index, (first, end) in enumerate(cuts):
            if index % world.world_size == world.rank:
                yield Share(name, first, whole[first:end])


def save(manager: CheckpointManager, step: int, **changes: Any) -> Path:
    given: dict[str, Any] = {"model": model(step), "best_step": None}
    given |= {"moments": shares(step, manager.world), **changes}
    state = TrainState(step=step, best_score=0.5, best_step=given["best_step"])
    return manager.save(
        given["model"], given["moments"], state, order={"seed": 1}, data=["d"], versions={"x": "1"}
    )


def manager_of(run: Path, world: World | None = None, **config: Any) -> CheckpointManager:
    return CheckpointManager(run, CheckpointConfig(**config), world or World.single())


def steps_of(manager: CheckpointManager) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in manager.all()]


def test_a_checkpoint_gives_back_what_it_was_given(tmp_path):
    manager = manager_of(tmp_path)
    assert manager.latest() is None
    save(manager, 7, best_step=3)
    path, manifest = manager.latest()
    assert path == tmp_path / "checkpoints" / "step-000007"
    assert manifest.state == TrainState(step=7, best_score=0.5, best_step=3)
    assert (manifest.order, manifest.data, manifest.world_size) == ({"seed": 1}, ["d"], 1)
    weights = read_weights(path, manifest)
    assert all(torch.equal(weights[n], t) for n, t in model(7).state_dict().items())
    assert_moments(7, read_moments(path, manifest))


def assert_moments(value: float, found: dict[str, Tensor]) -> None:
    assert found.keys() == moments(value).keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in moments(value).items())


def test_whole_moments_of_format_1_are_read_and_later_formats_refused(tmp_path):
    whole = [Share(name, 0, tensor) for name, tensor in moments(7).items()]
    path = save(manager_of(tmp_path), 7, moments=whole)
    (file,) = path.glob("moments-*")
    save_file({name: tensor.view(3, 4) for name, tensor in moments(7).items()}, file)
    edit_manifest(
        path, format=1, files={f.name: file_sha256(f) for f in path.glob("*.safetensors")}
    )
    assert_moments(7, read_moments(path, verify(path)))
    edit_manifest(path, format=FORMAT + 1)
    with pytest.raises(UserError, match="has format 3; this software reads 1 to 2"):
        verify(path)


def test_the_newest_the_best_and_the_pinned_are_kept(tmp_path):
    manager = manager_of(tmp_path, keep_last=2, pin=(1,))
    for step in range(1, 8):
        save(manager, step, best_step=3 if step >= 3 else None)
    assert steps_of(manager) == [1, 3, 6, 7]
    assert manager.latest()[1].state.step == 7


def test_steps_are_ordered_as_numbers(tmp_path):
    manager = manager_of(tmp_path)
    for step in (999_999, 1_000_000):
        save(manager, step)
    assert manager.latest()[1].state.step == 1_000_000


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a flipped byte": lambda p: flip_byte(next(p.glob("weights-*"))),
    "a truncated file": lambda p: os.truncate(next(p.glob("moments-*")), 40),
    "a missing file": lambda p: next(p.glob("moments-*")).unlink(),
    "no manifest": lambda p: (p / CHECKPOINT_MANIFEST).unlink(),
    "half a manifest": lambda p: os.truncate(p / CHECKPOINT_MANIFEST, 30),
    "another manifest": lambda p: (p / CHECKPOINT_MANIFEST).write_text("[]"),
    "another format": lambda p: edit_manifest(p, format=FORMAT + 1),
}


def edit_manifest(path: Path, **changes: Any) -> None:
    values = json.loads((path / CHECKPOINT_MANIFEST).read_text()) | changes
    (path / CHECKPOINT_MANIFEST).write_text(json.dumps(values))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage):
    manager = manager_of(tmp_path)
    for step in (1, 2):
        newest = save(manager, step)
    DAMAGES[damage](newest)
    with pytest.raises(UserError, match="step-000002"):
        verify(newest)
    assert manager.latest()[1].state.step == 1


def test_progress_without_a_valid_checkpoint_is_an_error_not_a_restart(tmp_path):
    manager = manager_of(tmp_path)
    paths = [save(manager, step) for step in (1, 2)]
    for path in paths:
        flip_byte(next(path.glob("weights-*")))
    with pytest.raises(UserError, match="saved a checkpoint at step 2, and no valid one is left"):
        manager.latest()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UserError, match="no valid one is left"):
        manager.latest()


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_moments() -> Iterator[Share]:
    yield Share("exp_avg/weight", 0, torch.zeros(3))
    die()


KILL_POINTS = ("moments", "save_tensors", "sync", "file_sha256", "write_json", "rename", "rmtree")


def save_until_killed(run: Path, point: str) -> None:
    """Save step 3 in a process that dies at `point`."""
    manager, changes = manager_of(run, keep_last=1), {}
    if point == "moments":
        changes["moments"] = dying_moments()
    elif point == "rename":
        checkpoint.os.rename = die
    elif point == "rmtree":  # of the checkpoint that is no longer kept, half-way
        changes["model"] = model(3)
        checkpoint.shutil.rmtree = lambda path, **_: (
            (path / CHECKPOINT_MANIFEST).exists()
            and (
                (path / CHECKPOINT_MANIFEST).unlink(),
                die(),
            )
        )
    else:
        setattr(checkpoint, point, die)
    save(manager, 3, **changes)


@pytest.mark.parametrize("point", KILL_POINTS)
def test_a_writer_killed_anywhere_leaves_complete_checkpoints_alone(tmp_path, point):
    manager = manager_of(tmp_path, keep_last=2)
    for step in (1, 2):
        save(manager, step)
    assert run_ranks(1, save_until_killed, tmp_path, point) == [-signal.SIGKILL]
    found = steps_of(manager)
    assert found[-1] == (3 if point == "rmtree" else 2)
    for path in manager.all():
        verify(path)
    save(manager, 4)
    assert manager.latest()[1].state.step == 4
    assert not list((tmp_path / "checkpoints").glob(".*"))


def save_on_a_small_disk(run: Path) -> None:
    """Rank 1 may write no file above a megabyte: what a full disk does to it."""
    world = init_world(torch.device("cpu"))
    manager = manager_of(run, world)
    save(manager, 1)
    if world.rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    large = (Share(f"exp_avg/{i}", 0, torch.zeros(LARGE)) for i in range(4))
    try:
        save(manager, 2, moments=large)
    except OSError as fault:
        (run / f"raised-{world.rank}").write_text(str(fault))
    blocked = run / "blocked"
    if world.is_first:
        blocked.mkdir()
        (blocked / "checkpoints").touch()  # where rank 0 alone would make a folder
    barrier()
    with pytest.raises(OSError, match="could not be written"):
        save(manager_of(blocked, world), 1)
    close_world()


def test_a_full_disk_raises_on_every_rank_and_leaves_the_old_checkpoint(tmp_path):
    assert run_ranks(2, save_on_a_small_disk, tmp_path) == [0, 0]
    for rank in range(2):
        assert "could not be written" in (tmp_path / f"raised-{rank}").read_text()
    manager = manager_of(tmp_path)
    path, manifest = manager.latest()
    assert (manifest.state.step, manifest.world_size) == (1, 2)
    weights = read_weights(path, manifest)
    assert weights.keys() == model(1).state_dict().keys()
    assert_moments(1, read_moments(path, manifest))
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_run_that_was_deleted_does_not_come_back_as_a_checkpoint_alone(tmp_path):
    manager = manager_of(tmp_path / "run")
    with pytest.raises(OSError, match="could not be written") as raised:
        save(manager, 1)
    assert isinstance(raised.value.__cause__, FileNotFoundError)
    assert not (tmp_path / "run").exists()
