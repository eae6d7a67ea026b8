"""End an attempt that hangs, and report which rank made the others wait. No collective, no torch.

Every rank watches itself in a thread, so that it can act while its main thread waits in a
collective. A rank without progress for too long writes the stacks of all its threads, reads the
heartbeats of all ranks, names the rank that is behind, and ends with the exit code `STALLED`.
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

from supersam.config import WatchdogConfig
from supersam.config.files import LOGS, STALL_FILE
from supersam.health.bad_hosts import HostHang, record_host_hang
from supersam.health.heartbeat import Heartbeat
from supersam.health.records import RankHeartbeat, read_heartbeats
from supersam.runtime.atomic import write_json
from supersam.runtime.process import describe_process
from supersam.runtime.waiting import wait_until

logger = logging.getLogger(__name__)

STALLED = 75
"""Exit code of a rank that ended itself as the job hung; the job goes on without the hung host."""
_SILENT_INTERVALS = 3


@dataclass(frozen=True)
class HangReport:
    """`stall.json`: which rank made the others wait."""

    rank: int | None
    """None where all ranks are equally far: then a network or file system hangs."""
    host: str | None
    reason: str
    """One sentence with the rank, the host and what is known about them."""


def read_hang_report(folder: Path, *, attempt: int | None = None) -> HangReport | None:
    """Read whom a watchdog named when it ended an attempt; None where it ended none.

    attempt: leave out the report of another attempt, whose ranks may outlive it.
    """
    try:
        values = json.loads((folder / STALL_FILE).read_text(encoding="utf-8"))
        if attempt is not None and values.get("attempt", attempt) != attempt:
            return None
        return HangReport(values["rank"], values["host"], values["reason"])
    except (OSError, ValueError, KeyError):
        return None


def record_hang(folder: Path, report: HangReport, *, step: int, attempt: int) -> None:
    """Record who made the others of an attempt wait, and hold it against the host."""
    logger.error("%s", report.reason)
    now = time.time()
    write_json(
        folder / STALL_FILE, {"time": now, "attempt": attempt, "step": step, **asdict(report)}
    )
    if report.host is not None:
        name = folder.absolute().name
        hang = HostHang(now, report.host, name, report.rank, step, report.reason)
        record_host_hang(folder, hang)


def find_hung_rank(
    beats: Sequence[RankHeartbeat], world_size: int, *, interval_s: float
) -> HangReport:
    """Find the rank that is behind: one without a heartbeat, else a silent one, else the slowest.

    The slowest is the one with the fewest `marks`. interval_s: seconds between heartbeats.
    """
    missing = sorted(set(range(world_size)) - {beat.rank for beat in beats})
    if missing:
        return HangReport(missing[0], None, f"{_ranks(missing)} never gave a sign of life")
    newest = max(beat.time for beat in beats)
    silent = [b for b in beats if newest - b.time > _SILENT_INTERVALS * interval_s]
    if silent:
        oldest = min(silent, key=lambda beat: beat.time)
        others = f" (silent: {_ranks([b.rank for b in silent])})" if len(silent) > 1 else ""
        return _report_rank(oldest, f"silent for {newest - oldest.time:.0f} s{others}")
    least, most = min(b.marks for b in beats), max(b.marks for b in beats)
    if least == most:
        place = f"step {beats[0].step}, {beats[0].phase}"
        return HangReport(None, None, f"all {world_size} ranks wait at the same place ({place})")
    behind = [beat for beat in beats if beat.marks == least]
    waiting = f"{world_size - len(behind)} of {world_size} ranks wait for it"
    return _report_rank(
        behind[0], f"hangs after step {behind[0].step} ({behind[0].phase}); {waiting}"
    )


class Watchdog:
    """Watch this rank's heartbeat from a thread. A context manager."""

    def __init__(self, heartbeat: Heartbeat, config: WatchdogConfig) -> None:
        self._heartbeat, self._config = heartbeat, config
        self._pause_s = min(config.heartbeat_s, config.stall_s / 4)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._heartbeat.rank == 0:
            (self._heartbeat.folder / STALL_FILE).unlink(missing_ok=True)
        if self._config.enabled:
            self._thread.start()
        return self

    def __exit__(self, *ended_by: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def limit_s(self) -> float:
        """Seconds without progress that count as a hang in the present phase."""
        median = self._heartbeat.median_step_s
        if self._heartbeat.phase != "training" or median is None:
            return self._config.other_s
        return max(self._config.stall_s, self._config.stall_steps * median)

    def _run(self) -> None:
        woke = time.monotonic()
        while not self._over.wait(self._pause_s):
            slept_s, woke = time.monotonic() - woke, time.monotonic()
            limit_s = self.limit_s()
            if slept_s > self._pause_s + limit_s / 2:
                self._heartbeat.reset_idle_timer()  # suspended by Ctrl-Z or Slurm
            elif self._heartbeat.idle_s > limit_s:
                self._end(limit_s)

    def _end(self, limit_s: float) -> None:
        if self._heartbeat.is_superseded():
            self._heartbeat.end_superseded()
        logger.error("no progress for %.0f s; ending this attempt", limit_s)
        try:
            self._dump_stacks()
            self._over.wait(2 * self._pause_s)  # the others notice, and write their stacks too
            if self._over.is_set() or self._heartbeat.idle_s <= limit_s:
                return  # it went on after all
            self._record()
            self._heartbeat.enter("stuck")
            self._heartbeat.write()
        except OSError as fault:
            logger.error("the hang could not be recorded: %s", fault)
        os._exit(STALLED)  # the main thread cannot be asked

    def _dump_stacks(self) -> None:
        path = self._heartbeat.folder / LOGS / f"stacks-{self._heartbeat.rank:05d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            moment = time.strftime("%Y-%m-%d %H:%M:%S")
            place = f"step {self._heartbeat.step}, {self._heartbeat.phase}"
            file.write(
                f"== rank {self._heartbeat.rank} on {socket.gethostname()}, {moment}, {place}\n"
            )
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)

    def _record(self) -> None:
        """The lowest rank that shows signs of life writes; the others wait for it, not for ever."""
        folder, config = self._heartbeat.folder, self._config
        beats = read_heartbeats(folder)
        report = find_hung_rank(beats, self._heartbeat.world_size, interval_s=config.heartbeat_s)
        alive = [beat.rank for beat in beats if beat.rank != report.rank]
        if self._heartbeat.rank != min(alive, default=self._heartbeat.rank):
            attempt, pause_s = self._heartbeat.attempt, self._pause_s
            if wait_until(
                lambda: read_hang_report(folder, attempt=attempt) is not None,
                timeout_s=8 * pause_s,
                poll_s=pause_s / 4,
            ):
                return
        record_hang(folder, report, step=self._heartbeat.step, attempt=self._heartbeat.attempt)


def _report_rank(beat: RankHeartbeat, what: str) -> HangReport:
    if beat.host == socket.gethostname():
        what += f"; its process {describe_process(beat.pid, beat.started_ticks)}"
    return HangReport(beat.rank, beat.host, f"rank {beat.rank} on {beat.host} {what}")


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:8]) + (", ..." if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
