"""Everything that is known about a run, by its folder and by Slurm. Reads only; no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from supersam.cluster.slurm.jobs import JobQueue, SlurmJob
from supersam.cluster.slurm.restart_policy import WORDS, reason_of_state
from supersam.config import UserError, read_yaml
from supersam.config.files import RUN_FILE, batch_log
from supersam.health.records import (
    RankHeartbeat,
    Status,
    is_alive,
    read_heartbeats,
    read_status,
    saved_step,
)
from supersam.health.watchdog import HangReport, read_hang_report
from supersam.runs.attempts import AttemptEvent, Reason, is_cancelled, read_attempts
from supersam.runtime.tail import read_tail
from supersam.status.record import Record, ask_for_jobs, find_folders, newest_job

State = Literal[
    "new",
    "pending",
    "running",
    "finished",
    "stopped",
    "cancelled",
    "failed",
    "stuck",
    "lost",
    "unreadable",
]
_HEARTBEAT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class RunRecord(Record):
    """A run as its folder and the queue show it."""

    steps: int
    """Optimizer steps that were asked for."""
    heartbeat_s: float
    """Seconds between heartbeats."""
    status: Status | None
    heartbeats: list[RankHeartbeat]
    events: list[AttemptEvent]
    hang: HangReport | None
    saved_step: int
    """Step of the last checkpoint; 0 before the first."""
    cancelled: bool

    @property
    def state(self) -> State:
        """Where the run is; `lost`: it ended without saying so."""
        if self.job_state is not None:
            return self.job_state
        if any(self.works(beat) for beat in self.heartbeats):
            return "running"
        failed = any(beat.phase == "failed" for beat in self.heartbeats)
        if self.status is not None and self.status.phase == "finished" and not failed:
            return "finished"
        if self._was_cancelled or (self.cancelled and self._ever_began):
            return "cancelled"
        if self.hang is not None:
            return "stuck"
        if failed:
            return "failed"
        if self.status is not None and self.status.phase == "stopped":
            if self.lost_requeue:
                return "lost"
            return "stopped" if self.open_end in (None, "ended") else "lost"
        if 0 < self.steps <= self.saved_step:
            return "finished"
        if self.heartbeats or self.saved_step:
            return "lost"
        if self.events and self.events[-1].event == "start" and self.job is None and self.job_id:
            return "lost"  # it may have begun, and Slurm does not say
        return "failed" if self.events else "new"

    @property
    def could_be_alive(self) -> bool:
        """Whether it has a job of which Slurm alone knows if it waits or runs."""
        if self.job_id is None or self.job is not None:
            return False
        has_begun = bool(self.events) and self.events[-1].job_id == self.job_id
        return not (has_begun and self.state in ("finished", "cancelled"))

    @property
    def _ever_began(self) -> bool:
        return self.status is not None or bool(self.events) or self.job is not None

    @property
    def _was_cancelled(self) -> bool:
        """Whether the last attempt was, also by a scancel, which leaves no mark in the folder."""
        return self.open_end == "cancelled" or (
            bool(self.events) and self.events[-1].reason == "cancelled"
        )

    @property
    def lost_requeue(self) -> bool:
        """Whether the batch step said that it requeues its job, and was killed before it did."""
        if not self.events or self.job_id is None or self.job is None or self.job.is_active:
            return False
        last = self.events[-1]
        if last.event == "start" or last.job_id != self.job_id or self.job.state == "CANCELLED":
            return False
        log = read_tail(batch_log(self.folder, self.job_id))
        _, announced, later = log.rpartition(WORDS["requeue"])
        # where it was requeued, the next start has said something
        return bool(announced) and not re.search(r"supervisor: |^error: ", later, re.MULTILINE)

    @property
    def open_end(self) -> Reason | None:
        """Why the last attempt is over, where it left no word; None where it did or goes on."""
        if not self.events or self.events[-1].event == "end":
            return None
        if self.job is not None and self.job_id == self.events[-1].job_id:
            return None if self.job.is_active else reason_of_state(self.job.state)
        known = [beat for beat in self.heartbeats if beat.time > self.events[-1].time]
        return "ended" if known and not any(self.works(beat) for beat in known) else None

    def works(self, beat: RankHeartbeat) -> bool:
        """Whether a rank still works; none does once its attempt is over.

        A rank that was killed on another host leaves a fresh heartbeat behind.
        """
        if self.events:
            last = self.events[-1]
            gone = self.job is not None and not self.job.is_active and last.job_id == self.job_id
            if last.event == "end" or gone:
                return False
        return is_alive(beat, self.heartbeat_s)

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.saved_step if self.status is None else self.status.step

    @property
    def attempt(self) -> int:
        """Number of the newest attempt; 0 before the first."""
        own = 0 if self.status is None else self.status.attempt
        return max([own, *(event.attempt for event in self.events)])

    @property
    def seen(self) -> float | None:
        """Time of the last sign of life; None before the first."""
        return max((beat.time for beat in self.heartbeats), default=None)


def read_record(folder: Path, queue: JobQueue) -> RunRecord:
    """Read everything about the run of `folder`. Raises UserError where it cannot be read."""
    if not (folder / RUN_FILE).is_file():
        beside = [each.parent.name for each in folder.parent.glob(f"*/{RUN_FILE}")]
        close = difflib.get_close_matches(folder.name, beside, n=1)
        remedy = f"did you mean {folder.with_name(close[0])}? " if close else ""
        raise UserError(
            f"{folder} holds no run (no {RUN_FILE}); {remedy}launch/status.py lists runs and "
            "searches"
        )
    record = read_records([folder], queue)[0]
    if record.fault is not None:
        raise UserError(record.fault)
    return record


def read_records(folders: Sequence[Path], queue: JobQueue) -> list[RunRecord]:
    """Like `read_record` for several runs, with a single Slurm query.

    An unreadable run carries the reason in `fault`.
    """
    events = {folder: read_attempts(folder) for folder in folders}
    ids = {folder: newest_job(folder, events[folder]) for folder in folders}
    jobs = ask_for_jobs(ids, queue)
    return [_record(folder, events[folder], ids[folder], jobs[folder]) for folder in folders]


def find_runs(root: Path) -> list[Path]:
    """Folders of the runs directly below `root`, the newest last."""
    return find_folders(root, f"*/{RUN_FILE}")


def _record(
    folder: Path, events: list[AttemptEvent], job_id: str | None, job: SlurmJob | None
) -> RunRecord:
    steps, heartbeat_s, fault = _asked_for(folder / RUN_FILE)
    status = read_status(folder)
    if status is not None and job is not None and job.state == "RUNNING":
        status = _of_this_attempt(status, events, folder)
    return RunRecord(
        folder=folder,
        steps=steps if status is None else status.steps,
        heartbeat_s=heartbeat_s,
        status=status,
        heartbeats=read_heartbeats(folder),
        events=events,
        hang=read_hang_report(folder),
        saved_step=saved_step(folder),
        cancelled=is_cancelled(folder),
        job=job,
        job_id=job_id,
        fault=fault,
    )


def _of_this_attempt(status: Status, events: list[AttemptEvent], folder: Path) -> Status:
    """The status; before rank 0 of a new attempt writes its own, that of the attempt before."""
    if not events or events[-1].event == "end" or events[-1].time < status.time:
        return status
    return replace(status, phase="starting", step=saved_step(folder), eta_s=None)


def _asked_for(path: Path) -> tuple[int, float, str | None]:
    """Steps, seconds between heartbeats, and why `run.yaml` cannot be read; None where it can.

    Another version may have written it: nothing else is validated.
    """
    try:
        values = read_yaml(path)
        steps = int(values.get("optim", {}).get("steps", 0))
        return steps, float(values.get("watchdog", {}).get("heartbeat_s", _HEARTBEAT_S)), None
    except UserError as fault:
        return 0, _HEARTBEAT_S, " ".join(str(fault).split())
    except (AttributeError, TypeError, ValueError) as fault:
        return 0, _HEARTBEAT_S, f"{path} does not describe a run: {fault}"
