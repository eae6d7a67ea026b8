"""Processes of this host: which one it is, how it begins, ends and imports. No torch."""

from __future__ import annotations

import ctypes
import gc
import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import psutil

_PR_SET_PDEATHSIG = 1
_SAME_START_TICKS = 2 * os.sysconf("SC_CLK_TCK")  # the boot time that psutil subtracts is in s
_STATES = {
    psutil.STATUS_DISK_SLEEP: "waits for a disk or network file system",
    psutil.STATUS_RUNNING: "is running",
    psutil.STATUS_SLEEPING: "sleeps",
    psutil.STATUS_STOPPED: "is stopped",
    psutil.STATUS_TRACING_STOP: "is stopped by a debugger",
    psutil.STATUS_DEAD: "is dead",
    psutil.STATUS_ZOMBIE: "has ended",
}
_OVER = (psutil.STATUS_DEAD, psutil.STATUS_ZOMBIE)


def begin_in_utf8() -> None:
    """Start this program anew where the locale reads file names otherwise than in UTF-8.

    TensorBoard takes all names for UTF-8: it refuses them in a C locale, and in one of Latin-1 it
    writes into another folder. What the program starts inherits the mode.
    """
    if sys.getfilesystemencoding() == "utf-8":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None where there is no such process."""
    try:
        since_boot_s: float = psutil.Process(pid).create_time() - psutil.boot_time()
    except psutil.Error:
        return None
    return round(since_boot_s * os.sysconf("SC_CLK_TCK"))


def is_same_process(pid: int, ticks: int) -> bool:
    """Whether the process of that number is still the one that started then, and has not ended."""
    return _state(pid, ticks) not in (None, *_OVER)


def describe_process(pid: int, ticks: int) -> str:
    """What the kernel says of a process, as the end of a sentence about it."""
    state = _state(pid, ticks)
    return "is gone" if state is None else _STATES.get(state, f"is in state {state}")


def _state(pid: int, ticks: int) -> str | None:
    """Psutil's word for the state of the process that started then; None where it is gone."""
    started = start_ticks(pid)
    if started is None or abs(started - ticks) > _SAME_START_TICKS:
        return None
    try:
        return str(psutil.Process(pid).status())
    except psutil.Error:  # it ended meanwhile
        return None


def resident_gib() -> float:
    """Memory that this process has in use now."""
    return float(psutil.Process().memory_info().rss) / 2**30


def available_gib() -> float:
    """Memory that this host could still give."""
    return float(psutil.virtual_memory().available) / 2**30


def begin_worker(_: int = 0) -> None:
    """Leave signals to the parent, and end when it does; the first call in a worker process.

    Fits as `worker_init_fn` of a DataLoader. Ctrl-C reaches the parent, which decides what becomes
    of its workers. A parent that was killed decides nothing, and workers of a fork server would
    outlive it: a thread watches.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_for_parent_and_exit, daemon=True).start()


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C back for the block; processes started in it never see one."""
    resource_tracker.ensure_running()  # its start, with the first worker, would lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for_parent_and_exit() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # only workers come here
    parent.join()
    os._exit(1)


def end_with_parent(parent: int) -> None:
    """In a new process: get SIGTERM when `parent`, which started it, ends, be it by SIGKILL."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def keep_others_from_writing() -> None:
    """Make no file of this process and its children writable by all, whatever the user's umask."""
    os.umask(os.umask(0o077) | 0o002)


@contextmanager
def ends_with_reader() -> Iterator[None]:
    """While only printing: end without a word when nobody reads on, as before `| head`."""
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        yield
    finally:
        if sys.stdout is not None:  # it is where the command was started with `>&-`
            sys.stdout.flush()
        signal.signal(signal.SIGPIPE, before)


class _Unbroken(io.FileIO):
    """A stream that leads nowhere once nobody reads it."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            _lead_nowhere(self.fileno())
            return len(data)


def outlive_readers() -> None:
    """Let work go on, and end as it would have, when nobody reads what it prints on.

    That is so behind `| head`, where a print would raise BrokenPipeError. Streams that were closed
    from the start (`>&-`) lead nowhere too: a file opened later would else take their number.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):  # the caller's own
            continue
        if stream is None:
            _lead_nowhere(number)
        else:
            stream.flush()
        buffered = io.BufferedWriter(_Unbroken(number, "w", closefd=False))
        unbroken = io.TextIOWrapper(
            buffered,
            encoding=getattr(stream, "encoding", "utf-8"),
            errors=getattr(stream, "errors", "backslashreplace"),
            line_buffering=getattr(stream, "line_buffering", True),
            write_through=getattr(stream, "write_through", False),
        )
        setattr(sys, name, unbroken)


def _lead_nowhere(number: int) -> None:
    """Connect the file descriptor `number` with /dev/null."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


@contextmanager
def no_gc_while_importing() -> Iterator[None]:
    """Run the block, which imports modules, without garbage collection, and exempt what it made.

    Classes and functions of modules stay as long as the process: to go through all of them again
    and again is a sixth of the time that a rank needs to import torch and deepspeed.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collected:
            gc.enable()
