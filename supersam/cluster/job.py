"""What every task of a job runs: the run of a folder, as the rank that the environment names."""

from __future__ import annotations

import sys
from pathlib import Path

from supersam.cluster.executor import run_inline
from supersam.config import TrainRun, UserError, load_run
from supersam.config.io import USAGE_ERROR


def main(folder: Path) -> int:
    """Execute the prepared run of `folder`. Returns the exit code."""
    try:
        run = load_run(TrainRun, folder / "run.yaml")
        return run_inline(run.model_copy(update={"run": folder}))
    except UserError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
