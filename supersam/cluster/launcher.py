"""Where a run runs: in this process, as several local processes, or on Slurm. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from supersam.cluster.batch import require_legal_world
from supersam.cluster.crash_log import keep_crash_log, write_crash_log
from supersam.cluster.follow_up import check_follow_up, run_follow_up, submit_follow_up
from supersam.cluster.preflight import require_enough_nodes
from supersam.cluster.rendezvous import free_port
from supersam.cluster.slurm.commands import missing_slurm, slurm_errors_to_user
from supersam.cluster.tasks import Task, describe_task, execute_task, prepare_task
from supersam.config import TrainRun, UserError
from supersam.config.files import CANCEL_FILE, JOB_FILE, TENSORBOARD
from supersam.config.io import USAGE_ERROR, print_error
from supersam.health.records import saved_step
from supersam.health.watchdog import STALLED
from supersam.runs.attempts import end_attempt, reason_of, start_attempt
from supersam.runtime.process import (
    end_with_parent,
    ends_with_reader,
    keep_others_from_writing,
    no_gc_while_importing,
)

FAILURE = 1
_GRACE_S = 20  # for the other ranks to end by themselves after one has failed
_LAST_LINES = 12


def submit(run: Task) -> int:
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
                ok = describe_task(run, where, partial(print, flush=True))
            return 0 if ok else FAILURE
        if where == "slurm":
            with slurm_errors_to_user(), _worthless_removed(run):
                return _run_on_slurm(run)
        tasks = 1 if where == "inline" else run.cluster.tasks_per_node or 1
        require_legal_world(run, tasks)
        with _worthless_removed(run):
            prepare_task(run)
            code = _run_here(run, where, tasks)
            if code == USAGE_ERROR:  # a rank has said why
                raise _ToldError
        if code == 0 and isinstance(run, TrainRun) and run.cluster.then is not None:
            return run_follow_up(run)
        return code
    except _ToldError:
        return USAGE_ERROR
    except UserError as fault:
        return print_error(fault)


class _ToldError(UserError):
    """A user's mistake that is told already."""


@contextlib.contextmanager
def _worthless_removed(run: Task) -> Iterator[None]:
    """Where a user's mistake ends a new training before its first step, its folder goes again.

    The mended command is then no other run in the same folder.
    """
    is_new = isinstance(run, TrainRun) and not run.folder.exists()
    try:
        yield
    except UserError:
        if is_new and not any((run.folder / name).exists() for name in (TENSORBOARD, JOB_FILE)):
            shutil.rmtree(run.folder, ignore_errors=True)
        raise


def _run_here(run: Task, where: str, tasks: int) -> int:
    if where == "local":
        return _recorded(run.folder, tasks, lambda: run_local(run.folder, tasks=tasks))
    keep_crash_log(task_log(run.folder, 0))
    return _recorded(run.folder, 1, lambda: run_inline(run))


def resolve_cluster(run: Task) -> str:
    """inline, local or slurm: what `auto` means here."""
    config = run.cluster
    if config.cluster == "slurm" or (config.cluster == "auto" and config.nodes is not None):
        missing = None if run.dry_run else missing_slurm()
        if missing is not None:
            raise UserError(
                f"a Slurm job was asked for, and {missing}. Submit from a login node; or leave out "
                "--nodes to train here, with --tasks-per-node N for several processes; or add "
                "--dry-run to see what would be submitted"
            )
        return "slurm"
    if config.cluster != "auto":
        return config.cluster
    return "local" if (config.tasks_per_node or 1) > 1 else "inline"


def _run_on_slurm(run: Task) -> int:
    from supersam.cluster.slurm.submit import follow_job, require_no_active_job, submit_job

    require_legal_world(run, (run.cluster.nodes or 1) * run.cluster.ranks_per_node)
    require_no_active_job(run)
    require_enough_nodes(run.cluster)
    prepare_task(run)
    if saved_step(run.folder) >= run.last_step:
        return _leave_complete(run)
    job_id = submit_job(run)
    print(f"submitted job {job_id}: {run.cluster.nodes or 1} nodes, run folder {run.folder}")
    if isinstance(run, TrainRun) and run.cluster.then is not None:
        print(f"submitted job {submit_follow_up(run, job_id)}, after it: {run.cluster.then}")
    if run.cluster.wait:
        return follow_job(run, job_id)
    print(f"python launch/status.py {run.folder} --follow shows it, --cancel lets it save and end")
    return 0


