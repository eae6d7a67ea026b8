"""What every task of a job runs: the run of a folder, as the rank that the environment names."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from supersam.cluster.crash_log import keep_crash_log, write_crash_log
from supersam.cluster.launcher import run_inline, task_log
from supersam.cluster.rendezvous import join_step
from supersam.cluster.tasks import Task, load_task
from supersam.config import UserError
from supersam.config.io import print_error


def main(folder: Path) -> int:
    """Execute the prepared run of `folder`. Returns the exit code."""
    started_by_slurm = "RANK" not in os.environ
    on_terminal = os.environ.get("RANK") == "0"
    if on_terminal:
        keep_crash_log(task_log(folder, 0))
    if started_by_slurm:
        os.chdir(os.environ["SLURM_SUBMIT_DIR"])  # relative paths of the run start there
    try:
        run = load_task(folder)
        if started_by_slurm:
            os.environ.update(join_step(folder, os.environ) | _local_caches())
            _check_cores(run)
        return run_inline(run)
    except UserError as fault:
        if on_terminal:
            write_crash_log(task_log(folder, 0), f"error: {fault}")
        return print_error(fault)


def _check_cores(run: Task) -> None:
    """Say on which cores this rank runs, and refuse too few: it would be slow without a word."""
    cores = sorted(os.sched_getaffinity(0))
    code = Path(__file__).parents[2]
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
    place = f"rank {os.environ['RANK']} on {os.uname().nodename}"
    print(f"{place}, cores {cores}, GPUs {gpus}, code {code}")
    needed = run.loader_workers + 1
    if len(cores) < needed:
        raise UserError(
            f"rank {os.environ['RANK']} has {len(cores)} cores, {needed} are needed for it and its "
            f"{run.loader_workers} loader workers; ask for --cpus-per-task {needed}"
        )


def _local_caches() -> dict[str, str]:
    """Compiled kernels stay on the node: locks and stale handles of shared folders do harm."""
    place = Path(tempfile.gettempdir()) / f"supersam-{os.getuid()}-{os.environ['SLURM_JOB_ID']}"
    names = ("TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR")
    return {name: str(place / name.lower()) for name in names if name not in os.environ}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
