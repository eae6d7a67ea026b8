"""The moving average of the weights: its values, and where it takes the weights' place."""

from __future__ import annotations

import torch

from supersam.data.loader import DeviceBatches
from supersam.runs.checkpoint_io import CheckpointManager, read_average, read_weights
from supersam.runs.folder import prepare_run_folder
from supersam.runs.supernet import load_supernet
from supersam.runs.weights import find_weights
from supersam.runtime.distributed import World, close_world, init_world
from supersam.training.engine import trainable_parameters
from supersam.training.session import train
from tests.distributed.ranks import run_ranks
from tests.training.runs import build_trainer, tiny_run

DECAY = 0.3


def follow_the_weights(run) -> None:
    """As a rank: after each step the average is the recurrence's, and it is what is validated."""
    world = init_world(torch.device("cpu"))
    trainer = build_trainer(run, world, prepare_run_folder(run))
    weights = dict(trainable_parameters(trainer.supernet))
    expected = {name: p.detach().clone() for name, p in weights.items()}
    batches = DeviceBatches(iter(trainer.loader), trainer.device)
    for step in (1, 2, 3):
        trainer.train_step(batches)
        trainer.state.step = step
        decay = min(DECAY, (1 + step) / (10 + step))
        for name, weight in weights.items():
            expected[name] = decay * expected[name] + (1 - decay) * weight.detach()
    raw = {name: p.detach().clone() for name, p in weights.items()}
    with trainer.engine.averaged():
        for name, weight in weights.items():
            torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-5, atol=1e-7)
        assert not all(torch.equal(weight, raw[name]) for name, weight in weights.items())
    assert all(torch.equal(weight, raw[name]) for name, weight in weights.items())
    close_world()


def test_the_average_follows_the_weights_and_takes_their_place_for_a_while(
    tmp_path, synthetic_shards
):
    run = tiny_run(tmp_path / "run", synthetic_shards, {"optim": {"ema": DECAY}})
    assert run_ranks(1, follow_the_weights, run) == [0]


def test_a_checkpoint_holds_both_and_evaluation_takes_the_average(tmp_path, synthetic_shards):
    run = tiny_run(tmp_path / "run", synthetic_shards, {"optim": {"ema": DECAY, "steps": 2}})
    space = prepare_run_folder(run)
    assert run_ranks(2, train, run) == [0, 0]
    path, manifest = CheckpointManager(run.folder, run.checkpoint, World.single()).latest()
    average, weights = read_average(path, manifest), read_weights(path, manifest)
    loaded = load_supernet(run, space, find_weights(run, "last")).state_dict()
    assert loaded.keys() == weights.keys()
    assert average.keys() < weights.keys()
    assert not any(torch.equal(average[n], weights[n]) for n in average if n.endswith("lin1.bias"))
    assert all(torch.equal(loaded[n], average.get(n, weights[n])) for n in loaded)
