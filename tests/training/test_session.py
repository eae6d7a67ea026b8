"""The whole of a training: what its parts are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from supersam.config import TrainRun
from supersam.training.run_folder import prepare_run_folder
from supersam.training.session import train
from tests.distributed.forked import run_ranks
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
