"""What is done with a run when its training has finished: `--then "evaluate --subnet smallest"`.

On Slurm a job of its own, which waits for the training's job to succeed, requeues included; else
the next thing that this machine does. Either way it begins only with a verified checkpoint.
"""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from supersam.cluster import slurm
from supersam.config import (
    CheckpointConfig,
    ClusterConfig,
    EvaluateRun,
    TrainRun,
    UserError,
    exit_code,
    parse_cli,
)
from supersam.config.io import USAGE_ERROR
from supersam.runtime.process import keep_others_from_writing


@dataclass(frozen=True)
class Command:
    """A command that can follow a training."""

    run_type: type[BaseModel]
    """Its configuration; `run` is the training's folder. Where it has a `cluster`, that says what
    its job asks for, else it gets one rank's share of a training node."""
    action: str
    """MODULE:FUNCTION that takes it and returns an exit code; imported where it runs."""


COMMANDS = {
    "evaluate": Command(EvaluateRun, "supersam.training.command:run_evaluate"),
}


def check_follow_up(run: TrainRun) -> BaseModel:
    """The configuration of what follows `run`.

    Raises UserError, or SystemExit after a message, where its words have a fault.
    """
    return _parse(run.folder, _words(run))


def submit_follow_up(run: TrainRun, job_id: str) -> str:
    """Submit what follows the training's job. Returns the id of the new job."""
    with slurm.outside_allocation():
        try:
            answer = slurm.run_command("sbatch", "--parsable", stdin=script_text(run, job_id))
        except slurm.SlurmError as fault:
            raise UserError(f"Slurm refused the job of --then: {fault}") from fault
    return answer.strip().partition(";")[0]


def script_text(run: TrainRun, job_id: str) -> str:
    """The script of the job that follows job `job_id`."""
    from supersam.cluster.sbatch import JOB_FOLDER, plain_path, script  # slow: it imports submitit

    folder, words = plain_path(run.folder), _words(run)
    place = _place(run, check_follow_up(run))
    asked = run.model_copy(update={"name": f"{run.name}-{words[0]}", "cluster": place})
    code = shlex.quote(str(folder / "code"))
    return script(
        asked,
        _command(folder, words),
        folder=folder / JOB_FOLDER,
        setup=[f"export PYTHONPATH={code}", f"cd {code} || exit 1"],
        options={"dependency": f"afterok:{job_id}", "kill-on-invalid-dep": "yes"},
    )


def run_follow_up(run: TrainRun) -> int:
    """Do what follows the training on this machine, now. Returns the exit code."""
    command = shlex.split(_command(run.folder, _words(run)))
    return subprocess.run(command, check=False).returncode


def main(folder: Path, words: Sequence[str]) -> int:
    """Do it here. Returns the exit code."""
    keep_others_from_writing()
    os.chdir(os.environ.get("SLURM_SUBMIT_DIR", "."))  # relative paths of the words start there
    try:
        _require_checkpoint(folder, words[0])
    except UserError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return USAGE_ERROR
    module, _, function = COMMANDS[words[0]].action.partition(":")
    action = getattr(importlib.import_module(module), function)
    return exit_code(action, _parse(folder, words))


def _words(run: TrainRun) -> list[str]:
    assert run.cluster.then is not None  # who calls has asked
    return shlex.split(run.cluster.then)


def _parse(folder: Path, words: Sequence[str]) -> BaseModel:
    name, *flags = words
    if name not in COMMANDS:
        raise UserError(f"--then {name!r} is not one of {', '.join(COMMANDS)}")
    if any(flag.partition("=")[0] == "--run" for flag in flags):
        raise UserError(f"--then {name} takes no --run: it is about the run that is trained")
    return parse_cli(COMMANDS[name].run_type, ["--run", str(folder), *flags])


def _command(folder: Path, words: Sequence[str]) -> str:
    return shlex.join([sys.executable, "-u", "-m", __name__, str(folder), *words])


def _place(run: TrainRun, asked: BaseModel) -> ClusterConfig:
    """The command's own wishes; what it leaves open is as for the training."""
    own = getattr(asked, "cluster", None)
    if isinstance(own, ClusterConfig):
        changes: dict[str, Any] = own.model_dump(exclude_defaults=True)
    else:
        gpus = None if run.cluster.gpus_per_node is None else 1
        changes = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": gpus}
    return run.cluster.model_copy(update={"spare_nodes": 0, "min_nodes": None, **changes})


def _require_checkpoint(folder: Path, name: str) -> None:
    from supersam.runtime.distributed import World  # slow: they import torch
    from supersam.training.checkpoint import CheckpointManager

    if CheckpointManager(folder, CheckpointConfig(), World.single()).latest() is None:
        raise UserError(
            f"{folder} holds no checkpoint to {name}; python launch/status.py {folder} --why says "
            "how its training ended"
        )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
