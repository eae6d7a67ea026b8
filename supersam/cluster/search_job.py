"""Where a search runs: in this process, on this machine, or as a Slurm job with a Ray in it."""

from __future__ import annotations

from supersam.config import SearchRun


def submit_search(asked: SearchRun) -> int:
    """Perform the search, or submit it. Returns the exit code of the command."""
    from supersam.search.command import describe_search, run_search_here

    if asked.dry_run:
        print(describe_search(asked))
        return 0
    return run_search_here(asked)
