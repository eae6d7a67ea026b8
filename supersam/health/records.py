"""The records that the ranks of a run leave on disk, and their readers. No torch.

`heartbeats/rank-00000.json` of every rank and `status.json` of rank 0, which `Heartbeat` writes,
and `progress.json` of the last checkpoint.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from supersam.config.files import ATTEMPTS_FILE, HEARTBEATS, PROGRESS_FILE, STATUS_FILE
from supersam.runtime.jsonl import read_jsonl
from supersam.runtime.process import is_same_process

ATTEMPT_VARIABLE = "SUPERSAM_ATTEMPT"
"""In the environment of every rank: the number of the attempt that it belongs to."""

Phase = Literal[
    "starting",
    "training",
    "prioritizing",
    "validating",
    "saving",
    "finished",
    "stopped",
    "failed",
    "stuck",
]
_FRESH_INTERVALS = 6  # heartbeats of another host that may be missing
ENDED: frozenset[str] = frozenset({"finished", "stopped", "failed", "stuck"})


@dataclass(frozen=True)
class Fault:
    """The exception that ended a rank."""

    kind: str
    """Name of its class."""
    message: str
    where: str
    """File and line: the innermost of this software, else the innermost."""


@dataclass(frozen=True)
class RankHeartbeat:
    """A rank's last heartbeat: `heartbeats/rank-00000.json`."""

    rank: int
    world_size: int
    host: str
    pid: int
    started_ticks: int
    """When the process started, in clock ticks since the host's boot; `pid` alone is used again."""
    time: float
    """When this heartbeat was written, Unix seconds."""
    phase: Phase
    step: int
    """Optimizer steps taken."""
    step_time: float
    """When the last step ended (at first: the start), Unix seconds."""
    median_step_s: float | None
    """Median of the last steps, seconds; None before the second one."""
    median_work_s: float | None
    """The same without the wait for other ranks: a straggler's is the longest."""
    marks: int
    """How often the rank noted progress: the rank with the lowest count is behind."""
    memory_gib: float
    """Memory that the process has in use, on its GPU where it has one."""
    host_free_gib: float
    """Memory that the host could still give."""
    fault: Fault | None = None
    attempt: int = 0
    """Number of the attempt that the rank belongs to; 0 where it does not know."""

    @property
    def has_ended(self) -> bool:
        """Whether the rank itself wrote that it has ended."""
        return self.phase in ENDED


@dataclass(frozen=True)
class AttemptTimes:
    """How one attempt spent its time, as rank 0 measured it."""

    started: float
    """Unix seconds."""
    updated: float
    first_step: int
    last_step: int
    world_size: int
    nodes: int
    seconds: dict[str, float]
    """By phase; `training` counts finished steps, `unfinished` the step that did not finish."""


@dataclass(frozen=True)
class Status:
    """How far a run is: `status.json`, written by rank 0."""

    time: float
    phase: Phase
    step: int
    steps: int
    attempt: int
    """1 for the first."""
    eta_s: float | None
    images_per_s: float | None
    losses: dict[str, float | None]
    """Mean loss by slot of the sandwich."""
    miou: float | None
    """Mean IoU of the last validation."""
    checkpoint: int | None
    """Step of the last checkpoint."""
    attempts: list[AttemptTimes]
    """All attempts so far, this one last."""


def own_attempt() -> int:
    """Return the attempt that this process belongs to; 0 where its environment names none."""
    return int(os.environ.get(ATTEMPT_VARIABLE, 0))


def is_attempt_over(folder: Path, attempt: int) -> bool:
    """Whether the run of `folder` has recorded the end of an attempt, or a later one's start.

    A rank can outlive its attempt: its host lost the network, and Slurm started the run elsewhere.
    """
    if attempt == 0:
        return False
    try:
        events = read_jsonl(folder / ATTEMPTS_FILE, lambda e: (int(e["attempt"]), e["event"]))
    except OSError:
        return False
    return any(number > attempt or (number, event) == (attempt, "end") for number, event in events)


def read_heartbeats(folder: Path) -> list[RankHeartbeat]:
    """Read the last sign of life of each rank of the newest attempt, by rank."""
    beats = [
        beat
        for path in sorted((folder / HEARTBEATS).glob("rank-*.json"))
        if (beat := _read_heartbeat(path)) is not None
    ]
    if not beats:
        return []
    newest = max(beats, key=lambda beat: (beat.attempt, beat.time))
    return [b for b in beats if b.attempt == newest.attempt and b.rank < newest.world_size]


def is_alive(beat: RankHeartbeat, heartbeat_s: float) -> bool:
    """Whether the rank still works: by its process on this host, elsewhere by when `beat` was."""
    if beat.has_ended:
        return False
    if beat.host == socket.gethostname():
        return is_same_process(beat.pid, beat.started_ticks)
    return time.time() - beat.time < _FRESH_INTERVALS * heartbeat_s


def read_status(folder: Path) -> Status | None:
    """Read how far the run of `folder` is; None where it never began."""
    values = _read(folder / STATUS_FILE)
    try:
        if values is None:
            return None
        attempts = [AttemptTimes(**times) for times in values.pop("attempts")]
        return Status(**values, attempts=attempts)
    except (KeyError, TypeError):  # another version's
        return None


def saved_step(folder: Path) -> int:
    """Step of the run's last checkpoint; 0 before the first."""
    try:
        return int(json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))["step"])
    except FileNotFoundError:
        return 0


def _read_heartbeat(path: Path) -> RankHeartbeat | None:
    values = _read(path)
    try:
        if values is None:
            return None
        fault = values.pop("fault")
        return RankHeartbeat(**values, fault=None if fault is None else Fault(**fault))
    except (KeyError, TypeError):  # another version's
        return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
