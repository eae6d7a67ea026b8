"""`launch/status.py`: all searches in a table, and one in detail."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from supersam.config import StatusRun, UserError
from supersam.config.files import LOGS
from supersam.status.search import SearchRecord
from supersam.status.table import ago, aligned, number

_COLUMNS = ("SEARCH", "STATE", "TRIALS", "OF", "FRONT", "BEST MIOU", "JOB", "SEEN")


def search_table(searches: Sequence[SearchRecord], root: Path) -> str:
    """A line for each search."""
    return aligned([_COLUMNS, *(_row(search, root) for search in searches)])


def show_search(search: SearchRecord, options: StatusRun) -> None:
    """Print where the search stands. Raises UserError for what is done to runs alone."""
    if search.fault is not None:
        raise UserError(search.fault)
    if options.cancel:
        if search.state not in ("running", "pending"):
            raise UserError(f"{search.folder} is not running ({search.state}); nothing to end")
        on_slurm = search.job is not None and search.job.is_active
        how = f"scancel {search.job_id}" if on_slurm else "end its command with Ctrl-C"
        raise UserError(f"{search.folder} is a search: {how}; nothing that it found is lost")
    if options.follow:
        log = search.log or search.folder / LOGS
        raise UserError(f"{search.folder} is a search: follow it with tail -f {log}")
    if options.json_:
        print(json.dumps(search_summary(search)))
        return
    lines = [f"{search.folder}: {search.words}"]
    if not options.why:
        if search.job is not None:
            lines.append(f"job     {search.job_id} {search.job.state} {search.job.nodes}".rstrip())
        lines += [
            f"{name:7} {path}"
            for name, path in (("log", search.log), ("report", search.report))
            if path is not None
        ]
    print("\n".join(lines))


def show_searches(searches: Sequence[SearchRecord], folder: Path, options: StatusRun) -> None:
    """Print where the searches of a sweep's folder stand. Raises UserError as `show_search`."""
    for name in ("cancel", "follow"):
        if getattr(options, name):
            raise UserError(f"{folder} holds several searches; --{name} takes one: name its folder")
    if options.json_:
        print(json.dumps({"searches": [search_summary(search) for search in searches]}))
    else:
        print(search_table(searches, folder))


def search_summary(search: SearchRecord) -> dict[str, Any]:
    """The same for machines."""
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


def _row(search: SearchRecord, root: Path) -> tuple[str, ...]:
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
