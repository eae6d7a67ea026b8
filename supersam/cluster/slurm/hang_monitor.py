"""Detects, from the supervisor, ranks that hang: one was blamed by the others, or fell silent.

A rank's own watchdog cannot act when its process is stopped or its host is frozen, and the others'
act only where they wait for it. Heartbeats that stand still are seen from outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from supersam.cluster.slurm.srun import GRACE_S
from supersam.cluster.slurm.supervisor_lease import renew_lease
from supersam.config import WatchdogConfig
from supersam.config.files import STALL_FILE
from supersam.health.records import RankHeartbeat, read_heartbeats
from supersam.health.watchdog import HangReport, read_hang_report, record_hang

_FAREWELL_S = 5.0
"""Seconds for the ranks to write their stacks and end, once one has reported the hang."""
_FRESH_BEATS = 6  # as `cluster.record` counts


class HangMonitor:
    """Looks at the ranks of one attempt. Times are this process's own: clocks of hosts differ."""

    def __init__(
        self,
        folder: Path,
        config: WatchdogConfig,
        *,
        attempt: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """attempt: its number; what ranks of other attempts write does not count."""
        self._folder, self._config, self._clock = folder, config, clock
        self._attempt = attempt
        # Ranks that can still act do so at `stall_s` and leave their stacks: let them.
        beats = max(config.stall_s, _FRESH_BEATS * config.heartbeat_s)
        self.limit_s = beats + 3 * config.heartbeat_s
        self._seen: dict[int, tuple[float, float]] = {}
        self._looked = clock()
        self._reported: float | None = None
        (folder / STALL_FILE).unlink(missing_ok=True)

    def detects_hang(self) -> bool:
        """Whether the attempt hangs and can be ended: a rank or this monitor has reported it."""
        if not self._config.enabled:
            return False
        now = self._clock()
        if (
            self._reported is None
            and read_hang_report(self._folder, attempt=self._attempt) is not None
        ):
            self._reported = now
        if self._reported is not None:
            return now - self._reported >= _FAREWELL_S
        if now - self._looked < self._config.heartbeat_s:
            return False
        silent = self._find_silent(now)
        if silent is None:
            return False
        quiet_s = now - self._seen[silent.rank][1]
        what = f"gave no sign of life for {quiet_s:.0f} s ({silent.phase}, step {silent.step})"
        reason = f"rank {silent.rank} on {silent.host} {what}"
        report = HangReport(silent.rank, silent.host, reason)
        record_hang(self._folder, report, step=silent.step, attempt=self._attempt)
        return True

    def _find_silent(self, now: float) -> RankHeartbeat | None:
        """Find the rank that has been silent longest, beyond the limit."""
        if now - self._looked > self.limit_s / 2 or not self._can_write():
            self._seen.clear()  # this host was suspended, or the disk is full: no evidence
        self._looked = now
        beats = [b for b in read_heartbeats(self._folder) if b.attempt == self._attempt]
        # A rank that was killed is silent too, and the others fail for it: Slurm ends those soon.
        limit_s = self.limit_s + (GRACE_S if any(b.phase == "failed" for b in beats) else 0)
        working = {b.rank: b for b in beats if not b.has_ended}
        self._seen = {
            rank: self._seen[rank]
            if self._seen.get(rank, (0, 0))[0] == beat.time
            else (beat.time, now)
            for rank, beat in working.items()
        }
        quiet = [rank for rank, (_, since) in self._seen.items() if now - since > limit_s]
        return working[min(quiet, key=lambda rank: self._seen[rank][1])] if quiet else None

    def _can_write(self) -> bool:
        try:
            renew_lease(self._folder)
        except OSError:
            return False
        return True
