"""The steps of a Slurm job as lines of srun: ranks, lease watchers, a look from each node."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from supersam.cluster.ranked_run import RankedRun
from supersam.cluster.slurm.script import cores_per_rank
from supersam.config import UserError
from supersam.config.files import LOGS
from supersam.runtime.atomic import write_bytes

GRACE_S = 30
"""Seconds for the other ranks to end by themselves after the first has."""
# They describe the allocation as it began; a step on fewer hosts must not see them.
_STALE = ("NNODES", "NODELIST", "TASKS_PER_NODE", "NTASKS", "NPROCS", "NTASKS_PER_NODE")
_STALE_JOB = ("SLURM_JOB_NUM_NODES", "SLURM_JOB_NODELIST", "SLURM_JOB_CPUS_PER_NODE")
_END_S = 10.0
_TOKEN = "shared"
_LOOK_S = 20  # network file systems show new files late
_LOOK_LIMIT_S = 120.0
_LOOK = f"""\
for i in $(seq {_LOOK_S}); do
  [ "$(cat "$1" 2>/dev/null)" = "$2" ] && exit 0
  sleep 1
done
echo "$SLURMD_NODENAME"
"""


def rank_step(run: RankedRun, hosts: Sequence[str], *, attempt: int) -> list[str]:
    """Return the step with the ranks of an attempt."""
    folder, each = run.folder, run.cluster.ranks_per_node
    return [
        *_srun_on(hosts, each),
        f"--cpus-per-task={cores_per_rank(run)}",
        "--distribution=block",
        *("--overlap", "--mem=0"),  # as a step that Slurm has not yet cleaned up may hold all
        f"--wait={GRACE_S}",
        "--kill-on-bad-exit=0",  # ranks that saved end one by one; --wait bounds it
        "--unbuffered",
        f"--chdir={folder / 'code'}",  # `python -m` takes this code
        f"--output={folder / 'logs' / f'task-%5t.attempt-{attempt:03d}.log'}",
        *(sys.executable, "-u", "-m", "supersam.cluster.rank", str(folder)),
    ]


def lease_watch_step(run: RankedRun, hosts: Sequence[str], *, job_id: str) -> list[str]:
    """Return the step with one watcher per host, see `supervisor_lease`."""
    return [
        *_srun_on(hosts, 1),
        *("--no-kill", *_BESIDE),
        f"--chdir={run.folder / 'code'}",
        f"--output={run.folder / 'logs' / 'lease-%t.log'}",
        *(
            sys.executable,
            "-u",
            "-m",
            "supersam.cluster.slurm.supervisor_lease",
            str(run.folder),
            job_id,
        ),
    ]


def ranks_began(folder: Path, attempt: int) -> bool:
    """Whether Slurm started a rank of an attempt: it opens the log before the rank runs."""
    return any((folder / LOGS).glob(f"task-*.attempt-{attempt:03d}.log"))


def hosts_that_miss(folder: Path, hosts: Sequence[str]) -> list[str]:
    """List those of `hosts` that do not see what this host writes to `folder`."""
    token = secrets.token_hex(8)
    write_bytes(folder / _TOKEN, token.encode())
    look = ["sh", "-c", _LOOK, "look", str(folder / _TOKEN), token]
    try:
        done = subprocess.run(
            [*_srun_on(hosts, 1), *_BESIDE, "--chdir=/", *look],
            env=step_environment(),
            capture_output=True,
            text=True,
            timeout=_LOOK_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:  # a host that is lost now is the attempt's to find out
        return []
    return sorted(set(done.stdout.split()) & set(hosts))


def require_shared_folder(folder: Path, hosts: Sequence[str]) -> None:
    """Raise UserError where some of `hosts` do not see what this host writes to `folder`."""
    missing = hosts_that_miss(folder, hosts)
    if missing:
        names = ",".join(missing)
        raise UserError(
            f"{names} cannot read what {socket.gethostname()} writes to {folder}; choose a folder "
            f"that all nodes share, or leave these out with --exclude {names}"
        )


def end_step(step: subprocess.Popen[bytes]) -> None:
    """End all tasks of a step, stopped ones too."""
    step.terminate()  # srun then kills its tasks
    try:
        step.wait(_END_S)
    except subprocess.TimeoutExpired:
        step.kill()
        step.wait()


def step_environment() -> dict[str, str]:
    """Return this process's environment for a step on fewer hosts than the allocation had."""
    stale = {f"SLURM_{name}" for name in _STALE} | set(_STALE_JOB)
    return {name: value for name, value in os.environ.items() if name not in stale}


_BESIDE = ("--overlap", "--mem=0", "--cpus-per-task=1")  # takes nothing from the ranks


def _srun_on(hosts: Sequence[str], each: int) -> list[str]:
    """Return the first words of a step with `each` tasks on every host."""
    return [
        "srun",
        f"--nodes={len(hosts)}",
        f"--ntasks={len(hosts) * each}",
        f"--ntasks-per-node={each}",
        f"--nodelist={','.join(hosts)}",
    ]
