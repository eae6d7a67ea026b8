"""Submit the jobs of prepared folders through submitit, and remember which job a folder has."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import submitit

from supersam.cluster.slurm import commands as slurm
from supersam.cluster.slurm.jobs import read_job
from supersam.cluster.slurm.script import shell_safe_path, supervisor_python
from supersam.config import UserError
from supersam.config.files import JOB_FILE, JOB_FOLDER
from supersam.runs.provenance import snapshot_code
from supersam.runtime.atomic import write_json


def submit_jobs(
    home: Path, parameters: dict[str, Any], drivers: Sequence[Callable[[], None]]
) -> list[str]:
    """Submit one job, or an array with a job for each of `drivers`. Returns the ids.

    home: the folder that gets the code and the jobs' files. parameters: submitit's. drivers: what
    the batch steps call; they are pickled. Raises UserError with Slurm's words where it refuses.
    """
    home = shell_safe_path(home)
    prepare_job_folder(home)
    executor = submitit.SlurmExecutor(home / JOB_FOLDER, python=supervisor_python())
    executor.update_parameters(**parameters)
    if len(drivers) > 1:
        executor.update_parameters(array_parallelism=len(drivers))
    with slurm.outside_allocation():
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the fault holds sbatch's words too
                if len(drivers) == 1:
                    return [str(executor.submit(drivers[0]).job_id)]
                return [str(job.job_id) for job in executor.map_array(call, drivers)]
        except Exception as fault:  # submitit has several, each with sbatch's own words
            raise UserError(f"Slurm refused the job: {fault}") from fault


def call(driver: Callable[[], None]) -> None:
    """Do what an element of an array does."""
    driver()


def prepare_job_folder(home: Path) -> None:
    """Put into a folder what its jobs need: the code, and a place for their files."""
    snapshot_code(home)
    (home / JOB_FOLDER).mkdir(exist_ok=True)
    (home / JOB_FOLDER).chmod(0o700)  # it holds pickles


def record_job(folder: Path, job_id: str) -> None:
    """Remember that `job_id` is the job of `folder`."""
    write_json(folder / JOB_FILE, {"job_id": job_id, "submitted": time.time()})


def submitted_job(folder: Path) -> str | None:
    """Return the Slurm job of a folder's last submission; None where there was none."""
    try:
        return str(json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))["job_id"])
    except FileNotFoundError:
        return None


def require_no_active_job(folder: Path, *, what: str, remedy: str) -> None:
    """Raise UserError where a job of this folder waits or runs: two would write the same files.

    A job that was requeued, and is made to wait for nothing, starts now. what: run or search.
    remedy: how to follow or end it, as the end of a sentence; {job} is replaced by its id.
    """
    job_id = submitted_job(folder)
    job = None if job_id is None else read_job(job_id)
    if job_id is None or job is None or not job.is_active:
        return
    state = job.state
    if job.waits_for_begin_time:
        slurm.end_begin_time_wait(job_id)
        state += ": it was requeued, and waited only for the time that Slurm makes it wait; no more"
    text = remedy.format(job=job_id)
    raise UserError(f"this {what} is job {job_id}, which is {state}; {text}")
