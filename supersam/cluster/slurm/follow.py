"""Stay with a job that was submitted: show its logs until it is over."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from supersam.cluster.slurm import commands as slurm
from supersam.cluster.slurm.jobs import SlurmJob, read_job
from supersam.runtime.tail import LogTail
from supersam.runtime.waiting import growing_pauses

_POLL_S = 1.0
_SLOW_POLL_S = 10.0
_CONFIRM_S = 2.0
INTERRUPTED = 128 + 2
"""Exit code of a command whose user pressed Ctrl-C while it followed a job."""


class LogPrinter:
    """Prints what is new in the log files that `find` lists; what is there now is old."""

    def __init__(self, find: Callable[[], list[Path]]) -> None:
        self._find = find
        self._tails = {log: LogTail(log, skip=True) for log in find()}

    def print_new(self) -> None:
        """Print what was appended since the last call."""
        for log in self._find():
            self._tails.setdefault(log, LogTail(log)).print_new()


def wait_for_end(job_id: str, show: Callable[[], None]) -> SlurmJob | None:
    """Call `show` every second until a job is over. Returns it; None where Slurm has forgotten it.

    Ends the wait that Slurm puts before each requeued start. While Slurm requeues a job it may say
    for a moment that the job is over: an end counts when a later answer says the same.
    """
    pauses, silent, ended = growing_pauses(_POLL_S, _SLOW_POLL_S), False, False
    released = 0  # the last restart whose wait was ended: each time puts the start off by seconds
    while True:
        show()
        try:
            job = read_job(job_id)
        except slurm.SlurmError as fault:
            if not silent and not isinstance(fault, slurm.KilledCommandError):
                print(f"Slurm does not answer ({fault}); waiting for it", file=sys.stderr)
                silent = True
            time.sleep(next(pauses))
            continue
        silent, pauses = False, growing_pauses(_POLL_S, _SLOW_POLL_S)
        is_over = job is None or not job.is_active
        if is_over and ended:
            show()
            return job
        ended = is_over
        if job is not None and job.waits_for_begin_time and job.restarts > released:
            with contextlib.suppress(slurm.SlurmError):  # not every site allows it
                slurm.end_begin_time_wait(job_id)
                released = job.restarts
        time.sleep(_CONFIRM_S if is_over else _POLL_S)


def follow_job(job_id: str, logs: Callable[[], list[Path]], *, remedy: str) -> SlurmJob | None:
    """Show what is appended to the files that `logs` lists until the job is over.

    Returns the job; None where Slurm has forgotten it. On Ctrl-C says with `remedy` how to end the
    job, leaves it alone and raises KeyboardInterrupt.
    """
    printer = LogPrinter(logs)
    try:
        job = wait_for_end(job_id, printer.print_new)
    except KeyboardInterrupt:
        print(f"\njob {slurm.whole_job(job_id)} goes on; {remedy}", file=sys.stderr)
        raise
    return job


def describe_lost_job(job_id: str, job: SlurmJob | None, log: Path) -> str:
    """Say what is known of a job that is over and has not recorded its end."""
    state = "gone" if job is None else job.state
    if log.exists():
        return f"job {job_id} is {state} and did not record its end; see {log}"
    hosts = "its host" if job is None or not job.nodes else job.nodes
    return (
        f"job {job_id} is {state}, and its log {log} never appeared: {hosts} cannot write to "
        f"{log.parent.parent}, or Slurm did not start it; choose a --run DIR that all nodes share"
    )
