"""One rank: the process that executes the run of a folder as the rank that its environment names.

Slurm's tasks and the local ranks start here; `run_inline` is the part that needs no process of its
own. Imports no torch until the run begins.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

from supersam.cluster.crash_log import keep_crash_log, task_log, write_crash_log
from supersam.cluster.ranked_run import RankedRun, execute_ranked_run, load_ranked_run
from supersam.cluster.rendezvous import join_step
from supersam.config import UserError
from supersam.config.errors import describe_os_error, print_error
from supersam.runtime.process import no_gc_while_importing, outlive_readers


def main(folder: Path) -> int:
    """Execute the prepared run of `folder`. Returns the exit code."""
    outlive_readers()
    started_by_slurm = "RANK" not in os.environ
    on_terminal = os.environ.get("RANK") == "0"
    if on_terminal:
        keep_crash_log(task_log(folder, 0))
    if started_by_slurm:
        os.chdir(os.environ["SLURM_SUBMIT_DIR"])  # relative paths of the run start there
    try:
        run = load_ranked_run(folder)
        if started_by_slurm:
            os.environ.update(join_step(folder, os.environ) | _local_caches())
            _check_cores(run)
        return run_inline(run)
    except UserError as fault:
        told = str(fault)
    except OSError as fault:
        described = describe_os_error(fault)
        if described is None:
            raise
        told = described
        if started_by_slurm:  # a fault like others, not a mistake: the next attempt may find room
            print_error(told)
            return 1
    if on_terminal:
        write_crash_log(task_log(folder, 0), f"error: {told}")
    return print_error(told)


def run_inline(run: RankedRun) -> int:
    """Execute the run in this process. Returns the exit code."""
    with no_gc_while_importing():
        from supersam.training.trainer import InterruptedRunError

    try:
        execute_ranked_run(run)
    except InterruptedRunError as stop:
        print(f"{stop}; run the same command to go on", file=sys.stderr)
        return 128 + stop.signal
    except KeyboardInterrupt:  # of a run that does not save at once, as its work is kept anyway
        print("stopped; run the same command to go on", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def _check_cores(run: RankedRun) -> None:
    """Print on which cores this rank runs. Raises UserError where they are too few for it."""
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
    """Keep compiled kernels on the node: shared folders have stale handles and slow locks."""
    place = Path(tempfile.gettempdir()) / f"supersam-{os.getuid()}-{os.environ['SLURM_JOB_ID']}"
    names = ("TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR")
    return {name: str(place / name.lower()) for name in names if name not in os.environ}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
