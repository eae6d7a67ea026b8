"""`attempts.jsonl`: each start and end of a run, over all jobs and requeues. No Slurm, no torch.

One JSON object a line, with the fields of `AttemptEvent`. An attempt is one start of the ranks;
a job that restarts them, or is requeued, makes several. One that was killed without notice has no
end of its own: the next attempt writes it, with the last time at which the run showed life.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from supersam.config.files import ATTEMPTS_FILE, CANCEL_FILE, HEARTBEATS, LOGS, PROGRESS_FILE
from supersam.health.records import saved_step
from supersam.health.watchdog import STALLED
from supersam.runtime.jsonl import append_jsonl, read_jsonl

Reason = Literal[
    "finished",
    "preempted",
    "preempted without notice",
    "time limit",
    "signal USR2",
    "signal TERM",
    "signal INT",
    "requeued",
    "node failure",
    "stuck",
    "failed",
    "cancelled",
    "ended",
]
"""`ended`: the job is over, and neither it nor Slurm says why."""


@dataclass(frozen=True)
class AttemptEvent:
    """A line of `attempts.jsonl`."""

    attempt: int
    """1-based number of the attempt in the run."""
    event: Literal["start", "end"]
    time: float
    """Unix time, seconds."""
    job_id: str | None
    """Slurm's job; None on a machine without."""
    restart_count: int
    """How often Slurm had requeued the job."""
    hosts: tuple[str, ...]
    """Hosts of the ranks, in rank order."""
    world_size: int
    """Ranks."""
    step: int
    """Step of the last checkpoint; 0 before the first."""
    reason: Reason | None = None
    """Why it ended; None at a start."""
    exit_code: int | None = None
    """Exit code of the worst rank; None at a start and where nobody saw it."""


def read_attempts(folder: Path) -> list[AttemptEvent]:
    """The events of a run, oldest first. A line that a crash cut short is left out."""
    return read_jsonl(folder / ATTEMPTS_FILE, _parse)


def start_attempt(
    folder: Path,
    *,
    job_id: str | None = None,
    restart_count: int = 0,
    hosts: Sequence[str],
    world_size: int,
    killed_by: Reason = "node failure",
) -> AttemptEvent:
    """Record that the ranks start now, and end a former attempt that nobody ended.

    killed_by: the reason of that end in a Slurm job.
    """
    events = read_attempts(folder)
    if events and events[-1].event == "start":
        before = events[-1]
        reason: Reason = "failed" if before.job_id is None else killed_by
        _append(folder, _ended(before, folder, _last_sign_of_life(folder, before), reason, None))
    event = AttemptEvent(
        attempt=max((event.attempt for event in events), default=0) + 1,
        event="start",
        time=time.time(),
        job_id=job_id,
        restart_count=restart_count,
        hosts=tuple(hosts),
        world_size=world_size,
        step=saved_step(folder),
    )
    _append(folder, event)
    return event


def end_attempt(folder: Path, started: AttemptEvent, reason: Reason, exit_code: int | None) -> None:
    """Record that the ranks of `started` have ended now."""
    _append(folder, _ended(started, folder, time.time(), reason, exit_code))


def attempts_without_progress(events: Iterable[AttemptEvent], job_id: str | None) -> int:
    """How many attempts of this job, counted back from the last, ended without a new checkpoint."""
    events = [event for event in events if event.job_id == job_id]
    starts = {event.attempt: event.step for event in events if event.event == "start"}
    count = 0
    for event in reversed(events):
        if event.event == "end":
            if event.step > starts.get(event.attempt, 0):
                break
            count += 1
    return count


def reason_of(exit_code: int) -> Reason:
    """What an exit code of the ranks alone says."""
    stopped: dict[int, Reason] = {
        0: "finished",
        128 + signal.SIGINT: "signal INT",
        128 + signal.SIGTERM: "signal TERM",
        128 + signal.SIGUSR2: "signal USR2",
        STALLED: "stuck",
    }
    return stopped.get(exit_code, "failed")


def is_cancelled(folder: Path) -> bool:
    """Whether somebody asked that this run ends for good."""
    return (folder / CANCEL_FILE).exists()


def _ended(
    started: AttemptEvent, folder: Path, when: float, reason: Reason, exit_code: int | None
) -> AttemptEvent:
    changes = {"event": "end", "time": when, "step": saved_step(folder)}
    return AttemptEvent(**{**asdict(started), **changes, "reason": reason, "exit_code": exit_code})


def _last_sign_of_life(folder: Path, started: AttemptEvent) -> float:
    files = [*folder.glob(f"{LOGS}/*"), *folder.glob(f"{HEARTBEATS}/*"), folder / PROGRESS_FILE]
    times = [file.stat().st_mtime for file in files if file.exists()]
    return max([started.time, *times])


def _append(folder: Path, event: AttemptEvent) -> None:
    append_jsonl(folder / ATTEMPTS_FILE, asdict(event), durable=True)


def _parse(values: dict[str, Any]) -> AttemptEvent:
    """The event of a line; fields of a later version are left out."""
    known = {field.name for field in fields(AttemptEvent)}
    values = {name: value for name, value in values.items() if name in known}
    return AttemptEvent(**{**values, "hosts": tuple(values["hosts"])})
