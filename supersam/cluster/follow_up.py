"""What is done with a run when its training has finished: `--then "evaluate --subnet smallest"`.

On Slurm a job of its own, which waits for the training's job to succeed, requeues included; else
the next thing that this machine does. Either way it begins only with a verified checkpoint.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from supersam.cluster.slurm import commands as slurm
from supersam.config import SearchCluster, SearchRun, SlurmSite, TrainRun, UserError, parse_cli
from supersam.config.commands import COMMANDS
from supersam.config.files import CODE, JOB_FOLDER

ACTIONS = {name: COMMANDS[name].action for name in ("evaluate", "search")}
"""Commands that can follow a training, and what each runs, as MODULE:FUNCTION."""
_SITE = SlurmSite.model_fields.keys() - {"cluster", "nodes", "wait"}
"""What a search takes over from the training that it follows."""
PROCESS = "supersam.cluster.follow_up_process"
"""Module that does it. Not this one: `python -m` would load it a second time."""
IN_JOB = "--job"
"""First word in a job of its own: a search then has all the hosts of the job."""


def check_follow_up(run: TrainRun) -> BaseModel:
    """Return the configuration of the command that follows `run`.

    Raises UserError, or SystemExit after a message, where its words have a fault.
    """
    return parse_words(run.folder, _words(run))


def submit_follow_up(run: TrainRun, job_id: str | None = None) -> str:
    """Submit what follows the training's job, or a training that is complete. Returns its id."""
    with slurm.outside_allocation():
        try:
            answer = slurm.run_command("sbatch", "--parsable", stdin=script_text(run, job_id))
        except slurm.SlurmError as fault:
            raise UserError(f"Slurm refused the job of --then: {fault}") from fault
    return answer.strip().partition(";")[0]


def script_text(run: TrainRun, job_id: str | None) -> str:
    """Return the script of the job that follows job `job_id`; with None it waits for no job."""
    from supersam.cluster.slurm.script import script, shell_safe_path  # slow: imports submitit

    folder, words = shell_safe_path(run.folder), _words(run)
    code = shlex.quote(str(folder / CODE))
    after = {"dependency": f"afterok:{job_id}", "kill-on-invalid-dep": "yes"}
    return script(
        _parameters(run, parse_words(run.folder, words), f"{run.name}-{words[0]}"),
        shlex.join([sys.executable, "-u", "-m", PROCESS, IN_JOB, str(folder), *words]),
        folder=folder / JOB_FOLDER,
        setup=[f"export PYTHONPATH={code}", f"cd {code} || exit 1"],
        options={} if job_id is None else after,
    )


def run_follow_up(run: TrainRun) -> int:
    """Do what follows the training on this machine, now. Returns the exit code."""
    command = [sys.executable, "-u", "-m", PROCESS, str(run.folder), *_words(run)]
    return subprocess.run(command, check=False).returncode


def _words(run: TrainRun) -> list[str]:
    assert run.cluster.then is not None  # the caller has asked
    return shlex.split(run.cluster.then)


def parse_words(folder: Path, words: Sequence[str]) -> BaseModel:
    """Read the words of `--then` as a command. Raises as `check_follow_up`."""
    name, *flags = words
    if name not in ACTIONS:
        raise UserError(f"--then {name!r} is not one of {', '.join(ACTIONS)}")
    if any(flag.partition("=")[0] == "--run" for flag in flags):
        raise UserError(f"--then {name} takes no --run: it is about the run that is trained")
    following = parse_cli(COMMANDS[name].run_type, ["--run", str(folder), *flags])
    if isinstance(following, SearchRun) and not following.sweep.is_empty:
        raise UserError("--then search takes one search; start a sweep when the training is done")
    return following


def _parameters(run: TrainRun, following: BaseModel, name: str) -> dict[str, Any]:
    """Return the job's parameters; what the command leaves open is as for the training."""
    from supersam.cluster.slurm.script import sbatch_parameters, search_parameters  # slow

    if isinstance(following, SearchRun):
        ours = {
            n: v for n, v in run.cluster.model_dump(exclude_defaults=True).items() if n in _SITE
        }
        own = following.cluster.model_dump(exclude_defaults=True)
        there = SearchCluster.model_validate({**ours, **own})
        return search_parameters(following.model_copy(update={"name": name, "cluster": there}))
    gpus = None if run.cluster.gpus_per_node is None else 1
    place = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": gpus, "spare_nodes": 0}
    cluster = run.cluster.model_copy(update={**place, "min_nodes": None})
    parameters = sbatch_parameters(run.model_copy(update={"name": name, "cluster": cluster}))
    del parameters["additional_parameters"]["signal"]  # nobody there would take it
    return parameters
