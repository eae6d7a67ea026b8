"""The whole of a training: what its parts are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from supersam.config import TrainRun
from supersam.model import load_sam
from supersam.runs.checkpoints import SavedCheckpoints
from supersam.runs.folder import prepare_run_folder
from supersam.runs.supernet import load_supernet
from supersam.runs.weights import find_weights
from supersam.space import read_space, resolve_shape
from supersam.training.session import train
from supersam.training.validation import Validator
from tests.distributed.ranks import run_ranks
from tests.training.runs import tiny_run


def train_without_a_compiler(run: TrainRun) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("compiled")

    torch.compile = refuse
    train(run)


def train_until_validation(run: TrainRun) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    Validator.validate = interrupt  # where a second Ctrl-C comes
    train(run)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's training is compiled")
def test_a_configuration_for_gpus_does_not_compile_on_a_cpu(
    tmp_path: Path, synthetic_shards: Path
) -> None:
    changes = {"engine": {"compile": True}, "optim": {"steps": 1}}
    run = tiny_run(tmp_path / "run", synthetic_shards, changes)
    prepare_run_folder(run)
    assert run_ranks(1, train_without_a_compiler, run) == [0]


def test_a_trained_run_needs_no_longer_what_it_began_from(tmp_path: Path, synthetic_shards: Path):
    start = tmp_path / "start.pth"
    changes = {"model": {"checkpoint": str(start)}, "optim": {"steps": 1}}
    run = tiny_run(tmp_path / "run", synthetic_shards, changes)
    torch.save(load_sam(resolve_shape(run.model)).state_dict(), start)
    prepare_run_folder(run)
    assert run_ranks(1, train, run) == [0]
    start.unlink()
    longer = run.model_copy(update={"optim": run.optim.model_copy(update={"steps": 2})})
    assert run_ranks(1, train, longer) == [0]
    source = find_weights(run, "last")
    assert source.step == 2
    load_supernet(run, read_space(run.folder / "space.yaml", resolve_shape(run.model)), source)


@pytest.mark.parametrize("steps", [2, 3])
def test_an_interrupted_validation_loses_no_step_and_is_made_up_for(
    tmp_path: Path, synthetic_shards: Path, steps: int
):
    """At the last step (2) and before it (of 3) alike."""
    changes = {
        "data": {"val": [str(synthetic_shards)]},
        "optim": {"steps": steps},
        "checkpoint": {"every_steps": 2, "validate_every_steps": 2, "overlay_images": 0},
    }
    run = tiny_run(tmp_path / "run", synthetic_shards, changes)
    prepare_run_folder(run)

    assert run_ranks(1, train_until_validation, run) == [1]
    path, manifest = SavedCheckpoints(run.folder).latest()
    assert (path.name, manifest.state.best_step) == ("step-000002", None)
    assert run_ranks(1, train, run) == [0]
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    scored = [line["step"] for line in lines if "val/miou/largest" in line]
    assert scored == list(range(2, steps + 1))
    _, manifest = SavedCheckpoints(run.folder).latest()
    assert manifest.state.validated_step == steps
    assert manifest.state.best_step in (2, steps)
