"""What Slurm says of jobs: squeue first, sacct second, each with a time limit. Never raises.

Works without Slurm, without accounting and with the controller down; what is wrong becomes one
note, not a storm of warnings.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from supersam.cluster.slurm.commands import ENDED

WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
_SQUEUE = "%i|%T|%r|%N|%S"
_SACCT = "JobID,State,Reason,NodeList,Start"


@dataclass(frozen=True)
class Job:
    """One job as Slurm knows it."""

    job_id: str
    state: str
    """Slurm's word: PENDING, RUNNING, OUT_OF_MEMORY, ..."""
    reason: str
    """Why it waits or ended, Slurm's word; empty where there is none."""
    nodes: str
    """Slurm's node list."""
    start: str
    """When it began or is expected to; empty where unknown."""

    @property
    def is_active(self) -> bool:
        """Whether it runs, or will by itself."""
        return self.state not in ENDED

    @property
    def is_waiting(self) -> bool:
        """Whether it is still, or again, in the queue."""
        return self.state in WAITING


class Queue:
    """Asks Slurm, and stops asking a part of it that does not answer."""

    def __init__(self, *, timeout_s: float = 5.0) -> None:
        self._timeout_s = timeout_s
        self.note: str | None = None
        """What the user should know of the answers; one line."""

    def jobs(self, job_ids: Iterable[str]) -> dict[str, Job]:
        """The jobs that Slurm knows, by id."""
        wanted = sorted(set(job_ids))
        if not wanted:
            return {}
        if shutil.which("squeue") is None:
            self.note = "there is no Slurm here (no squeue): this is what the run wrote itself"
            return {}
        names = ",".join(wanted)
        fields = ["--array", "--states=all", f"--format={_SQUEUE}"]  # a line for each element
        found = self._ask("squeue", "--noheader", f"--jobs={names}", *fields)
        missing = [job_id for job_id in wanted if job_id not in found]
        if missing and shutil.which("sacct") is not None:
            names = ",".join(missing)
            table = ["--noheader", "--parsable2", "--allocations", f"--format={_SACCT}"]
            found |= self._ask("sacct", *table, f"--jobs={names}")
        return found

    def _ask(self, *command: str) -> dict[str, Job]:
        answer = bounded(*command, timeout_s=self._timeout_s)
        if answer.fault is not None and command[0] == "squeue":
            self.note = f"Slurm does not answer ({answer.fault}): this is what the run wrote itself"
        jobs = [_parse(line) for line in answer.text.splitlines() if line.count("|") >= 4]
        return {job.job_id: job for job in jobs}


@dataclass(frozen=True)
class Answer:
    """What a command of Slurm printed, or why it did not."""

    text: str
    fault: str | None


def bounded(*command: str, timeout_s: float) -> Answer:
    """Run a command of Slurm to its end or its time limit."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return Answer("", f"{command[0]}: no answer within {timeout_s:g} s")
    except OSError as fault:
        return Answer("", f"{command[0]}: {fault}")
    if done.returncode != 0 and "Invalid job id" not in done.stderr:  # an old job is forgotten
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Answer(done.stdout, f"{command[0]}: {lines[-1]}")
    return Answer(done.stdout, None)


def _parse(line: str) -> Job:
    job_id, state, reason, nodes, start = line.split("|")[:5]
    unknown = ("None", "N/A", "Unknown", "(null)", "None assigned")
    reason, nodes, start = ("" if word in unknown else word for word in (reason, nodes, start))
    return Job(job_id, state.split()[0], reason, nodes, start)  # "CANCELLED by 1000"
