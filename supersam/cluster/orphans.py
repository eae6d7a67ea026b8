"""Ranks whose supervisor is gone: with `--no-kill` its host may die and leave the job running.

Slurm then neither ends nor requeues the job. So the supervisor leaves a beat in the run folder,
and the first rank of each node requeues the job when that has been still for too long.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from supersam.cluster import slurm
from supersam.runtime.atomic import write_bytes

_BEAT = "supervisor.beat"
BEAT_S = 10.0
SILENCE_S = 90.0


def write_beat(folder: Path) -> None:
    """Say that the supervisor lives."""
    write_bytes(folder / _BEAT, f"{time.time_ns()}\n".encode())


def watch_supervisor(
    folder: Path,
    requeue: Callable[[], None],
    *,
    poll_s: float = BEAT_S,
    silence_s: float = SILENCE_S,
) -> threading.Thread:
    """Start a thread that calls `requeue` when the beat has been still for `silence_s`."""
    thread = threading.Thread(
        target=_watch, args=(folder / _BEAT, requeue, poll_s, silence_s), daemon=True
    )
    thread.start()
    return thread


def _watch(beat: Path, requeue: Callable[[], None], poll_s: float, silence_s: float) -> None:
    last, since = b"", time.monotonic()
    while time.monotonic() - since < silence_s:
        time.sleep(poll_s)
        with contextlib.suppress(OSError):  # content, not times: clocks of hosts differ
            if (now := beat.read_bytes()) != last:
                last, since = now, time.monotonic()
    print(f"the supervisor has been silent for {silence_s:g} s: requeueing the job", flush=True)
    with contextlib.suppress(slurm.SlurmError):  # another rank was first
        requeue()
