"""Whether Slurm gave a job's place to one of higher priority, where it told nobody before.

The controller forgets it with the requeue. Slurm's line in the batch log and the accounting stay.
"""

from __future__ import annotations

from pathlib import Path

from supersam.cluster.slurm.jobs import ended_as
from supersam.config.files import batch_log
from supersam.runtime.tail import read_tail

_TAKEN = "DUE TO PREEMPTION ***"


def was_preempted(folder: Path, job_id: str, *, attempt: int) -> bool:
    """Whether Slurm ended the job in that attempt, its last one, for a job of higher priority."""
    log = read_tail(batch_log(folder, job_id))
    said = log.rpartition(f"attempt {attempt} from step")[2]  # the log holds all starts of the job
    return _TAKEN in said or ended_as(job_id) == "PREEMPTED"
