"""Ends a run for good: a mark against requeueing, then scancel or a signal. No torch."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence

from supersam.cluster.slurm.commands import SlurmError, cancel_job
from supersam.config import UserError
from supersam.config.files import CANCEL_FILE
from supersam.health.records import RankHeartbeat
from supersam.runtime.process import is_same_process
from supersam.runtime.table import count
from supersam.status.run import RunRecord


def cancel(record: RunRecord) -> str:
    """Ask the run to save and end, and see that nothing starts it again. Returns what was done.

    A run that was cancelled before, and has not ended, is killed. Raises UserError where there is
    nothing to cancel, or where it cannot be reached from here.
    """
    if not _may_be_active(record):
        raise UserError(f"{record.folder} is not running ({record.state}); there is nothing to end")
    before = record.cancelled
    (record.folder / CANCEL_FILE).touch()
    if record.job_id is not None:
        return _cancel_job(
            record, gently=not before and record.job is not None and record.job.state == "RUNNING"
        )
    return _signal_ranks(record, signal.SIGKILL if before else signal.SIGTERM)


def _may_be_active(record: RunRecord) -> bool:
    """Whether it works or waits; also where Slurm was asked for it and does not answer."""
    if record.state in ("running", "pending"):
        return True
    unknown = record.job is None and record.job_id is not None
    return unknown and record.state in ("new", "lost", "stuck")


def _cancel_job(record: RunRecord, *, gently: bool) -> str:
    """gently: the supervisor has the ranks save; Slurm itself would give them KillWait seconds."""
    try:
        cancel_job(str(record.job_id), gently=gently)
    except SlurmError as fault:
        raise UserError(
            f"job {record.job_id} could not be cancelled ({fault}); it will not be requeued. "
            "Repeat this when Slurm answers"
        ) from fault
    if gently:
        return (
            f"asked job {record.job_id} to save and end; it will not be requeued. Repeat --cancel "
            "to end it at once"
        )
    return f"cancelled job {record.job_id}; it will not be requeued"


def _signal_ranks(record: RunRecord, number: signal.Signals) -> str:
    host = socket.gethostname()
    alive = [
        b for b in record.heartbeats if is_same_process(b.pid, b.started_ticks) and b.host == host
    ]
    if not alive:
        hosts = ", ".join(sorted({beat.host for beat in record.heartbeats}))
        raise UserError(f"{record.folder} runs on {hosts}; repeat this command there")
    _signal(alive, number)
    if number == signal.SIGKILL:
        return f"killed {count(len(alive), 'rank')} that had not ended after the first request"
    return f"asked {count(len(alive), 'rank')} to save and end; repeat --cancel to kill them"


def _signal(beats: Sequence[RankHeartbeat], number: signal.Signals) -> None:
    for beat in beats:
        try:
            os.kill(beat.pid, number)
        except ProcessLookupError:  # ended meanwhile: what was wanted
            continue
        except PermissionError as fault:
            raise UserError(f"process {beat.pid} of rank {beat.rank} is another user's") from fault
