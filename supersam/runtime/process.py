"""Processes of this host, told apart from later ones that got the same number. No torch."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_STATES = {
    "D": "waits for a disk or network file system",
    "R": "is running",
    "S": "sleeps",
    "T": "is stopped",
    "t": "is stopped by a debugger",
    "X": "is dead",
    "Z": "has ended",
}


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None where there is no such process."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def is_same_process(pid: int, ticks: int) -> bool:
    """Whether the process of that number is still the one that started then, and has not ended."""
    fields = _stat(pid)
    return fields is not None and int(fields[19]) == ticks and fields[0] not in "XZ"


def describe_process(pid: int, ticks: int) -> str:
    """What the kernel says of a process, as the end of a sentence about it."""
    fields = _stat(pid)
    if fields is None or int(fields[19]) != ticks:
        return "is gone"
    return _STATES.get(fields[0], f"is in state {fields[0]}")


def end_with_parent(parent: int) -> None:
    """In a new process: get SIGTERM when `parent`, which started it, ends, be it by SIGKILL."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def keep_others_from_writing() -> None:
    """Whatever the user's umask: no file of this process and its children is writable by all."""
    os.umask(os.umask(0o077) | 0o002)


@contextmanager
def ends_with_reader() -> Iterator[None]:
    """While only printing: end without a word when nobody reads on, as before `| head`."""
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        yield
        sys.stdout.flush()
    finally:
        signal.signal(signal.SIGPIPE, before)


def resident_gib(pid: int | None = None) -> float:
    """Memory of a process in use now."""
    pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def available_gib() -> float:
    """Memory that this host could still give."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 2**20
    raise OSError("/proc/meminfo has no MemAvailable; this needs Linux 3.14 or later")


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on (field 3)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()  # a command's name may hold anything
