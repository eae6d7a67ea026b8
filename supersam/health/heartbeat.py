"""Heartbeats: each rank records what it does while it works. No collective, no torch.

A daemon thread of every rank replaces `heartbeats/rank-00000.json` every few seconds; rank 0 also
`status.json`. The files are small and not synced to disk: losing the last one loses nothing.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import statistics
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

from supersam.config import UserError
from supersam.config.files import HEARTBEATS, STATUS_FILE
from supersam.health.records import (
    ENDED,
    AttemptTimes,
    Fault,
    Phase,
    RankHeartbeat,
    Status,
    is_attempt_over,
    own_attempt,
    read_status,
    saved_step,
)
from supersam.runtime.atomic import write_json
from supersam.runtime.process import available_gib, resident_gib, start_ticks

logger = logging.getLogger(__name__)

SUPERSEDED = 76
"""Exit code of a rank that ended itself because its attempt is over."""
_REMEMBERED_STEPS = 50
_MESSAGE_LETTERS = 2000


@dataclass
class _Numbers:
    """What the trainer reports besides its steps."""

    images_per_s: float | None = None
    losses: dict[str, float | None] = field(default_factory=dict)
    miou: float | None = None
    checkpoint: int | None = None


class Heartbeat:
    """Write what the trainer reports to disk, from a thread. A context manager.

    Leaving the context records how the rank ended: finished, stopped by a second Ctrl-C, or failed
    with which exception. A rank whose attempt is over writes nothing more, and its thread ends the
    process.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int,
        world_size: int,
        nodes: int,
        interval_s: float,
        steps: int,
        memory_gib: Callable[[], float] = resident_gib,
    ) -> None:
        self.folder, self.interval_s = folder, interval_s
        self.rank, self.world_size = rank, world_size
        self._nodes, self._steps, self._memory_gib = nodes, steps, memory_gib
        self.attempt = own_attempt()
        self._phase: Phase = "starting"
        self._step = self._first_step = self._marks = 0
        self._started = self._step_time = time.time()
        self._since = self._progress = time.monotonic()
        self._trained_s = 0.0
        self._step_s: deque[float] = deque(maxlen=_REMEMBERED_STEPS)
        self._work_s: deque[float] = deque(maxlen=_REMEMBERED_STEPS)
        self._seconds: dict[str, float] = {}
        self._numbers = _Numbers()
        self._former: list[AttemptTimes] = []
        self._fault: Fault | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        (self.folder / HEARTBEATS).mkdir(parents=True, exist_ok=True)
        self._step = self._first_step = saved_step(self.folder)  # until `begin` knows better
        if self.rank == 0 and (former := read_status(self.folder)) is not None:
            self._former = former.attempts
            self._numbers.miou, self._numbers.checkpoint = former.miou, former.checkpoint
        self.write()
        self._thread.start()
        return self

    def __exit__(self, kind: object, fault: BaseException | None, trace: object) -> None:
        if fault is not None and self._phase not in ENDED:
            self._fault = _describe(fault)
            self.enter("stopped" if isinstance(fault, KeyboardInterrupt) else "failed")
        elif self._phase not in ENDED:
            self.enter("finished")
        self._over.set()
        self._thread.join()
        self.write()

    def begin(self, step: int) -> None:
        """Record that training goes on from `step`."""
        with self._lock:
            self._step = self._first_step = step
        self.note_progress()

    def note_progress(self) -> None:
        """Record progress: the rank passed a point where ranks can block on each other."""
        self._marks += 1
        self._progress = time.monotonic()

    def end_own_work(self) -> None:
        """Record that this rank's own part of the step is done; the rest waits for the slowest."""
        if self._phase == "training":
            self._work_s.append(self.seconds()["training"] - self._trained_s)
        self.note_progress()

    def enter(self, phase: Phase) -> None:
        """Record that the rank begins a phase."""
        with self._lock:
            now = time.monotonic()
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
            self._since, self._phase = now, phase
        self.note_progress()

    def end_step(self, step: int) -> None:
        """Record that `step` steps are taken; a process's first step counts as its start-up."""
        if self._phase == "starting":
            self.enter("training")
        else:
            trained_s = self.seconds().get("training", 0.0)
            self._step_s.append(trained_s - self._trained_s)
            self._trained_s = trained_s
        with self._lock:
            self._step, self._step_time = step, time.time()
        self.note_progress()

    def report(self, *, losses: Mapping[str, float], images_per_s: float) -> None:
        """Record the latest means of training. losses: by slot."""
        with self._lock:
            self._numbers.losses = {slot: _finite(value) for slot, value in losses.items()}
            self._numbers.images_per_s = _finite(images_per_s)

    def validated(self, miou: float) -> None:
        """Record the score of a validation."""
        self._numbers.miou = _finite(miou)

    def saved(self, step: int) -> None:
        """Record that the checkpoint of `step` is complete."""
        self._numbers.checkpoint = step

    @property
    def phase(self) -> Phase:
        """The present phase."""
        return self._phase

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self._step

    @property
    def idle_s(self) -> float:
        """Seconds since the last progress."""
        return time.monotonic() - self._progress

    def reset_idle_timer(self) -> None:
        """Count `idle_s` from now, as after the whole process was suspended."""
        self._progress = time.monotonic()

    @property
    def median_step_s(self) -> float | None:
        """Median seconds of the last training steps; None before there are any."""
        return _median(self._step_s)

    def seconds(self) -> dict[str, float]:
        """Seconds spent in each phase."""
        with self._lock:
            running = self._seconds.get(self._phase, 0.0) + time.monotonic() - self._since
            return {**self._seconds, self._phase: running}

    def write(self) -> None:
        """Write the heartbeat now. A full or absent disk does not end the rank."""
        if self.is_superseded():
            return
        try:
            path = self.folder / HEARTBEATS / f"rank-{self.rank:05d}.json"
            write_json(path, asdict(self._own_record()), durable=False)
            if self.rank == 0:
                write_json(self.folder / STATUS_FILE, asdict(self._status()), durable=False)
        except OSError as fault:
            if not self._complained:
                logger.warning("the heartbeat could not be written: %s", fault)
            self._complained = True

    def _run(self) -> None:
        while not self._over.wait(self.interval_s):
            if self.is_superseded():
                self.end_superseded()
            self.write()

    def is_superseded(self) -> bool:
        """Whether the run has gone on without this rank's attempt."""
        return is_attempt_over(self.folder, self.attempt)

    def end_superseded(self) -> NoReturn:
        """End this process: another attempt has the run, and this one's files would mislead it."""
        logger.error("attempt %d of this run is over; rank %d ends", self.attempt, self.rank)
        os._exit(SUPERSEDED)  # the main thread may wait for ranks that are gone

    def _finished_seconds(self) -> dict[str, float]:
        """Seconds by phase; an unfinished step is counted apart, as it may never finish."""
        seconds = self.seconds()
        trained_s = min(self._trained_s, seconds.get("training", 0.0))
        unfinished_s = seconds.pop("training", 0.0) - trained_s
        return {**seconds, "training": trained_s, "unfinished": unfinished_s}

    def _own_record(self) -> RankHeartbeat:
        return RankHeartbeat(
            rank=self.rank,
            world_size=self.world_size,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_ticks=start_ticks(os.getpid()) or 0,
            time=time.time(),
            phase=self._phase,
            step=self._step,
            step_time=self._step_time,
            median_step_s=self.median_step_s,
            median_work_s=_median(self._work_s),
            marks=self._marks,
            memory_gib=self._memory_gib(),
            host_free_gib=available_gib(),
            fault=self._fault,
            attempt=self.attempt,
        )

    def _status(self) -> Status:
        median, left = self.median_step_s, self._steps - self._step
        times = AttemptTimes(
            started=self._started,
            updated=time.time(),
            first_step=self._first_step,
            last_step=self._step,
            world_size=self.world_size,
            nodes=self._nodes,
            seconds=self._finished_seconds(),
        )
        return Status(
            time=times.updated,
            phase=self._phase,
            step=self._step,
            steps=self._steps,
            attempt=len(self._former) + 1,
            eta_s=None if median is None else median * left,
            attempts=[*self._former, times],
            **vars(self._numbers),
        )


def _describe(fault: BaseException) -> Fault:
    frames = traceback.extract_tb(fault.__traceback__)
    ours = [frame for frame in frames if "supersam" in Path(frame.filename).parts]
    named = ours or list(frames)
    where = f"{named[-1].filename}:{named[-1].lineno}" if named else ""
    kind = UserError.__name__ if isinstance(fault, UserError) else type(fault).__name__
    return Fault(kind=kind, message=str(fault)[:_MESSAGE_LETTERS], where=where)


def _median(values: Iterable[float]) -> float | None:
    known = list(values)  # a copy: the other thread may append
    return statistics.median(known) if known else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
