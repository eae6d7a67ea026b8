"""The batch step of `slurm/train.sbatch`, which was submitted by hand: prepare, then supervise."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from supersam.cluster.batch import require_legal_world
from supersam.cluster.snapshot import snapshot_code
from supersam.cluster.supervisor import Supervisor
from supersam.config import TrainRun, UserError, parse_cli
from supersam.config.io import USAGE_ERROR
from supersam.runtime.process import keep_others_from_writing
from supersam.training.run_folder import prepare_run_folder


def main(args: Sequence[str] | None = None) -> None:
    """Take the flags of launch/train.py and execute the run in this allocation."""
    run = parse_cli(TrainRun, args, recall=True)
    keep_others_from_writing()
    try:
        require_legal_world(run, (run.cluster.nodes or 1) * run.cluster.ranks_per_node)
        prepare_run_folder(run)
        if "SLURM_RESTART_COUNT" not in os.environ:
            snapshot_code(run.folder.absolute())
    except UserError as fault:
        print(f"error: {fault}", file=sys.stderr)
        raise SystemExit(USAGE_ERROR) from None
    Supervisor(str(run.folder.absolute()))()


if __name__ == "__main__":
    main()
