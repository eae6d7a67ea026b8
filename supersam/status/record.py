"""What records of runs and of searches have in common: a folder, and what Slurm says of its job."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from supersam.cluster.slurm.jobs import JobQueue, SlurmJob
from supersam.config.files import JOB_FILE
from supersam.runs.attempts import AttemptEvent


@dataclass(frozen=True, kw_only=True)
class Record(ABC):
    """A run or search as its folder and the queue show it."""

    folder: Path
    job: SlurmJob | None
    """The newest job, where Slurm knows it."""
    job_id: str | None
    fault: str | None = None
    """Why the folder cannot be read, in one line; None where it can."""

    @property
    def job_state(self) -> Literal["unreadable", "pending", "running"] | None:
        """The state that is certain without a look at the folder's progress; None where none is."""
        if self.fault is not None:
            return "unreadable"
        if self.job is None or not self.job.is_active:
            return None
        return "pending" if self.job.is_waiting else "running"

    @property
    @abstractmethod
    def could_be_alive(self) -> bool:
        """Whether it has a job of which Slurm alone knows if it waits or runs."""

    @property
    def job_words(self) -> str | None:
        """The job, its state and its nodes; None where Slurm does not know it."""
        if self.job is None:
            return None
        return f"{self.job_id} {self.job.state} {self.job.nodes}".rstrip()


def newest_job(folder: Path, events: Sequence[AttemptEvent] = ()) -> str | None:
    """The job submitted last, which may not have begun, else the one that ran last."""
    began = max((event.time for event in events), default=0.0)
    try:
        job = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
        if job["submitted"] >= began:
            return str(job["job_id"])
    except (OSError, ValueError, KeyError):  # a local run, or another version's
        pass
    return next((event.job_id for event in reversed(events) if event.job_id is not None), None)


def ask_for_jobs(ids: Mapping[Path, str | None], queue: JobQueue) -> dict[Path, SlurmJob | None]:
    """The job of each folder, with a single Slurm query; None where Slurm does not know it."""
    jobs = queue.jobs(job_id for job_id in ids.values() if job_id is not None)
    return {f: None if job_id is None else jobs.get(job_id) for f, job_id in ids.items()}


def find_folders(root: Path, *patterns: str) -> list[Path]:
    """Folders below `root` of the files that match, the newest last."""
    files = [file for pattern in patterns for file in root.glob(pattern)]
    return [file.parent for file in sorted(files, key=lambda path: path.stat().st_mtime)]
