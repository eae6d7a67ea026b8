"""The front door of trainings and designs: where a run runs, its dry run, its start there.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from supersam.cluster.crash_log import keep_crash_log, task_log, write_crash_log
from supersam.cluster.ending import print_ending
from supersam.cluster.follow_up import check_follow_up, run_follow_up, submit_follow_up
from supersam.cluster.local import FAILURE, run_local
from supersam.cluster.preflight import describe_ranked_run, require_enough_nodes
from supersam.cluster.rank import run_inline
from supersam.cluster.ranked_run import RankedRun, prepare_ranked_run, require_legal_world
from supersam.cluster.rendezvous import RANK_VARIABLES
from supersam.cluster.slurm.commands import require_slurm, slurm_errors_to_user
from supersam.config import TrainRun, UserError
from supersam.config.errors import USAGE_ERROR, print_error
from supersam.config.files import CANCEL_FILE, DESIGN_CACHE, JOB_FILE, TENSORBOARD
from supersam.health.records import ATTEMPT_VARIABLE, saved_step
from supersam.runs.attempts import AttemptEvent, end_attempt, reason_of, start_attempt
from supersam.runs.claim import FolderInUseError, claimed, require_unclaimed
from supersam.runtime.next_command import command
from supersam.runtime.process import ends_with_reader, keep_others_from_writing
from supersam.runtime.table import count


def submit(run: RankedRun) -> int:
    """Prepare the run's folder and execute the run. Returns the exit code of the command.

    A user's mistake is printed in one message, without a traceback.
    """
    keep_others_from_writing()
    try:
        where = resolve_cluster(run)
        if isinstance(run, TrainRun) and run.cluster.then is not None:
            check_follow_up(run)
        if run.dry_run:
            with ends_with_reader():
                ok = describe_ranked_run(run, where, partial(print, flush=True))
            return 0 if ok else FAILURE
        if where == "slurm":
            with slurm_errors_to_user(), _worthless_removed(run):
                return _run_on_slurm(run)
        _drop_foreign_ranks()
        tasks = _num_ranks(run, where)
        require_legal_world(run, tasks)
        with _worthless_removed(run):
            prepare_ranked_run(run)
            code = _run_here(run, where, tasks)
            if code == USAGE_ERROR:  # a rank has said why
                raise _ToldError
        if code != 0:
            return code
        if os.environ.get("RANK", "0") == "0":  # of several under torchrun, one speaks
            print_ending(run)
        if isinstance(run, TrainRun) and run.cluster.then is not None:
            return run_follow_up(run)
        return 0
    except _ToldError:
        return USAGE_ERROR
    except UserError as fault:
        return print_error(fault)


_HEARTBEAT_S = 10.0  # of a design
_OF_WORK = (TENSORBOARD, DESIGN_CACHE, JOB_FILE)
"""Where one of them is, there is something to keep."""


class _ToldError(UserError):
    """A user's mistake that a rank has printed already."""


@contextlib.contextmanager
def _worthless_removed(run: RankedRun) -> Iterator[None]:
    """Remove the folder of a new training or design that a user's mistake ends before it begins.

    The mended command then meets no other run in the same folder.
    """
    is_new = not run.folder.exists()
    try:
        yield
    except FolderInUseError:
        raise
    except UserError:
        if is_new and not any((run.folder / name).exists() for name in _OF_WORK):
            shutil.rmtree(run.folder, ignore_errors=True)
        raise


def _run_here(run: RankedRun, where: str, tasks: int) -> int:
    if where == "inline" and os.environ.get("RANK", "0") != "0":  # rank 0 holds it for all
        return run_inline(run)
    heartbeat_s = run.watchdog.heartbeat_s if isinstance(run, TrainRun) else _HEARTBEAT_S
    with claimed(run.folder, heartbeat_s=heartbeat_s):
        return _run_claimed(run, where, tasks)


def _num_ranks(run: RankedRun, where: str) -> int:
    """Count the ranks: those of torchrun, which this process is one of, or those to start."""
    if where == "inline":
        return int(os.environ.get("WORLD_SIZE", 1))
    return run.cluster.tasks_per_node or 1


