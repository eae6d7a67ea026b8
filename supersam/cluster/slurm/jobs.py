"""What Slurm says of jobs, as one record: from scontrol, or for many jobs from squeue and sacct.

`read_job` raises where Slurm does not answer. `JobQueue` never does: it works without Slurm,
without accounting and with the controller down, and turns what is wrong into one note.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from pathlib import Path

from supersam.cluster.slurm.commands import SlurmError, run_command
from supersam.config.files import batch_log
from supersam.runtime.tail import read_tail

ENDED = frozenset(
    {
        *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL"),
        *("DEADLINE", "OUT_OF_MEMORY", "REVOKED"),
    }
)
"""States of a job that is over. In any other, also in one that later Slurms may name, it runs or
waits: as for a moment in SIGNALING while it is told of its time limit."""
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
_SQUEUE = "%i|%T|%r|%N|%S"
_TABLE = (
    *("--noheader", "--parsable2", "--allocations"),
    "--format=JobID,State,Reason,NodeList,Start",
)
"""Of sacct."""
_TAKEN = "DUE TO PREEMPTION ***"
_NOTHING = ("None", "N/A", "Unknown", "(null)", "None assigned")


_HELD = {
    "launch_failed_requeued_held": "; a host could not start it, and Slurm holds it until you let "
    "it go: scontrol release {job}; where that happens again, tell the site's support",
    "JobHeldUser": "; you, or a command of yours, held it: scontrol release {job}",
    "JobHeldAdmin": "; the site holds it: ask its support why",
}
"""What to do about a job that never starts by itself, by Slurm's reason."""


@dataclass(frozen=True)
class SlurmJob:
    """One job as Slurm knows it."""

    job_id: str
    state: str
    """Slurm's word: PENDING, RUNNING, COMPLETING, OUT_OF_MEMORY, ..."""
    reason: str = ""
    """Why it waits or ended, Slurm's word; empty where there is none."""
    nodes: str = ""
    """Slurm's node list."""
    start: str = ""
    """When it began or is expected to; empty where unknown."""
    restarts: int = 0
    """How often it was requeued; only `read_job` knows, as it does the fields that follow."""
    preempted: bool = False
    """Whether a job of higher priority is taking its place."""
    time_left_s: float = inf
    """Until its time limit; infinite without one."""

    @property
    def is_active(self) -> bool:
        """Whether it runs, waits, or will by itself."""
        return self.state not in ENDED

    @property
    def is_waiting(self) -> bool:
        """Whether it is still, or again, in the queue."""
        return self.state in WAITING

    @property
    def waits_for_begin_time(self) -> bool:
        """Whether it was requeued and waits only for the time that Slurm makes it wait."""
        return self.state == "PENDING" and self.reason == "BeginTime" and self.restarts > 0

    @property
    def queue_words(self) -> str:
        """Why it waits and, where it never starts by itself, what to do."""
        reason = f"{self.state.lower()}, reason {self.reason or 'not given'}"
        begin = f", expected start {self.start}" if self.start else ""
        held = _HELD.get(self.reason.replace(" ", "_"), "").format(job=self.job_id)
        return f"in the queue as job {self.job_id}: {reason}{begin}{held}"


def read_job(job_id: str) -> SlurmJob | None:
    """Ask the controller for a job; None where it has forgotten it. Raises SlurmError.

    Of a whole array, an element that is still active where there is one.
    """
    try:
        text = run_command("scontrol", "show", "job", "--oneliner", job_id)
    except SlurmError as fault:
        if "Invalid job id" in str(fault):
            return None
        raise
    elements = [parse_job(line) for line in text.splitlines() if line.strip()]
    return next((job for job in elements if job.is_active), elements[-1])


def ended_as(job_id: str) -> str | None:
    """Slurm's word for the end of a job's last start, also where it was requeued since.

    None where the accounting does not tell. Never raises.
    """
    if shutil.which("sacct") is None:
        return None
    try:
        text = run_command("sacct", "--duplicates", *_TABLE, f"--jobs={job_id}", timeout_s=5.0)
    except SlurmError:
        return None
    states = [_parse_row(line).state for line in text.splitlines() if line.count("|") >= 4]
    ends = [state for state in states if state in ENDED or state == "REQUEUED"]
    return ends[-1] if ends else None


def was_preempted(folder: Path, job_id: str, *, attempt: int) -> bool:
    """Whether Slurm ended the job in that attempt, its last one, for a job of higher priority.

    The controller forgets it with the requeue; Slurm's line in the batch log and the accounting
    stay.
    """
    log = read_tail(batch_log(folder, job_id))
    said = log.rpartition(f"attempt {attempt} from step")[2]  # the log holds all starts of the job
    return _TAKEN in said or ended_as(job_id) == "PREEMPTED"


def parse_job(text: str) -> SlurmJob:
    """Read a line of `scontrol show job --oneliner`."""
    fields = dict(word.split("=", 1) for word in text.split() if "=" in word)
    return SlurmJob(
        job_id=fields.get("JobId", ""),
        state=fields["JobState"],
        reason=_word(fields.get("Reason", "")),
        nodes=_word(fields.get("NodeList", "")),
        start=_word(fields.get("StartTime", "")),
        restarts=int(fields.get("Restarts", 0)),
        preempted=_word(fields.get("PreemptTime", "")) != "",
        time_left_s=_seconds(fields.get("TimeLimit", "")) - _seconds(fields.get("RunTime", "")),
    )


class JobQueue:
    """Asks Slurm for many jobs at once, and stops asking a part of it that does not answer."""

    def __init__(self, *, timeout_s: float = 5.0) -> None:
        self._timeout_s = timeout_s
        self.note: str | None = None
        """What the user should know of the answers; one line."""

    def jobs(self, job_ids: Iterable[str]) -> dict[str, SlurmJob]:
        """Return the jobs that Slurm knows, by id."""
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
        return found | self._account(missing)

    def _account(self, job_ids: list[str]) -> dict[str, SlurmJob]:
        """Ask the accounting, which remembers what the controller has forgotten."""
        if not job_ids or shutil.which("sacct") is None:
            return {}
        return self._ask("sacct", *_TABLE, f"--jobs={','.join(job_ids)}")

    def _ask(self, *command: str) -> dict[str, SlurmJob]:
        try:
            text = run_command(*command, timeout_s=self._timeout_s)
        except SlurmError as fault:
            if command[0] == "squeue" and "Invalid job id" not in str(fault):  # forgotten
                self.note = f"Slurm does not answer ({fault}): this is what the run wrote itself"
            return {}
        jobs = [_parse_row(line) for line in text.splitlines() if line.count("|") >= 4]
        return {job.job_id: job for job in jobs}


def _parse_row(line: str) -> SlurmJob:
    job_id, state, reason, nodes, start = line.split("|")[:5]
    word = state.split()[0]  # "CANCELLED by 1000"
    return SlurmJob(job_id, word, reason=_word(reason), nodes=_word(nodes), start=_word(start))


def _word(text: str) -> str:
    return "" if text in _NOTHING else text


def _seconds(text: str) -> float:
    """Read D-HH:MM:SS; infinite for UNLIMITED and for what is not a time."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts) or not (days or "0").isdigit():
        return inf
    seconds = 0.0
    for part in parts:
        seconds = seconds * 60 + int(part)
    return seconds + int(days or 0) * 86400
