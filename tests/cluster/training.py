"""A tiny training run: started as a user starts it, and compared with another one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from supersam.cluster.slurm.submit import submitted_job
from supersam.health.records import saved_step
from supersam.runs.attempts import AttemptEvent, read_attempts
from supersam.runs.checkpoint_io import read_weights
from supersam.runs.checkpoints import verify
from tests.cluster.handle import PROJECT, wait_for
from tests.patience import PATIENCE_S

STEPS = 20
BATCH = 8
CONFIG = {
    "name": "tiny",
    "model": {
        **{"name": "tiny", "embed_dim": 32, "depth": 2, "num_heads": 2, "global_layers": [1]},
        **{"image_size": 64, "window_size": 2},
    },
    "space": {"removable": [0]},
    "data": {
        **{"source": "synthetic", "workers": 0, "prompts_per_image": 1},
        "synthetic_train": {"images": 40, "size_px": 64},
        "synthetic_val": {"images": 1, "size_px": 64, "seed": 1},
    },
    "sandwich": {"random_subnets": 0, "largest_only_steps": 0},
    # Adam turns the rounding of a near-zero gradient into a whole step: at 1e-3, two worlds drift
    # apart tenfold a step from step 9 on, at any precision of the reduction.
    "optim": {"steps": STEPS, "lr": 2e-5, "warmup_steps": 4, "global_batch": BATCH},
    "engine": {"device": "cpu", "threads": 1, "log_every": 1, "log_sample_ids": True},
    "checkpoint": {"every_steps": 4, "validate_every_steps": 1000, "validate_images": 1},
}
# As if submitted from inside another job: what would bind ours to its cores, nodes and step.
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(PROJECT)}
SLURM = ("--time", "1:00:00", "--signal-delay-s", "60", "--wait")
ENDLESS = ("--optim.steps", "100000", "--checkpoint.every-steps", "20")
ENCLOSING = {
    **{"SLURM_JOB_ID": "1", "SLURM_NTASKS": "7", "SLURM_NNODES": "5", "SLURM_CPU_BIND": "none"},
    **{"SLURM_MEM_PER_NODE": "1", "SBATCH_PARTITION": "absent", "SLURM_PROCID": "3"},
}


def tiny_config(folder: Path) -> Path:
    """A file beside `folder` with the configuration of the tiny run."""
    config = folder.parent / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    return config


def launch(
    folder: Path,
    *flags: str,
    env: dict[str, str],
    config: Path | None = None,
    before: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """Start launch/train.py; what it prints goes to a file beside `folder`.

    before: words of a command that starts the command, such as prlimit's.
    """
    words = ["--config", str(config or tiny_config(folder)), "--run", str(folder), *flags]
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [*before, sys.executable, str(PROJECT / "launch" / "train.py"), *words],
            env=env | QUIET,
            stdout=log,
            stderr=log,
        )


def printed(folder: Path) -> str:
    """What the commands on a run printed."""
    return folder.with_suffix(".log").read_text()


def reference_run(folder: Path, ranks: int, *flags: str, config: Path | None = None) -> Path:
    """The folder of an unbroken run on this machine."""
    words = ("--tasks-per-node", str(ranks), *flags)
    process = launch(folder, *words, env=dict(os.environ), config=config)
    assert process.wait(timeout=PATIENCE_S) == 0, printed(folder)
    return folder


def show_logs(folder: Path) -> None:
    """Print what a run's commands and supervisors printed."""
    for log in [folder.with_suffix(".log"), *folder.glob("slurm/*.out")]:
        if log.exists():
            print(f"--- {log}\n{log.read_text()}")


def job_of(folder: Path) -> str:
    """The run's job, once it is submitted."""
    wait_for(lambda: submitted_job(folder) is not None, PATIENCE_S, what="submitted")
    job = submitted_job(folder)
    assert job is not None
    return job


def wait_for_attempt(folder: Path, number: int) -> None:
    """Until the ranks of an attempt have taken a step of their own."""

    def steps() -> bool:
        log = folder / "logs" / f"task-00000.attempt-{number:03d}.log"
        return log.exists() and "I step " in log.read_text()

    wait_for(steps, PATIENCE_S, what=f"first step of attempt {number}")


def wait_for_end(folder: Path, number: int) -> AttemptEvent:
    """The end of the attempt of that number, once it is recorded."""
    wait_for(lambda: len(ends(folder)) >= number, PATIENCE_S, what=f"end of attempt {number}")
    return ends(folder)[number - 1]


def start_of(folder: Path, number: int) -> AttemptEvent:
    """The start of the attempt of that number, once it is recorded."""

    def starts() -> list[AttemptEvent]:
        return [event for event in read_attempts(folder) if event.event == "start"]

    wait_for(lambda: len(starts()) >= number, PATIENCE_S, what=f"start of attempt {number}")
    return starts()[number - 1]


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    """The command ends with 0, and the run is complete."""
    assert process.wait(timeout=PATIENCE_S) == 0, printed(folder)
    assert f"code {folder}/code" in printed(folder)
    assert ends(folder)[-1].reason == "finished"


def ends(folder: Path) -> list[AttemptEvent]:
    return [event for event in read_attempts(folder) if event.event == "end"]


def has_saved(folder: Path, step: int) -> bool:
    return saved_step(folder) >= step


def losses(folder: Path) -> dict[int, float]:
    """The largest subnet's loss of each step; a later attempt's counts."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["train/loss/largest"] for r in lines if "train/loss/largest" in r}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "checkpoints" / f"step-{STEPS:06d}"
    return read_weights(path, verify(path))


def sample_lines(folder: Path) -> list[tuple[int, list[int]]]:
    """Every logged (step, ids) of all ranks and attempts."""
    files = sorted((folder / "logs").glob("sample_ids-*.jsonl"))
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [(record["step"], record["ids"]) for record in records]


def samples_by_step(folder: Path) -> dict[int, list[int]]:
    """The ids of each step over all ranks, sorted; each logged line counts."""
    steps: dict[int, list[int]] = {}
    for step, ids in sample_lines(folder):
        steps.setdefault(step, []).extend(ids)
    return {step: sorted(ids) for step, ids in steps.items()}


def assert_same_losses(folder: Path, reference: Path, steps: int = STEPS) -> None:
    ours, theirs = losses(folder), losses(reference)
    assert list(range(1, steps + 1)) == sorted(ours) == sorted(theirs)
    for step, value in theirs.items():
        assert abs(ours[step] - value) <= 1e-5 * max(1.0, abs(value)), f"step {step}"


def assert_same_weights(folder: Path, reference: Path) -> None:
    ours, theirs = weights(folder), weights(reference)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5, msg=name)