def _drop_foreign_ranks() -> None:
    """Leave out a rank that another program left in the environment; torchrun's is honoured."""
    left = [name for name in RANK_VARIABLES if name in os.environ]
    if "TORCHELASTIC_RUN_ID" in os.environ or not left:
        return
    if any(os.environ[name] for name in left):
        print(
            f"note: leaving out {', '.join(left)} of the environment; --tasks-per-node N or "
            "torchrun starts several ranks",
            file=sys.stderr,
        )
    for name in left:
        del os.environ[name]


def _run_claimed(run: RankedRun, where: str, tasks: int) -> int:
    if where == "local":
        return _recorded(run.folder, tasks, lambda: run_local(run.folder, tasks=tasks))
    keep_crash_log(task_log(run.folder, 0))
    return _recorded(run.folder, tasks, lambda: run_inline(run))


def resolve_cluster(run: RankedRun) -> str:
    """Return inline, local or slurm: what `auto` means here."""
    config = run.cluster
    if config.asks_for_slurm:
        if not run.dry_run:
            require_slurm(
                otherwise="leave out --nodes to train here, with --tasks-per-node N for several "
                "processes; or add --dry-run to see what would be submitted"
            )
        return "slurm"
    if config.cluster != "auto":
        return config.cluster
    return "local" if (config.tasks_per_node or 1) > 1 else "inline"


def _run_on_slurm(run: RankedRun) -> int:
    from supersam.cluster.slurm.ranked_job import follow_run, require_no_job, submit_job  # slow

    require_legal_world(run, (run.cluster.nodes or 1) * run.cluster.ranks_per_node)
    require_no_job(run)
    require_enough_nodes(run.cluster)
    require_unclaimed(run.folder)
    prepare_ranked_run(run)
    if saved_step(run.folder) >= run.last_step:
        return _leave_complete(run)
    job_id = submit_job(run)
    nodes = count(run.cluster.nodes or 1, "node")
    print(f"submitted job {job_id}: {nodes}, run folder {run.folder}")
    if isinstance(run, TrainRun) and run.cluster.then is not None:
        print(f"submitted job {submit_follow_up(run, job_id)}, after it: {run.cluster.then}")
    if run.cluster.wait:
        code = follow_run(run, job_id)
        if code == 0:
            print_ending(run)
        return code
    show = command("status", run.folder)
    print(f"next: {show} --follow    # shows it; --cancel lets it save and end")
    return 0


def _leave_complete(run: RankedRun) -> int:
    """Say that nothing is left to train, without asking for nodes; submit what follows."""
    from supersam.cluster.slurm.submit import prepare_job_folder

    print(f"this run is complete at step {saved_step(run.folder)}; raise --optim.steps to go on")
    if isinstance(run, TrainRun) and run.cluster.then is not None:
        prepare_job_folder(run.folder)
        print(f"submitted job {submit_follow_up(run)}: {run.cluster.then}")
    print_ending(run)
    return 0


def _recorded(folder: Path, tasks: int, execute: Callable[[], int]) -> int:
    """Execute the run, and record its start and its end."""
    (folder / CANCEL_FILE).unlink(missing_ok=True)
    host = socket.gethostname()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", tasks))  # torchrun may have ranks elsewhere
    started = start_attempt(folder, hosts=[host] * here, world_size=tasks)
    os.environ[ATTEMPT_VARIABLE] = str(started.attempt)
    code = FAILURE
    try:
        code = execute()
    except UserError as fault:
        code = USAGE_ERROR
        write_crash_log(task_log(folder, 0), f"error: {fault}")
        raise
    finally:
        del os.environ[ATTEMPT_VARIABLE]
        _record_end(folder, started, code)
    return code


def _record_end(folder: Path, started: AttemptEvent, code: int) -> None:
    """Record the end of an attempt; where the folder is gone, what ended it is told instead."""
    try:
        end_attempt(folder, started, reason_of(code), code)
    except OSError:
        if code == 0:
            raise
