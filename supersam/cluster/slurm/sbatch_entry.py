"""The batch step of `slurm/train.sbatch`, which was submitted by hand: prepare, then supervise."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from supersam.cluster.ranked_run import require_legal_world
from supersam.cluster.slurm.supervisor import Supervisor
from supersam.config import DEMO, TrainRun, UserError, parse_cli
from supersam.config.errors import print_error
from supersam.runs.folder import prepare_run_folder
from supersam.runs.provenance import snapshot_code
from supersam.runtime.process import keep_others_from_writing


def main(args: Sequence[str] | None = None) -> None:
    """Take NODES, TASKS and CORES, then the flags of launch/train.py, and execute the run here.

    The numbers are the allocation's: nodes, ranks on each, cores of each rank.
    """
    nodes, tasks, cores, *flags = sys.argv[1:] if args is None else args
    place = ["--nodes", nodes, "--tasks-per-node", tasks, "--cpus-per-task", cores]
    run = parse_cli(TrainRun, flags, default_config=DEMO, recall=True, added=place)
    keep_others_from_writing()
    try:
        require_legal_world(run, (run.cluster.nodes or 1) * run.cluster.ranks_per_node)
        prepare_run_folder(run)
        if "SLURM_RESTART_COUNT" not in os.environ:
            snapshot_code(run.folder.absolute())
    except UserError as fault:
        raise SystemExit(print_error(fault)) from None
    Supervisor(str(run.folder.absolute()))()


if __name__ == "__main__":
    main()
