"""The process that does what follows a training, which `follow_up` starts or submits.

Apart from `follow_up`: `python -m` would load that a second time.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from supersam.cluster.follow_up import ACTIONS, IN_JOB, parse_words
from supersam.config import SearchRun, UserError, exit_code
from supersam.config.errors import print_error
from supersam.runs.checkpoints import SavedCheckpoints
from supersam.runtime.process import keep_others_from_writing


def main(folder: Path, words: Sequence[str], *, in_job: bool) -> int:
    """Run the command that follows the training of `folder`. Returns the exit code."""
    keep_others_from_writing()
    if in_job:
        os.chdir(os.environ["SLURM_SUBMIT_DIR"])  # relative paths of the words start there
    try:
        _require_checkpoint(folder, words[0])
    except UserError as fault:
        return print_error(fault)
    following = parse_words(folder, words)
    if in_job and isinstance(following, SearchRun):
        from supersam.cluster.search.supervisor import search_in_job  # slow: it imports submitit

        return exit_code(lambda search: search_in_job(search, folder), following)
    module, _, function = ACTIONS[words[0]].partition(":")
    action = getattr(importlib.import_module(module), function)
    return exit_code(action, following)


def _require_checkpoint(folder: Path, name: str) -> None:
    if SavedCheckpoints(folder).latest() is None:
        raise UserError(
            f"{folder} holds no checkpoint to {name}; python launch/status.py {folder} --why says "
            "how its training ended"
        )


if __name__ == "__main__":
    given = sys.argv[1:]
    job = given[0] == IN_JOB
    sys.exit(main(Path(given[job]), given[job + 1 :], in_job=job))
