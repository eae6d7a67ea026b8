"""Processes that depend on each other, several at once, until a deadline."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

GRACE_S = 4.0
"""From SIGTERM to SIGKILL: a training saves in it."""
START_FAILED = -1000
"""Exit code of a job that never started."""


@dataclass
class Job:
    """A command, and when it may run."""

    name: str
    command: list | Callable[[], list]
    """Its words; a function is asked for them when the job starts."""
    after: list[str] = field(default_factory=list)
    """Jobs that must have ended well, or been stopped by their own time limit."""
    weight: int = 1
    """How many slots it takes."""
    until: float | None = None
    """When to stop it (`time.monotonic`), so that others can use what it has."""
    results: Path | None = None
    """Folder of its results, or what their files' names begin with."""
    log: Path | None = None
    started_s: float | None = None
    """After the first job's start."""
    seconds: float | None = None
    exit_code: int | None = None
    stopped: bool = False
    process: subprocess.Popen | None = None

    @property
    def usable(self):
        return self.exit_code == 0 or (self.stopped and self.until is not None)


def run_jobs(jobs, deadline, *, slots, folder, report):
    """Run all jobs, the earlier in the list first. `report(ended jobs)` after each end."""
    began = time.monotonic()
    ended = []

    def note_end(job):
        job.exit_code, job.seconds = (
            job.process.returncode,
            time.monotonic() - began - job.started_s,
        )
        ended.append(job)
        say(began, f"{job.name} ended: {job.exit_code}")
        try:
            report(ended)
        except Exception:  # the jobs that still run are worth more than one report
            traceback.print_exc()

    while (now := time.monotonic()) < deadline:
        running = [job for job in jobs if job.process is not None and job.exit_code is None]
        for job in running:
            if job.until is not None and now >= job.until and not job.stopped:
                stop(job)
            if job.process.poll() is not None:
                kill_group(job)
                note_end(job)
        running = [job for job in running if job.exit_code is None]
        waiting = [job for job in jobs if job.started_s is None and possible(job, jobs)]
        if not (running or waiting):
            return
        for job in startable(waiting, running, slots):
            job.started_s = time.monotonic() - began
            try:
                start(job, folder)
            except Exception:  # its words could not be found: no reason to end the others
                traceback.print_exc()
                job.exit_code, job.seconds = START_FAILED, 0.0
                continue
            say(began, f"{job.name} started")
        time.sleep(0.2)
    running = [job for job in jobs if job.process is not None and job.exit_code is None]
    for job in running:
        stop(job)
    for job in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.process.wait(max(0.1, deadline + GRACE_S - time.monotonic()))
        kill_group(job)
        job.process.wait()
        note_end(job)


def say(began, text):
    print(f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True)


def possible(job, jobs):
    """Whether nothing that a job needs has failed."""
    needed = [other for other in jobs if other.name in job.after]
    return all(
        possible(other, jobs) if other.exit_code is None else other.usable for other in needed
    )


def startable(waiting, running, slots):
    """Which jobs start now, by their order, as long as there are slots; one always may."""
    unfinished = {job.name for job in (*waiting, *running)}
    taken = sum(job.weight for job in running)
    for job in waiting:
        if unfinished.isdisjoint(job.after) and (taken == 0 or taken + job.weight <= slots):
            taken += job.weight
            yield job


def start(job, folder):
    words = job.command() if callable(job.command) else job.command
    job.command = [str(word) for word in words]
    job.log = folder / f"{job.name}.log"
    with job.log.open("w") as log:
        job.process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its children end with it
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )


def stop(job):
    """Ask it to end, and save; not its children, which it needs for that."""
    job.stopped = True
    job.process.send_signal(signal.SIGTERM)


def kill_group(job):
    """End what it left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.process.pid, signal.SIGKILL)
