"""Ends an attempt that hangs, and says whose fault it is. No collective, no torch.

Every rank watches itself in a thread, so that it can act while its main thread waits in a
collective. A rank that has passed no mark for too long writes the stacks of all its threads,
reads everybody's heartbeat, names the rank that is behind, and ends with `STALLED`.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from supersam.config import WatchdogConfig
from supersam.config.files import LOGS, STALL_FILE
from supersam.health.bad_hosts import Strike, add_strike
from supersam.health.heartbeat import Heartbeat
from supersam.health.records import Beat, read_beats
from supersam.runtime.atomic import write_json
from supersam.runtime.process import describe_process

logger = logging.getLogger(__name__)

STALLED = 75
"""Exit code of a rank that ended itself because the job hung; requeue without the blamed host."""
_SILENT_BEATS = 3


@dataclass(frozen=True)
class HangReport:
    """Who made the others wait."""

    rank: int | None
    """None where all ranks are equally far: a network or file system hangs."""
    host: str | None
    reason: str
    """One sentence with the rank, the host and what is known of them."""


def blame(folder: Path) -> HangReport | None:
    """Whom the watchdog named when it ended the last attempt; None where it did not end it."""
    try:
        values = json.loads((folder / STALL_FILE).read_text(encoding="utf-8"))
        return HangReport(values["rank"], values["host"], values["reason"])
    except (OSError, ValueError, KeyError):
        return None


def record_hang(folder: Path, culprit: HangReport, *, step: int) -> None:
    """Write down who made the others wait, and hold it against the host."""
    logger.error("%s", culprit.reason)
    now = time.time()
    write_json(folder / STALL_FILE, {"time": now, "step": step, **asdict(culprit)})
    if culprit.host is not None:
        name = folder.absolute().name
        add_strike(folder, Strike(now, culprit.host, name, culprit.rank, step, culprit.reason))


def find_hung_rank(beats: Sequence[Beat], world_size: int, *, interval_s: float) -> HangReport:
    """The rank that is behind: without a heartbeat, else with a silent one, else the least far."""
    missing = sorted(set(range(world_size)) - {beat.rank for beat in beats})
    if missing:
        return HangReport(missing[0], None, f"{_ranks(missing)} never gave a sign of life")
    newest = max(beat.time for beat in beats)
    silent = [b for b in beats if newest - b.time > _SILENT_BEATS * interval_s]
    if silent:
        oldest = min(silent, key=lambda beat: beat.time)
        others = f" (silent: {_ranks([b.rank for b in silent])})" if len(silent) > 1 else ""
        return _blame(oldest, f"silent for {newest - oldest.time:.0f} s{others}")
    least, most = min(b.marks for b in beats), max(b.marks for b in beats)
    if least == most:
        place = f"step {beats[0].step}, {beats[0].phase}"
        return HangReport(None, None, f"all {world_size} ranks wait at the same place ({place})")
    behind = [beat for beat in beats if beat.marks == least]
    waiting = f"{world_size - len(behind)} of {world_size} ranks wait for it"
    return _blame(behind[0], f"hangs after step {behind[0].step} ({behind[0].phase}); {waiting}")


class Watchdog:
    """Watches this rank's heart from a thread. A context manager."""

    def __init__(self, heart: Heartbeat, config: WatchdogConfig) -> None:
        self._heart, self._config = heart, config
        self._pause_s = min(config.heartbeat_s, config.stall_s / 4)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._heart.rank == 0:
            (self._heart.folder / STALL_FILE).unlink(missing_ok=True)
        if self._config.enabled:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def limit_s(self) -> float:
        """Seconds without progress that are a stall, in what the rank does now."""
        median = self._heart.median_step_s
        if self._heart.phase != "training" or median is None:
            return self._config.other_s
        return max(self._config.stall_s, self._config.stall_steps * median)

    def _run(self) -> None:
        woke = time.monotonic()
        while not self._over.wait(self._pause_s):
            slept_s, woke = time.monotonic() - woke, time.monotonic()
            limit_s = self.limit_s()
            if slept_s > self._pause_s + limit_s / 2:
                self._heart.reset_idle_timer()  # suspended by Ctrl-Z or Slurm
            elif self._heart.idle_s > limit_s:
                self._end(limit_s)

    def _end(self, limit_s: float) -> None:
        logger.error("no progress for %.0f s; ending this attempt", limit_s)
        try:
            self._dump_stacks()
            self._over.wait(2 * self._pause_s)  # the others notice, and write their stacks too
            if self._over.is_set() or self._heart.idle_s <= limit_s:
                return  # it went on after all
            self._record()
            self._heart.enter("stuck")
            self._heart.beat()
        except OSError as fault:
            logger.error("the stall could not be recorded: %s", fault)
        os._exit(STALLED)  # the main thread cannot be asked

    def _dump_stacks(self) -> None:
        path = self._heart.folder / LOGS / f"stacks-{self._heart.rank:05d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            moment = time.strftime("%Y-%m-%d %H:%M:%S")
            place = f"step {self._heart.step}, {self._heart.phase}"
            file.write(f"== rank {self._heart.rank} on {socket.gethostname()}, {moment}, {place}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)

    def _record(self) -> None:
        """The lowest rank that shows signs of life writes; the others wait for it, not for ever."""
        folder, config = self._heart.folder, self._config
        beats = read_beats(folder)
        culprit = find_hung_rank(beats, self._heart.world_size, interval_s=config.heartbeat_s)
        alive = [beat.rank for beat in beats if beat.rank != culprit.rank]
        if self._heart.rank != min(alive, default=self._heart.rank):
            deadline = time.monotonic() + 8 * self._pause_s
            while time.monotonic() < deadline:
                if (folder / STALL_FILE).exists():
                    return
                time.sleep(self._pause_s / 4)
        record_hang(folder, culprit, step=self._heart.step)


def _blame(beat: Beat, what: str) -> HangReport:
    if beat.host == socket.gethostname():
        what += f"; its process {describe_process(beat.pid, beat.started_ticks)}"
    return HangReport(beat.rank, beat.host, f"rank {beat.rank} on {beat.host} {what}")


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:8]) + (", ..." if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