def _leave_complete(run: Task) -> int:
    """Ask for no node to find that nothing is left to do, but for what follows the training."""
    from supersam.cluster.slurm.submit import prepare_job_folder

    print(f"this run is complete at step {saved_step(run.folder)}; raise --optim.steps to go on")
    if isinstance(run, TrainRun) and run.cluster.then is not None:
        prepare_job_folder(run.folder)
        print(f"submitted job {submit_follow_up(run)}: {run.cluster.then}")
    return 0


def _recorded(folder: Path, tasks: int, execute: Callable[[], int]) -> int:
    """Execute, and write start and end to the run's attempts."""
    (folder / CANCEL_FILE).unlink(missing_ok=True)
    host = socket.gethostname()
    started = start_attempt(folder, hosts=[host] * tasks, world_size=tasks)
    code = FAILURE
    try:
        code = execute()
    except UserError as fault:
        code = USAGE_ERROR
        write_crash_log(task_log(folder, 0), f"error: {fault}")
        raise
    finally:
        end_attempt(folder, started, reason_of(code), code)
    return code


def run_inline(run: Task) -> int:
    """Execute the run in this process."""
    with no_gc_while_importing():
        from supersam.training.trainer import InterruptedRunError

    try:
        execute_task(run)
    except InterruptedRunError as stop:
        print(f"{stop}; run the same command to go on", file=sys.stderr)
        return 128 + stop.signal
    except KeyboardInterrupt:  # of a run that does not save at once, as its work is kept anyway
        print("stopped; run the same command to go on", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def run_local(folder: Path, *, tasks: int) -> int:
    """Execute the prepared run of `folder` as `tasks` processes on this machine.

    Rank 0 speaks on this terminal, the others write to `logs/`; what rank 0 says when it fails is
    there too. When one fails, the others are ended, and the end of its log is shown. SIGTERM is
    passed on to the ranks, which save; they do so too where this process is killed.
    """
    ranks: list[subprocess.Popen[bytes]] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: _pass_on(number, ranks))
    try:
        port = free_port("127.0.0.1")
        for rank in range(tasks):
            ranks.append(_start_rank(folder, rank, tasks, port))
        return _wait(ranks, folder)
    finally:
        _end(ranks)
        signal.signal(signal.SIGTERM, before)


def _pass_on(number: int, ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        rank.send_signal(number)


def task_log(folder: Path, rank: int) -> Path:
    """Where what a rank prints goes."""
    return folder / "logs" / f"task-{rank:05d}.log"


def _start_rank(folder: Path, rank: int, tasks: int, port: int) -> subprocess.Popen[bytes]:
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": tasks,
        "LOCAL_WORLD_SIZE": tasks,
        "GROUP_RANK": 0,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    environment = os.environ | {name: str(value) for name, value in place.items()}
    command = [sys.executable, "-m", "supersam.cluster.rank", str(folder)]
    log = task_log(folder, rank)
    log.parent.mkdir(parents=True, exist_ok=True)
    with _sink(log, rank) as sink:
        return subprocess.Popen(
            command,
            env=environment,
            stdout=sink,
            stderr=sink,
            preexec_fn=partial(end_with_parent, os.getpid()),
        )


@contextlib.contextmanager
def _sink(log: Path, rank: int) -> Iterator[int | None]:
    """This terminal for rank 0, its log file for the others."""
    if rank == 0:
        yield None
        return
    with log.open("ab") as file:
        yield file.fileno()


def _wait(ranks: Sequence[subprocess.Popen[bytes]], folder: Path) -> int:
    while any(rank.poll() is None for rank in ranks):
        failed = [i for i, rank in enumerate(ranks) if rank.poll() not in (None, 0)]
        if failed:
            break
        with contextlib.suppress(KeyboardInterrupt):  # the ranks got it too: they save and end
            time.sleep(0.2)
    _wait_for_rest(ranks)
    codes = [rank.poll() or 0 for rank in ranks]
    worst = next((i for i, code in enumerate(codes) if code != 0), None)
    if worst is None:
        return 0
    if worst > 0:
        _show_end(task_log(folder, worst), worst)
    code = codes[worst]
    known = code in (USAGE_ERROR, STALLED) or reason_of(code) != "failed"
    return code if known else FAILURE


def _wait_for_rest(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _GRACE_S
    for rank in ranks:
        with contextlib.suppress(subprocess.TimeoutExpired):
            rank.wait(max(0.0, deadline - time.monotonic()))


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(signal.SIGKILL)
            rank.wait()


def _show_end(log: Path, rank: int) -> None:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
    print(f"error: rank {rank} failed; the end of {log}:", *lines, sep="\n  ", file=sys.stderr)
