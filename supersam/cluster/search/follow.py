"""Stay with the jobs of a search: its log until it is over, and what came of it."""

from __future__ import annotations

import sys
from pathlib import Path

from supersam.cluster.slurm.commands import whole_job
from supersam.cluster.slurm.submit import wait_for_end
from supersam.config import SearchRun
from supersam.config.files import JOB_FOLDER


def follow_searches(asked: SearchRun, job_ids: list[str]) -> int:
    """Show the log of a search until its job is over, or wait for all of a sweep.

    Returns the exit code. Also ends the wait that Slurm puts before each requeued start. Ctrl-C
    leaves the jobs alone.
    """
    from supersam.search.folder import read_record
    from supersam.search.report.comparison import write_comparison
    from supersam.search.sweep import expand, format_sweep

    logs = [asked.folder / JOB_FOLDER / f"{job_id}_0_log.out" for job_id in job_ids]
    try:
        for job_id, log in zip(job_ids, logs, strict=True):
            _show_until_end(log, job_id)
    except KeyboardInterrupt:
        job_id = whole_job(job_ids[0])
        print(f"\njob {job_id} goes on; end it with scancel {job_id}", file=sys.stderr)
        return 128 + 2
    searches = expand(asked)
    if not asked.sweep.is_empty:
        print(format_sweep(write_comparison(asked.folder, searches)))
    ended = [bool(read_record(search.folder).get("finished", False)) for search in searches]
    for log, finished in zip(logs, ended, strict=True):
        if not finished:
            print(f"error: a job ended before its search did; see {log}", file=sys.stderr)
    return 0 if all(ended) else 1


def _show_until_end(log: Path, job_id: str) -> None:
    shown = 0

    def show() -> None:
        nonlocal shown
        if not log.is_file():
            return
        with log.open("rb") as file:
            file.seek(shown)
            piece = file.read()
        shown += len(piece)
        sys.stdout.write(piece.decode("utf-8", errors="replace"))
        sys.stdout.flush()

    wait_for_end(job_id, show)
