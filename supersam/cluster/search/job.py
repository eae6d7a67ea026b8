"""A search or a sweep as Slurm jobs: submitted, and followed to their end."""

from __future__ import annotations

from functools import partial

from supersam.cluster.preflight import check_slurm, require_enough_nodes, show_findings
from supersam.cluster.search.supervisor import SearchSupervisor
from supersam.cluster.slurm import commands as slurm
from supersam.cluster.slurm.follow import INTERRUPTED, describe_lost_job, follow_job
from supersam.cluster.slurm.script import (
    search_parameters,
    shell_safe_path,
    submitit_script,
)
from supersam.cluster.slurm.submit import record_job, require_no_active_job, submit_jobs
from supersam.config import SearchRun, dump_run
from supersam.config.errors import print_error
from supersam.config.files import SWEEP_YAML, batch_log
from supersam.runtime.atomic import write_bytes
from supersam.runtime.next_command import next_line
from supersam.runtime.process import ends_with_reader
from supersam.runtime.table import count
from supersam.search.command import describe_searches
from supersam.search.folder import check_folder, is_complete, prepare_folder, read_record
from supersam.search.inputs import find_inputs
from supersam.search.sweep import expand, format_sweep

FAILURE = 1


def submit_search(run: SearchRun) -> int:
    """Submit the search or the sweep. Returns the exit code of the command."""
    if run.dry_run:
        with ends_with_reader():
            print(describe_searches(run), flush=True)
            return 0 if _show_submission(run, len(expand(run))) else FAILURE
    slurm.require_slurm(otherwise="leave out --nodes to search here")
    with slurm.slurm_errors_to_user():
        job_ids = submit_search_jobs(run)
    if not job_ids:
        print(f"{run.folder} is complete; a larger --trials goes on")
        return 0
    nodes = count(run.cluster.nodes or 1, "node")
    print(f"submitted job {' '.join(job_ids)}: {nodes}, {run.folder}")
    if run.cluster.wait:
        return follow_searches(run, job_ids)
    job_id = slurm.whole_job(job_ids[0])
    print(f"the same command goes on later; scancel {job_id} ends it, and nothing is lost")
    print(next_line("status", run.folder))
    return 0


def submit_search_jobs(run: SearchRun) -> list[str]:
    """Check everything, prepare the folders, submit. Returns the ids: one, or an array's.

    Returns none where nothing is left to do.
    """
    remedy = "wait for it, or end it with scancel {job} first"
    require_no_active_job(run.folder, what="search", remedy=remedy)
    require_enough_nodes(run.cluster)
    home = shell_safe_path(run.folder)
    searches = expand(run)
    inputs = [find_inputs(search) for search in searches]  # all are checked before one is written
    for search, found in zip(searches, inputs, strict=True):
        check_folder(search, found)
    if all(is_complete(search) for search in searches):
        return []
    for search, found in zip(searches, inputs, strict=True):
        prepare_folder(search, found)
    drivers = [SearchSupervisor(str(shell_safe_path(s.folder)), str(home)) for s in searches]
    job_ids = submit_jobs(home, search_parameters(run), drivers)
    for search, job_id in zip(searches, job_ids, strict=True):
        record_job(search.folder, job_id)
    if not run.sweep.is_empty:
        record_job(home, slurm.whole_job(job_ids[0]))
        write_bytes(home / SWEEP_YAML, dump_run(run).encode())
    return job_ids


def follow_searches(run: SearchRun, job_ids: list[str]) -> int:
    """Show the log of a search until its job is over, or wait for all of a sweep.

    Returns the exit code. Also ends the wait that Slurm puts before each requeued start. Ctrl-C
    leaves the jobs alone.
    """
    from supersam.search.report.comparison import write_comparison  # slow: it imports torch

    searches, code = expand(run), 0
    logs = [batch_log(run.folder, job_id) for job_id in job_ids]
    remedy = f"end it with scancel {slurm.whole_job(job_ids[0])}"
    try:
        jobs = [
            follow_job(job_id, partial(list, (log,)), remedy=remedy)
            for job_id, log in zip(job_ids, logs, strict=True)
        ]
    except KeyboardInterrupt:
        return INTERRUPTED
    if not run.sweep.is_empty:
        print(format_sweep(write_comparison(run.folder, searches)))
    for search, job_id, job, log in zip(searches, job_ids, jobs, logs, strict=True):
        if not read_record(search.folder).get("finished", False):
            code = FAILURE
            print_error(describe_lost_job(job_id, job, log))
    return code


def _show_submission(run: SearchRun, searches: int) -> bool:
    """Print the script and what Slurm would say to it. Returns whether nothing is an error."""
    array = f", as an array of {searches}," if searches > 1 else ""
    script = submitit_script(search_parameters(run), run.folder)
    print(f"\nsubmitted{array} would be\n\n{script}\npreflight")
    return show_findings(check_slurm(run.cluster), print)
