"""Everything that is known about a search, by its folder and by Slurm. Reads only; no torch."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from supersam.cluster.slurm.jobs import JobQueue, SlurmJob
from supersam.config.files import (
    JOURNAL_FILE,
    LOGS,
    PARETO_JSON,
    REPORT_FILE,
    RESULTS,
    SEARCH_FILE,
    batch_log,
)
from supersam.runtime.jsonl import read_jsonl
from supersam.runtime.tail import read_tail
from supersam.status.record import Record, ask_for_jobs, find_folders, newest_job

State = Literal["pending", "running", "finished", "failed", "unfinished", "unreadable"]
_LEAST_BYTES = 4096
_LOCKS = Path("/proc/locks")
_FAULT = re.compile(r"(error|[\w.]*(Error|Exception)): ")


@dataclass(frozen=True, kw_only=True)
class SearchRecord(Record):
    """A search as its folder and the queue show it."""

    asked: int
    """Trials that were asked for."""
    trials: int
    """Subnets in the journal that a searcher proposed."""
    front: int
    """Subnets on the front so far."""
    best_miou: float | None
    """Highest mIoU of the front so far."""
    has_ended: bool
    """Whether the search has said so."""
    is_written_here: bool
    """Whether a process of this host has the journal open to write."""
    seen: float | None
    """Time of the last trial."""
    log: Path | None
    """The log of the job, or of the search on this machine."""

    @property
    def state(self) -> State:
        """Where the search is; `unfinished`: the same command goes on."""
        if self.job_state is not None:
            return self.job_state
        if self.is_written_here:
            return "running"
        if self.has_ended:
            return "finished"
        failed = self.job is not None and self.job.state != "COMPLETED"
        return "failed" if failed else "unfinished"

    @property
    def could_be_alive(self) -> bool:
        """Whether it has a job of which Slurm alone knows if it waits or runs."""
        known = self.state in ("finished", "unreadable") or self.is_written_here
        return self.job_id is not None and self.job is None and not known

    @property
    def words(self) -> str:
        """The state and how far it is, in one line."""
        if self.fault is not None:
            return self.fault
        text = f"{self.state}, {self.trials} of {self.asked} trials, {self.front} on the front"
        if self.best_miou is not None:
            text += f", the best at mIoU {self.best_miou:.4f}"
        if self.state == "pending" and self.job is not None:
            text += f"; {self.job.queue_words}"
        if self.state == "failed" and self.job is not None:
            text += f"; job {self.job_id} ended as {self.job.state}"
        goes_on = self.state in ("failed", "unfinished")
        fault = _last_fault(self.log) if goes_on and self.log is not None else None
        if goes_on and shutil.disk_usage(self.folder).free < _LEAST_BYTES:
            fault = f"no word, as the disk of {self.folder} is full"
        if fault is not None:
            text += f"; its log ends with {fault}"
        return f"{text}; the same command goes on" if goes_on else text

    @property
    def report(self) -> Path | None:
        """The page of what was found, where there is one."""
        path = self.folder / REPORT_FILE
        return path if path.is_file() else None


def find_searches(root: Path) -> list[Path]:
    """Folders of the searches of the runs below `root`, also those of sweeps; the newest last."""
    return find_folders(root, f"*/{RESULTS}/*/{SEARCH_FILE}", f"*/{RESULTS}/*/*/{SEARCH_FILE}")


def read_searches(folders: Sequence[Path], queue: JobQueue) -> list[SearchRecord]:
    """Read everything about the searches, with a single Slurm query.

    An unreadable search carries the reason in `fault`.
    """
    ids = {folder: newest_job(folder) for folder in folders}
    jobs = ask_for_jobs(ids, queue)
    return [_read(folder, ids[folder], jobs[folder]) for folder in folders]


def _read(folder: Path, job_id: str | None, job: SlurmJob | None) -> SearchRecord:
    journal = folder / JOURNAL_FILE
    is_written_here = _is_locked(journal)
    asked, known, has_ended, fault = 0, 0, False, None
    front: list[float] = []
    try:
        record = json.loads((folder / SEARCH_FILE).read_text(encoding="utf-8"))
        asked, has_ended = int(record["config"]["trials"]), bool(record.get("finished", False))
        known = int(record.get("num_trials", 0))  # with proposals that were references already
        front = _front(folder / PARETO_JSON)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        fault = f"{folder} cannot be read as a search: {problem!r}"
    return SearchRecord(
        folder=folder,
        asked=asked,
        trials=max(known, _count_trials(journal)),
        front=len(front),
        best_miou=max(front, default=None),
        has_ended=has_ended,
        is_written_here=is_written_here,
        seen=journal.stat().st_mtime if journal.is_file() else None,
        job=job,
        job_id=job_id,
        log=_find_log(folder, job_id, is_here=is_written_here),
        fault=fault,
    )


def _front(file: Path) -> list[float]:
    """The mIoU of each subnet on the front."""
    if not file.is_file():
        return []
    front: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return [float(trial["metrics"]["miou"]) for trial in front]


def _count_trials(journal: Path) -> int:
    """Count the proposals in a journal, without lines that are damaged or being written."""
    trials = read_jsonl(journal, lambda line: (line["trial"]["stage"], line["trial"]["key"]))
    return len({key for stage, key in trials if stage == "search"})


def _is_locked(path: Path) -> bool:
    """Whether a process of this host holds a lock on the file.

    Asked of the kernel: to try the lock could turn away a search that starts in that moment.
    """
    try:
        about, locks = path.stat(), _LOCKS.read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    major, minor = os.major(about.st_dev), os.minor(about.st_dev)
    name = f"{major:02x}:{minor:02x}:{about.st_ino}"
    return any(name in line.split() for line in locks)


def _last_fault(log: Path) -> str | None:
    """The last line of a log, where it tells of an error."""
    lines = read_tail(log).split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last if _FAULT.match(last) else None


def _find_log(folder: Path, job_id: str | None, *, is_here: bool) -> Path | None:
    """A job's log lies with the search, its sweep or its run; that of this machine with it."""
    homes = [] if is_here else [folder, *folder.absolute().parents[:2]]
    logs = [] if job_id is None else [batch_log(home, job_id) for home in homes]
    logs.append(folder / LOGS / "search.log")
    return next((log for log in logs if log.is_file()), None)
