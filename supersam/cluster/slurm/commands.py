"""Slurm's commands and what they tell, each with a limit on its time. No submitit, no torch."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from supersam.config import UserError

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

_TIMEOUT_S = 30
_ANSWER_S = 600  # for a controller that is down to come back
# What an enclosing allocation leaves behind would bind a new job to its cores, nodes and step.
_INHERITED = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "PMI_", "PMI2_", "PMIX_")
_KEPT = ("SLURM_CONF",)
ENDED = frozenset(
    {
        *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL"),
        *("DEADLINE", "OUT_OF_MEMORY", "REVOKED"),
    }
)
"""States of a job that is over. In any other, also in one that later Slurms may name, it runs or
waits: as for a moment in SIGNALING while it is told of its time limit."""
_LOST = ("down", "drain", "fail", "not_responding", "unknown")


class SlurmError(Exception):
    """A command of Slurm failed; holds what it said."""


class KilledCommandError(SlurmError):
    """A signal ended a command of Slurm, as one to all processes of a job does.

    It says nothing of Slurm: asked again, it answers.
    """


@dataclass(frozen=True)
class JobFacts:
    """What Slurm says of a job now."""

    state: str
    """PENDING, RUNNING, COMPLETING, CANCELLED, ..."""
    reason: str
    """Why it waits; `None` while it runs."""
    restarts: int
    """How often it was requeued."""
    preempted: bool
    """Whether a job of higher priority is taking its place."""
    time_left_s: float
    """Until its time limit; infinite without one."""

    @property
    def is_active(self) -> bool:
        """Whether it runs, waits or is about to do so."""
        return self.state not in ENDED

    @property
    def waits_for_begin_time(self) -> bool:
        """Whether it was requeued and waits only for the time that Slurm makes it wait."""
        return self.state == "PENDING" and self.reason == "BeginTime" and self.restarts > 0


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without what an enclosing Slurm job has set."""
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
    """What a command of Slurm prints. Raises SlurmError with its message where it fails."""
    try:
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except FileNotFoundError:
        raise SlurmError(f"there is no {words[0]} on this machine") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]} gave no answer within {timeout_s:g} s") from None
    if done.returncode < 0:
        raise KilledCommandError(f"{words[0]} was ended by {_signal_name(-done.returncode)}")
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise SlurmError(said[-1] if said else f"{words[0]} ended with {done.returncode}")
    return done.stdout


def retry_slurm(ask: Callable[[], Answer]) -> Answer:
    """The answer of Slurm, also where its controller is away for some minutes."""
    deadline, pause_s = time.monotonic() + _ANSWER_S, 1.0
    while True:
        try:
            return ask()
        except SlurmError as fault:
            if time.monotonic() > deadline:
                raise
            if isinstance(fault, KilledCommandError):
                time.sleep(0.2)
                continue
            logger.warning("Slurm does not answer (%s); asking again", fault)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 15.0)


@contextlib.contextmanager
def slurm_errors_to_user() -> Iterator[None]:
    """For a command that a user waits for: Slurm's silence is a message, not a traceback."""
    try:
        yield
    except SlurmError as fault:
        raise UserError(f"Slurm does not answer ({fault}); try again in a minute") from fault


def missing_slurm() -> str | None:
    """What keeps this machine from submitting to Slurm; None where nothing does."""
    if shutil.which("sbatch") is None or shutil.which("scontrol") is None:
        return "there is no sbatch on this machine"
    try:
        run_command("scontrol", "ping", timeout_s=10)
    except SlurmError as fault:
        return f"Slurm's controller does not answer ({fault})"
    return None


def job_facts(job_id: str) -> JobFacts | None:
    """The state of a job; None where Slurm has forgotten it. Raises SlurmError without answer.

    Of a whole array, an element that is still active where there is one.
    """
    try:
        text = run_command("scontrol", "show", "job", "--oneliner", job_id)
    except SlurmError as fault:
        if "Invalid job id" in str(fault):
            return None
        raise
    elements = [parse_job(line) for line in text.splitlines() if line.strip()]
    return next((facts for facts in elements if facts.is_active), elements[-1])


def own_job_id() -> str:
    """This process's job, as Slurm's commands take it.

    The last element of an array has the array's own number, by which commands mean all of it.
    """
    array, element = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return os.environ["SLURM_JOB_ID"] if array is None else f"{array}_{element}"


def whole_job(job_id: str) -> str:
    """The array of an array's element; else the job itself."""
    return job_id.partition("_")[0]


def parse_job(text: str) -> JobFacts:
    """The facts in a line of `scontrol show job --oneliner`."""
    fields = dict(word.split("=", 1) for word in text.split() if "=" in word)
    return JobFacts(
        state=fields["JobState"],
        reason=fields.get("Reason", "None"),
        restarts=int(fields.get("Restarts", 0)),
        preempted=fields.get("PreemptTime", "None") not in ("None", "N/A"),
        time_left_s=_seconds(fields.get("TimeLimit", "")) - _seconds(fields.get("RunTime", "")),
    )


def job_hosts(job_id: str) -> list[str]:
    """The hosts of a job's allocation now, in Slurm's order."""
    compact = run_command("squeue", "--noheader", "--jobs", job_id, "--format=%N").strip()
    return expand_hosts(compact)


def expand_hosts(expression: str) -> list[str]:
    """The names in a host list such as n[1-3,7]."""
    return run_command("scontrol", "show", "hostnames", expression).split()


def partition_hosts(partition: str | None) -> list[str]:
    """The hosts of a partition, of the default one for None, that are not down or drained."""
    listing = run_command("sinfo", "--noheader", "--Node", "--format=%R|%P|%N|%T")
    rows = [line.split("|") for line in listing.splitlines() if line.count("|") == 3]
    names = None if partition is None else set(partition.split(","))
    return [
        host
        for name, marked, host, state in rows
        if (marked.endswith("*") if names is None else name in names) and not _is_lost(state)
    ]


def lost_hosts(hosts: list[str]) -> list[str]:
    """Those of `hosts` that Slurm finds down or silent."""
    if not hosts:
        return []
    listing = run_command(
        "sinfo", "--noheader", "--Node", f"--nodes={','.join(hosts)}", "--format=%N %T"
    )
    states = dict(line.split(maxsplit=1) for line in listing.splitlines())
    return [host for host in hosts if _is_lost(states.get(host, "unknown"))]


def requeue(job_id: str) -> None:
    """Send a running job back to the queue; ends all its processes."""
    run_command("scontrol", "requeue", job_id)


def exclude_hosts(job_id: str, hosts: str) -> None:
    """Keep a job in the queue off hosts, a host list; replaces what it excluded before."""
    run_command("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={hosts}")


def end_begin_time_wait(job_id: str) -> None:
    """Let a requeued job start as soon as there are hosts, not after Slurm's wait."""
    run_command("scontrol", "update", f"JobId={job_id}", "StartTime=now")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one
        return f"signal {number}"


def _is_lost(state: str) -> bool:
    return state.endswith("*") or state.lower().startswith(_LOST)


def _seconds(text: str) -> float:
    """Of D-HH:MM:SS; infinite for UNLIMITED and for what is no time."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts) or not (days or "0").isdigit():
        return float("inf")
    seconds = 0.0
    for part in parts:
        seconds = seconds * 60 + int(part)
    return seconds + int(days or 0) * 86400
