"""What follows when the ranks of an attempt have ended. Pure: no Slurm, no clock, no files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from supersam.config.errors import USAGE_ERROR
from supersam.runs.attempts import Reason, reason_of

Action = Literal["exit", "restart", "requeue"]
WORDS: dict[Action, str] = {
    "exit": "the run ends here",
    "restart": "the run starts again here",
    "requeue": "the run is requeued",
}
"""What the batch log says of each; the status finds a requeue that was announced, and never came.
"""


@dataclass(frozen=True)
class Ending:
    """How the ranks of an attempt ended, and what Slurm says of the job then."""

    exit_code: int | None
    """Exit code of the worst rank; None where the ranks were left behind or ended by Slurm."""
    cancelled: bool
    """The run was cancelled, by the marker or in Slurm."""
    requeued: bool
    """Slurm has sent the job back to the queue already."""
    lost_hosts: tuple[str, ...]
    """Hosts of the attempt that failed."""
    noticed: bool
    """The job was told to save: its time or its place ends."""
    preempted: bool
    """A job of higher priority takes the place; else the reason of a notice is the time limit."""
    blamed_host: str | None = None
    """The host on which a rank hung."""

    @property
    def reason(self) -> Reason:
        """Why the attempt ended, in one word of the attempts file."""
        if self.exit_code == 0:
            return "finished"
        if self.cancelled:
            return "cancelled"
        if self.lost_hosts:
            return "node failure"
        if self.noticed:
            return "preempted" if self.preempted else "time limit"
        if self.requeued:
            return "preempted without notice" if self.preempted else "requeued"
        if self.preempted:  # Slurm ended the ranks, and leaves the job some time
            return "preempted"
        return "failed" if self.exit_code is None else reason_of(self.exit_code)


def reason_of_state(state: str | None) -> Reason:
    """Say why an attempt without a recorded end is over. state: Slurm's; None: forgotten."""
    reasons: dict[str | None, Reason] = {
        "CANCELLED": "cancelled",
        "DEADLINE": "time limit",
        "FAILED": "failed",
        "NODE_FAIL": "node failure",
        "OUT_OF_MEMORY": "failed",
        "PREEMPTED": "preempted",
        "TIMEOUT": "time limit",
    }
    return reasons.get(state, "ended")


def pick_hosts(here: Sequence[str], *, bad: Collection[str], counts: Sequence[int]) -> list[str]:
    """Choose the hosts for the next attempt: as many as the largest count that can be had.

    Suspects, hosts that a watchdog named, are left out; they are taken again only where no count
    can be had without them. Returns none where no count can be had at all.
    """
    for pool in ([host for host in here if host not in bad], list(here)):
        count = max((n for n in counts if n <= len(pool)), default=0)
        if count > 0:
            return pool[:count]
    return []


def next_action(
    ending: Ending, *, stalled: int, most_stalled: int, hosts: Sequence[str], others: bool = False
) -> Action:
    """Decide whether to go on in this allocation, by the queue, or not at all.

    stalled: attempts in a row without a new checkpoint, this one included.
    hosts: what the allocation offers the next attempt; none where it has too few.
    others: whether the partition has enough hosts besides the blamed one.
    """
    if ending.reason in ("finished", "cancelled") or ending.requeued:
        return "exit"
    if ending.exit_code == USAGE_ERROR or stalled >= most_stalled:
        return "exit"
    if ending.reason not in ("failed", "node failure", "stuck") or len(hosts) == 0:
        return "requeue"
    return "requeue" if ending.blamed_host in hosts and others else "restart"
