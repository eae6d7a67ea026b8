"""A training or a design as a Slurm job: submitted, and followed to its end. Imports submitit."""

from __future__ import annotations

import sys
from pathlib import Path

from supersam.cluster.ranked_run import RankedRun
from supersam.cluster.slurm.avoided_hosts import hosts_to_avoid, merge_hosts
from supersam.cluster.slurm.follow import INTERRUPTED, describe_lost_job, follow_job
from supersam.cluster.slurm.jobs import SlurmJob
from supersam.cluster.slurm.script import sbatch_parameters, shell_safe_path
from supersam.cluster.slurm.submit import record_job, require_no_active_job, submit_jobs
from supersam.cluster.slurm.supervisor import Supervisor
from supersam.config.errors import USAGE_ERROR
from supersam.config.files import CANCEL_FILE, batch_log
from supersam.health.bad_hosts import LIFE_H
from supersam.runs.attempts import read_attempts


def require_no_job(run: RankedRun) -> None:
    """Raise UserError where a job of this run waits or runs."""
    show = f"python launch/status.py {run.folder}"
    remedy = f"follow it with {show} --follow, or end it with --cancel instead first"
    require_no_active_job(run.folder, what="run", remedy=remedy)


def submit_job(run: RankedRun) -> str:
    """Submit the run, whose folder is prepared. Returns the job's id."""
    folder = shell_safe_path(run.folder)
    (folder / CANCEL_FILE).unlink(missing_ok=True)
    job_id, *_ = submit_jobs(
        folder, sbatch_parameters(_without_hung_hosts(run)), [Supervisor(str(folder))]
    )
    record_job(folder, job_id)
    return job_id


def follow_run(run: RankedRun, job_id: str) -> int:
    """Show rank 0's log until the job is over. Returns the run's exit code.

    Also ends the wait that Slurm puts before each requeued start. Ctrl-C leaves the job alone.
    """
    folder = run.folder.absolute()

    def logs() -> list[Path]:
        return [batch_log(folder, job_id), *sorted(folder.glob("logs/task-00000.attempt-*.log"))]

    show = f"python launch/status.py {run.folder}"
    remedy = f"follow it with {show} --follow, end it with --cancel instead"
    try:
        job = follow_job(job_id, logs, remedy=remedy)
    except KeyboardInterrupt:
        return INTERRUPTED
    return _outcome(folder, job_id, job)


def _outcome(folder: Path, job_id: str, job: SlurmJob | None) -> int:
    ends = [event for event in read_attempts(folder) if event.job_id == job_id]
    last = ends[-1] if ends else None
    if last is None or last.event == "start":
        print(
            f"error: {describe_lost_job(job_id, job, batch_log(folder, job_id))}", file=sys.stderr
        )
        return 1
    if last.reason == "finished":
        return 0
    print(f"job {job_id} ended: {last.reason}; see {folder / 'logs'}", file=sys.stderr)
    return USAGE_ERROR if last.exit_code == USAGE_ERROR else 1


def _without_hung_hosts(run: RankedRun) -> RankedRun:
    """Leave out hosts on which ranks hung lately, where the run can do without them."""
    avoided = hosts_to_avoid(run, run.cluster.partition)
    if not avoided:
        return run
    print(f"leaving out {', '.join(avoided)}, where ranks hung within the last {LIFE_H:g} hours")
    exclude = {"exclude": merge_hosts(run.cluster.exclude, avoided)}
    return run.model_copy(update={"cluster": run.cluster.model_copy(update=exclude)})
