"""The commands from Python, for a notebook or a script: `from supersam.api import train, search`.

Each takes the configuration that its command reads, and runs where that configuration says: by
default in this process.
"""

from __future__ import annotations

from pathlib import Path

from supersam.config import SearchRun, TrainRun, UserError


def train(run: TrainRun) -> Path:
    """Train, or continue, the run. Returns its folder.

    Raises RuntimeError where the training does not reach its end; what it printed says why.
    """
    from supersam.cluster.launcher import submit  # slow to import

    code = submit(run)
    if code != 0:
        raise RuntimeError(f"the training in {run.folder} ended with exit code {code}")
    return run.folder


def search(run: SearchRun) -> Path:
    """Search, or continue the search. Returns its folder, which holds `pareto.json`.

    Raises UserError for what a user can mend.
    """
    from supersam.search.session import run_search

    if not run.sweep.is_empty:
        raise UserError("search() takes one search; launch/search.py runs a sweep")
    run_search(run)
    return run.folder
