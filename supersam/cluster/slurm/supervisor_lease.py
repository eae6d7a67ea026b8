"""Requeues a job whose supervisor died: with `--no-kill` it would stay "running" without it.

Slurm then ends the ranks, but neither ends the job nor requeues it. So the supervisor renews a
lease in the run folder, and a watcher on each node, in a step of its own that outlives lost hosts,
requeues the job when the lease was not renewed for too long.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from supersam.cluster.slurm import commands as slurm
from supersam.runtime.atomic import write_bytes

_LEASE = "supervisor.beat"
RENEW_S = 5.0
EXPIRE_S = 45.0


def keep_lease(folder: Path) -> None:
    """Renew the lease from a thread every few seconds, as long as this process lives."""
    threading.Thread(target=_keep, args=(folder,), daemon=True).start()


def renew_lease(folder: Path) -> None:
    """Record that the supervisor lives. Raises OSError where the folder cannot be written."""
    write_bytes(folder / _LEASE, f"{time.time_ns()}\n".encode())


def wait_for_expiry(folder: Path, *, poll_s: float = RENEW_S, expire_s: float = EXPIRE_S) -> None:
    """Return when the lease was not renewed for `expire_s` seconds."""
    last, since = b"", time.monotonic()
    while time.monotonic() - since < expire_s:
        time.sleep(poll_s)
        with contextlib.suppress(OSError):  # content, not times: clocks of hosts differ
            if (now := (folder / _LEASE).read_bytes()) != last:
                last, since = now, time.monotonic()


def watch_lease(folder: Path, requeue: Callable[[], None]) -> None:
    """Wait for the lease to expire, then requeue the job."""
    wait_for_expiry(folder)
    print("the supervisor is silent: requeueing the job", flush=True)
    with contextlib.suppress(slurm.SlurmError):  # another node's was first
        requeue()


def _keep(folder: Path) -> None:
    while True:
        with contextlib.suppress(OSError):  # a full disk is the ranks' fault to report
            renew_lease(folder)
        time.sleep(RENEW_S)


if __name__ == "__main__":
    watch_lease(Path(sys.argv[1]), partial(slurm.requeue, sys.argv[2]))
