"""`launch/status.py`: all runs and searches in tables, or one of them, or those of a sweep."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from supersam.cluster.slurm.jobs import JobQueue
from supersam.config import StatusRun, UserError
from supersam.config.errors import print_error
from supersam.config.files import SEARCH_FILE
from supersam.runtime.process import ends_with_reader
from supersam.status.page import Page, table
from supersam.status.run import find_runs, read_record, read_records
from supersam.status.run_page import RunPage
from supersam.status.search import find_searches, read_searches
from supersam.status.search_page import SearchPage


def show(options: StatusRun) -> int:
    """Do what the command line asks for. Returns the exit code."""
    queue = JobQueue()
    try:
        with ends_with_reader():
            shown = _show(options, queue)
    except UserError as fault:
        return print_error(fault)
    except KeyboardInterrupt:
        return 0
    if queue.note is not None and any(page.record.could_be_alive for page in shown):
        print(f"note: {queue.note}", file=sys.stderr)
    return 0


def _show(options: StatusRun, queue: JobQueue) -> Sequence[Page[Any]]:
    """Returns what was shown."""
    folder = options.folder
    if folder is None:
        return _show_all(options, queue)
    below = sorted(file.parent for file in folder.glob(f"*/{SEARCH_FILE}"))
    page: Page[Any]
    if (folder / SEARCH_FILE).is_file():
        page = SearchPage(read_searches([folder], queue)[0])
    elif below:
        return _show_sweep(folder, below, options, queue)
    else:
        page = RunPage(read_record(folder, queue))
    page.show(options, queue)
    return [page]


def _show_sweep(
    folder: Path, below: Sequence[Path], options: StatusRun, queue: JobQueue
) -> Sequence[SearchPage]:
    for name in ("cancel", "follow"):
        if getattr(options, name):
            raise UserError(f"{folder} holds several searches; --{name} takes one: name its folder")
    pages = [SearchPage(search) for search in read_searches(below, queue)]
    if options.json_:
        print(json.dumps({"searches": [page.summary() for page in pages]}))
    else:
        print(table(pages, folder))
    return pages


def _show_all(options: StatusRun, queue: JobQueue) -> Sequence[Page[Any]]:
    root = options.root
    runs = [RunPage(record) for record in read_records(find_runs(root), queue)]
    searches = [SearchPage(search) for search in read_searches(find_searches(root), queue)]
    pages: list[Page[Any]] = [*runs, *searches]
    if options.json_:
        values = {"runs": [p.summary() for p in runs], "searches": [p.summary() for p in searches]}
        print(json.dumps(values))
        return pages
    if not runs:
        print(f"no runs below {root}; launch/train.py starts one", file=sys.stderr)
        return []
    print("\n\n".join(table(each, root) for each in (runs, searches) if each))
    for page in pages:
        if page.record.fault is not None:
            print(f"note: {page.record.fault}", file=sys.stderr)
    return pages
