"""Prioritization in training: optimizer and weights move together, on any number of ranks."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from supersam.config import TrainRun, load_run
from supersam.runs.checkpoint_io import (
    CheckpointManager,
    read_average,
    read_moments,
    read_weights,
)
from supersam.runs.folder import prepare_run_folder
from supersam.runtime.distributed import World, close_world, init_world
from supersam.training.session import train
from tests.distributed.ranks import run_ranks
from tests.training.runs import tiny_run

pytestmark = pytest.mark.slow

STEPS = 4


def prioritizing_run(folder, shards, *, largest_only=False, steps=STEPS, **prioritize) -> TrainRun:
    changes = {
        "prioritize": {"score": "magnitude", "images": 4, "dimensions": ["mlp", "heads"]}
        | prioritize,
        "optim": {"steps": steps, "ema": 0.5},
        "sandwich": {"largest_only_steps": 1000 if largest_only else 0},
        "space": {"elastic_embed": True},
    }
    return tiny_run(folder, shards, changes)


def trained(run: TrainRun, ranks: int = 1) -> dict[str, torch.Tensor]:
    """Weights, their average and moments of the last checkpoint of a run on `ranks` ranks."""
    prepare_run_folder(run)
    assert run_ranks(ranks, train, run) == [0] * ranks
    return last_state(run)


def last_state(run: TrainRun) -> dict[str, torch.Tensor]:
    found = CheckpointManager(run.folder, run.checkpoint, World.single()).latest()
    assert found is not None
    average = {f"average/{name}": tensor for name, tensor in read_average(*found).items()}
    return read_weights(*found) | read_moments(*found) | average


def losses(run: TrainRun) -> list[float]:
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    return [line["train/loss/largest"] for line in lines]


@pytest.mark.parametrize("ranks", [1, 2])
def test_training_the_largest_subnet_takes_no_notice_of_reordering(
    tmp_path, synthetic_shards, ranks
):
    """Wrong moments or fp32 copies would move other units than those that learned."""
    folders = [tmp_path / name for name in ("off", "on")]
    for folder, when in zip(folders, ("off", "every_n_steps"), strict=True):
        run = prioritizing_run(
            folder, synthetic_shards, largest_only=True, when=when, every_steps=1
        )
        trained(run, ranks)
    off, on = (
        losses(load_run(TrainRun, f / "run.yaml").model_copy(update={"run": f})) for f in folders
    )
    assert on == pytest.approx(off, rel=2e-5)
    plain, moved = (
        last_state(load_run(TrainRun, f / "run.yaml").model_copy(update={"run": f}))
        for f in folders
    )
    name = "image_encoder.blocks.0.mlp.lin1.bias"
    for key in (name, f"exp_avg/{name}", f"exp_avg_sq/{name}", f"average/{name}"):
        assert not torch.equal(plain[key], moved[key])
        torch.testing.assert_close(
            moved[key].sort().values, plain[key].sort().values, rtol=1e-2, atol=1e-4
        )


@pytest.mark.parametrize("when", ["start", "epoch", "every_n_steps"])
def test_a_resumed_run_is_the_unbroken_one_bit_by_bit(tmp_path, synthetic_shards, when):
    def run(name: str, steps: int) -> TrainRun:
        return prioritizing_run(
            tmp_path / name, synthetic_shards, when=when, every_steps=2, steps=steps, score="taylor"
        ).model_copy(update={"checkpoint": _every(1)})

    def _every(steps: int):
        return tiny_run(tmp_path / name, synthetic_shards).checkpoint.model_copy(
            update={"every_steps": steps}
        )

    name = "unbroken"
    whole = trained(run(name, STEPS))
    shutil.copytree(tmp_path / "unbroken", tmp_path / "resumed")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "resumed" / "checkpoints" / f"step-{step:06d}")
    name = "resumed"
    again = trained(run(name, STEPS))
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[key], whole[key]) for key in whole)


def test_two_ranks_reorder_as_one(tmp_path, synthetic_shards):
    states = [
        trained(
            prioritizing_run(
                tmp_path / str(ranks), synthetic_shards, when="start", score="taylor", steps=1
            ),
            ranks,
        )
        for ranks in (1, 2)
    ]
    for key in states[0]:
        torch.testing.assert_close(states[1][key], states[0][key], rtol=1e-3, atol=1e-4)


def test_the_world_size_changes_no_bit_of_a_score(tmp_path, synthetic_shards):
    for ranks in (1, 2):
        assert run_ranks(ranks, _score, synthetic_shards, tmp_path / f"{ranks}.pt") == [0] * ranks
    one, two = (torch.load(tmp_path / f"{ranks}.pt") for ranks in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def _score(shards, path) -> None:
    from supersam.design import scan_sensitivity, score_units
    from supersam.model import SamSupernet, load_sam
    from supersam.space import published_space
    from tests.conftest import TINY
    from tests.design.calibration_sets import task_loss, tiny_calibration

    torch.set_num_threads(1)
    world = init_world(torch.device("cpu"))
    supernet = SamSupernet(load_sam(TINY, seed=1), published_space(TINY))
    calibration = tiny_calibration(shards)
    found = []
    for score in ("wanda", "taylor", "movement"):
        scores = score_units(supernet, calibration, score=score, world=world, loss=task_loss)
        found += [scores.mlp, scores.heads, scores.embed]
    sensitivity = scan_sensitivity(supernet, calibration, world=world)
    found.append(torch.tensor([d.miou for d in (*sensitivity.alone, *sensitivity.greedy)]))
    found.append(torch.tensor([d.embedding_distance for d in sensitivity.alone]))
    if world.is_first:
        torch.save(found, path)
    close_world()
