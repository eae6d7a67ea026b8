"""Where a run runs: in this process, or as several local processes. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from supersam.config import ClusterConfig, TrainRun, UserError
from supersam.config.io import USAGE_ERROR

FAILURE, INTERRUPTED = 1, 130
_GRACE_S = 20  # for the other ranks to end by themselves after one has failed
_LAST_LINES = 12


def submit(run: TrainRun) -> int:
    """Prepare the run's folder and execute the run. Returns the exit code of the command.

    A user's mistake is printed in one message, without a traceback.
    """
    try:
        where = resolve_cluster(run.cluster)
        from supersam.training.run_folder import describe_run, prepare_run_folder

        if run.dry_run:
            print(describe_run(run))
            return 0
        prepare_run_folder(run)
        if where == "local":
            return run_local(run.folder, tasks=run.cluster.tasks_per_node or 1)
        return run_inline(run)
    except UserError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return USAGE_ERROR


def resolve_cluster(config: ClusterConfig) -> str:
    """inline, local or slurm: what `auto` means here."""
    if config.cluster == "slurm" or (config.cluster == "auto" and config.nodes is not None):
        missing = "" if shutil.which("sbatch") else " (there is no sbatch on this machine either)"
        raise UserError(
            f"this version does not submit to Slurm yet{missing}; leave out --nodes to train here, "
            "with --tasks-per-node N for several processes"
        )
    if config.cluster != "auto":
        return config.cluster
    return "local" if (config.tasks_per_node or 1) > 1 else "inline"


def run_inline(run: TrainRun) -> int:
    """Execute the run in this process."""
    from supersam.training.session import train
    from supersam.training.trainer import InterruptedRunError

    try:
        train(run)
    except InterruptedRunError as stop:
        print(f"{stop}; run the same command to go on", file=sys.stderr)
        return INTERRUPTED
    return 0


def run_local(folder: Path, *, tasks: int) -> int:
    """Execute the prepared run of `folder` as `tasks` processes on this machine.

    Rank 0 speaks on this terminal, the others write to `logs/`. When one fails, the others are
    ended, and the end of its log is shown.
    """
    ranks = []
    try:
        port = free_port()
        for rank in range(tasks):
            ranks.append(_start_rank(folder, rank, tasks, port))
        return _wait(ranks, folder)
    finally:
        _end(ranks)


def free_port() -> int:
    """A TCP port on which this host can listen now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
    command = [sys.executable, "-m", "supersam.cluster.job", str(folder)]
    log = task_log(folder, rank)
    log.parent.mkdir(parents=True, exist_ok=True)
    with _sink(log, rank) as sink:
        return subprocess.Popen(command, env=environment, stdout=sink, stderr=sink)


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
    codes = [rank.poll() for rank in ranks]
    worst = next((i for i, code in enumerate(codes) if code not in (None, 0)), None)
    if worst is None:
        return 0
    if worst > 0:
        _show_end(task_log(folder, worst), worst)
    code = codes[worst]
    return code if code in (USAGE_ERROR, INTERRUPTED) else FAILURE


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
