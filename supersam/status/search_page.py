"""A search, as it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from supersam.cluster.slurm.jobs import JobQueue
from supersam.config import UserError
from supersam.config.files import LOGS
from supersam.runtime.table import ago, number
from supersam.status.diagnosis import Why
from supersam.status.page import Page
from supersam.status.search import SearchRecord


class SearchPage(Page[SearchRecord]):
    """A search, as it is shown."""

    noun = "search"
    columns = ("SEARCH", "STATE", "TRIALS", "OF", "FRONT", "BEST MIOU", "JOB", "SEEN")

    def why(self) -> Why:
        """Its state and how far it is."""
        return Why(self.record.state, self.record.words)

    def row(self, root: Path) -> tuple[str, ...]:
        """Its line of the table."""
        search = self.record
        return (
            str(search.folder.relative_to(root)),
            search.state,
            str(search.trials),
            str(search.asked),
            str(search.front),
            number(search.best_miou, ".4f"),
            search.job_id or "-",
            ago(search.seen),
        )

    def lines(self) -> list[str]:
        """Its job, its log and its report."""
        known = {
            "job": self.record.job_words,
            "log": self.record.log,
            "report": self.record.report,
        }
        return [f"{name:7} {value}" for name, value in known.items() if value is not None]

    def summary(self) -> dict[str, Any]:
        """What the table and the page say."""
        search = self.record
        return {
            "search": str(search.folder),
            "state": search.state,
            "trials": search.trials,
            "asked": search.asked,
            "front": search.front,
            "best_miou": search.best_miou,
            "job_id": search.job_id,
            "seen": search.seen,
            "log": None if search.log is None else str(search.log),
            "report": None if search.report is None else str(search.report),
        }

    def cancel(self) -> str:
        """Raise UserError: it says how a search is ended."""
        search = self.record
        if search.state not in ("running", "pending"):
            raise UserError(f"{search.folder} is not running ({search.state}); nothing to end")
        on_slurm = search.job is not None and search.job.is_active
        how = f"scancel {search.job_id}" if on_slurm else "end its command with Ctrl-C"
        raise UserError(f"{search.folder} is a search: {how}; nothing that it found is lost")

    def follow(self, rank: int, queue: JobQueue) -> None:
        """Raise UserError: it says which file to follow."""
        log = self.record.log or self.record.folder / LOGS
        raise UserError(f"{self.record.folder} is a search: follow it with tail -f {log}")
