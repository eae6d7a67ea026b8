"""The whole of a training: what its parts are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from supersam.config import TrainRun
from supersam.model import load_sam
from supersam.runs.folder import prepare_run_folder
from supersam.runs.supernet import load_supernet
from supersam.runs.weights import find_weights
from supersam.space import read_space, resolve_shape
from supersam.training.session import train
from tests.distributed.ranks import run_ranks
from tests.training.runs import tiny_run


def train_without_a_compiler(run: TrainRun) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("compiled")

    torch.compile = refuse
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
