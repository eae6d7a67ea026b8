"""What the ranks of a run tell of themselves on disk: records and readers. No torch.

`heartbeats/rank-00000.json` of every rank and `status.json` of rank 0, which `Heartbeat` writes,
and `progress.json` of the last checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from supersam.config.files import HEARTBEATS, PROGRESS_FILE, STATUS_FILE

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
class Beat:
    """One rank's last sign of life."""

    rank: int
    world_size: int
    host: str
    pid: int
    started_ticks: int
    """Start of the process, clock ticks since the host's boot; with `pid` it names the process."""
    time: float
    """Of this sign, Unix seconds."""
    phase: Phase
    step: int
    """Optimizer steps taken."""
    step_time: float
    """When the last of them ended (at first: the start), Unix seconds."""
    median_step_s: float | None
    """Of the last steps; None before the second one."""
    median_work_s: float | None
    """Of the part of a step before it waits for the others: a straggler's is the longest."""
    marks: int
    """Places in the program passed: the rank with the fewest is behind."""
    memory_gib: float
    """In use by the process, or by it on its GPU."""
    host_free_gib: float
    """Memory that the host could still give."""
    fault: Fault | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the rank itself said that it is over."""
        return self.phase in ENDED


@dataclass(frozen=True)
class AttemptTimes:
    """Where the time of one attempt went, as rank 0 saw it."""

    started: float
    """Unix seconds."""
    updated: float
    first_step: int
    last_step: int
    world_size: int
    nodes: int
    seconds: dict[str, float]
    """By phase; `training` counts finished steps, `unfinished` the one that was not."""


@dataclass(frozen=True)
class Status:
    """Where a run stands: `status.json`, written by rank 0."""

    time: float
    phase: Phase
    step: int
    steps: int
    attempt: int
    """1 for the first."""
    eta_s: float | None
    images_per_s: float | None
    losses: dict[str, float | None]
    """By slot of the sandwich."""
    miou: float | None
    """Of the last validation."""
    checkpoint: int | None
    """Step of the last checkpoint."""
    attempts: list[AttemptTimes]
    """All attempts so far, this one last."""


def read_beats(folder: Path) -> list[Beat]:
    """The last sign of life of each rank of the newest attempt, by rank."""
    beats = [
        beat
        for path in sorted((folder / HEARTBEATS).glob("rank-*.json"))
        if (beat := _read_beat(path)) is not None
    ]
    world_size = max(beats, key=lambda beat: beat.time).world_size if beats else 0
    return [beat for beat in beats if beat.rank < world_size]


def read_status(folder: Path) -> Status | None:
    """Where the run of `folder` stands; None where it never began."""
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


def _read_beat(path: Path) -> Beat | None:
    values = _read(path)
    try:
        if values is None:
            return None
        fault = values.pop("fault")
        return Beat(**values, fault=None if fault is None else Fault(**fault))
    except (KeyError, TypeError):  # another version's
        return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
