"""Slurm's commands, each with a limit on its time: what hosts there are, what is done to a job.

What Slurm says of jobs is in `jobs`. No submitit, no torch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from supersam.config import UserError
from supersam.runtime.waiting import growing_pauses

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

_TIMEOUT_S = 30
_ANSWER_S = 600  # for a controller that is down to come back
# What an enclosing allocation leaves behind would bind a new job to its cores, nodes and step.
_INHERITED = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "PMI_", "PMI2_", "PMIX_")
_KEPT = ("SLURM_CONF",)
_LOST = ("down", "drain", "fail", "not_responding", "unknown")


class SlurmError(Exception):
    """A command of Slurm failed; holds what it said."""


class KilledCommandError(SlurmError):
    """A signal ended a command of Slurm, as one to all processes of a job does.

    It says nothing of Slurm: asked again, it answers.
    """


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` without what an enclosing Slurm job has set."""
    return {
        name: value
        for name, value in environment.items()
        if name in _KEPT or not name.startswith(_INHERITED)
    }


@contextlib.contextmanager
def outside_allocation() -> Iterator[None]:
    """Within the block this process looks as if it ran in no Slurm job."""
    before = dict(os.environ)
    for name in before.keys() - clean_environment(before).keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)


def run_command(*words: str, timeout_s: float = _TIMEOUT_S, stdin: str = "") -> str:
    """Run a command of Slurm and return what it prints. Raises SlurmError with its message."""
    try:
        done = subprocess.run(
            words,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        raise SlurmError(f"there is no {words[0]} on this machine") from None
    except OSError as fault:
        raise SlurmError(f"{words[0]}: {fault}") from fault
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]} gave no answer within {timeout_s:g} s") from None
    if done.returncode < 0:
        raise KilledCommandError(f"{words[0]} was ended by {_signal_name(-done.returncode)}")
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise SlurmError(said[-1] if said else f"{words[0]} ended with {done.returncode}")
    return done.stdout


def retry_slurm(ask: Callable[[], Answer]) -> Answer:
    """Return the answer of `ask`, asking again while the controller is away, for ten minutes."""
    deadline, pauses = time.monotonic() + _ANSWER_S, growing_pauses(1.0, 15.0)
    while True:
        try:
            return ask()
        except KilledCommandError:
            time.sleep(0.2)
        except SlurmError as fault:
            if time.monotonic() > deadline:
                raise
            logger.warning("Slurm does not answer (%s); asking again", fault)
            time.sleep(next(pauses))


@contextlib.contextmanager
def slurm_errors_to_user() -> Iterator[None]:
    """Turn a SlurmError of the block into a UserError, for commands that a user waits for."""
    try:
        yield
    except SlurmError as fault:
        raise UserError(f"Slurm does not answer ({fault}); try again in a minute") from fault


def missing_slurm() -> str | None:
    """Say what keeps this machine from submitting to Slurm; None where nothing does."""
    if shutil.which("sbatch") is None or shutil.which("scontrol") is None:
        return "there is no sbatch on this machine"
    try:
        run_command("scontrol", "ping", timeout_s=10)
    except SlurmError as fault:
        return f"Slurm's controller does not answer ({fault})"
    return None


def require_slurm(*, otherwise: str) -> None:
    """Raise UserError where this machine cannot submit. otherwise: the other remedy."""
    missing = missing_slurm()
    if missing is not None:
        raise UserError(
            f"a Slurm job was asked for, and {missing}. Submit from a login node; or {otherwise}"
        )


def own_job_id() -> str:
    """Return the id of this process's job, as Slurm's commands take it.

    The last element of an array has the array's own number, by which commands mean all of it.
    """
    array, element = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return os.environ["SLURM_JOB_ID"] if array is None else f"{array}_{element}"


def whole_job(job_id: str) -> str:
    """Return the array of an array's element; else the job itself."""
    return job_id.partition("_")[0]


def job_hosts(job_id: str) -> list[str]:
    """List the hosts of a job's allocation now, in Slurm's order; none once it is taken back."""
    compact = run_command("squeue", "--noheader", "--jobs", job_id, "--format=%N").strip()
    return expand_hosts(compact) if compact else []


def expand_hosts(expression: str) -> list[str]:
    """List the names in a host list such as n[1-3,7]."""
    return run_command("scontrol", "show", "hostnames", expression).split()


def partition_hosts(partition: str | None) -> list[str]:
    """List the hosts of a partition (None: the default) that are neither down nor drained."""
    listing = run_command("sinfo", "--noheader", "--Node", "--format=%R|%P|%N|%T")
    rows = [line.split("|") for line in listing.splitlines() if line.count("|") == 3]
    names = None if partition is None else set(partition.split(","))
    return [
        host
        for name, marked, host, state in rows
        if (marked.endswith("*") if names is None else name in names) and not _is_lost(state)
    ]


def lost_hosts(hosts: list[str]) -> list[str]:
    """List those of `hosts` that Slurm finds down or silent."""
    if not hosts:
        return []
    listing = run_command(
        "sinfo", "--noheader", "--Node", f"--nodes={','.join(hosts)}", "--format=%N %T"
    )
    states = dict(line.split(maxsplit=1) for line in listing.splitlines())
    return [host for host in hosts if _is_lost(states.get(host, "unknown"))]


def cancel_job(job_id: str, *, gently: bool) -> None:
    """End a job. gently: its batch step is told to save and end by itself."""
    how = ("--batch", "--signal=USR2") if gently else ()
    run_command("scancel", *how, job_id)


def requeue(job_id: str) -> None:
    """Send a running job back to the queue; ends all its processes."""
    run_command("scontrol", "requeue", job_id)


def exclude_hosts(job_id: str, hosts: str) -> None:
    """Keep a job in the queue off hosts, a host list; replaces what it excluded before."""
    run_command("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={hosts}")


def end_begin_time_wait(job_id: str) -> None:
    """Let a requeued job start as soon as there are hosts, not after Slurm's wait.

    Two seconds from now: a host that the job has just left refuses a start of the same second, by
    its credential's time ("already killed, do not launch batch job"), and the job would be FAILED.
    Once for each requeue: said every second, it would put off the start for ever.
    """
    run_command("scontrol", "update", f"JobId={job_id}", "StartTime=now+2seconds")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one
        return f"signal {number}"


def _is_lost(state: str) -> bool:
    return state.endswith("*") or state.lower().startswith(_LOST)
