"""Jobs whose supervisor is gone: with `--no-kill` its host may die and leave the job "running".

Slurm then ends the ranks, but neither the job nor requeues it. So the supervisor leaves a beat in
the run folder, and a sentinel on each node, in a step of its own that outlives lost hosts,
requeues the job when the beat has been still for too long.
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

_BEAT = "supervisor.beat"
BEAT_S = 5.0
SILENCE_S = 45.0


def start_beating(folder: Path) -> None:
    """Say every few seconds that this process lives, as long as it does."""
    threading.Thread(target=_beat, args=(folder,), daemon=True).start()


def write_beat(folder: Path) -> None:
    """Say that the supervisor lives."""
    write_bytes(folder / _BEAT, f"{time.time_ns()}\n".encode())


def wait_for_silence(folder: Path, *, poll_s: float = BEAT_S, silence_s: float = SILENCE_S) -> None:
    """Return when the beat has been still for `silence_s`."""
    last, since = b"", time.monotonic()
    while time.monotonic() - since < silence_s:
        time.sleep(poll_s)
        with contextlib.suppress(OSError):  # content, not times: clocks of hosts differ
            if (now := (folder / _BEAT).read_bytes()) != last:
                last, since = now, time.monotonic()


def sentinel(folder: Path, requeue: Callable[[], None]) -> None:
    """Requeue the job when its supervisor is silent."""
    wait_for_silence(folder)
    print("the supervisor is silent: requeueing the job", flush=True)
    with contextlib.suppress(slurm.SlurmError):  # another node's was first
        requeue()


def _beat(folder: Path) -> None:
    while True:
        with contextlib.suppress(OSError):  # a full disk is the ranks' fault to report
            write_beat(folder)
        time.sleep(BEAT_S)


if __name__ == "__main__":
    sentinel(Path(sys.argv[1]), partial(slurm.requeue, sys.argv[2]))
