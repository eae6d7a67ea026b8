"""Several ranks as processes of this machine, and the end of all when one fails. No torch."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from supersam.cluster.crash_log import task_log
from supersam.cluster.rendezvous import free_port
from supersam.config.errors import USAGE_ERROR
from supersam.health.watchdog import STALLED
from supersam.runs.attempts import reason_of
from supersam.runtime.process import end_with_parent

FAILURE = 1
"""Exit code of a run whose ranks failed."""
_GRACE_S = 20  # for the other ranks to end by themselves after one has failed
_LAST_LINES = 12


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
    """Yield where a rank prints: None, this terminal, for rank 0; its log file for the others."""
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
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C
            rank.wait(max(0.0, deadline - time.monotonic()))


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(signal.SIGKILL)
            rank.wait()


def _show_end(log: Path, rank: int) -> None:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
    print(f"error: rank {rank} failed; the end of {log}:", *lines, sep="\n  ", file=sys.stderr)
