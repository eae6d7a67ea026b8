"""Where a search runs: on this machine, or as a Slurm job with a Ray in it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import submitit

from supersam.cluster.preflight import check_slurm, require_enough_nodes, show_findings
from supersam.cluster.search.follow import follow_searches
from supersam.cluster.search.ray_host import read_meeting
from supersam.cluster.slurm import commands as slurm
from supersam.cluster.slurm.script import (
    batch_parameters,
    shell_safe_path,
    submitit_script,
    supervisor_python,
)
from supersam.cluster.slurm.srun import GRACE_S, step_environment
from supersam.cluster.slurm.submit import submitted_job
from supersam.cluster.snapshot import snapshot_code
from supersam.config import SearchRun, UserError, dump_run, load_run
from supersam.config.files import JOB_FILE, JOB_FOLDER, SEARCH_YAML, SWEEP_YAML
from supersam.config.io import print_error
from supersam.config.search import SearchClusterConfig
from supersam.runtime.atomic import write_bytes, write_json
from supersam.runtime.process import ends_with_reader, no_gc_while_importing
from supersam.runtime.signals import StopFlag, stop_requested

logger = logging.getLogger(__name__)

FAILURE = 1
_END_S = 8.0
"""For the hosts of the Ray to end; the allocation is released after it in any case."""


def submit_search(asked: SearchRun) -> int:
    """Perform the search or the sweep, or submit it. Returns the exit code of the command."""
    on_slurm = _is_for_slurm(asked)
    if asked.dry_run:
        from supersam.search.dry_run import describe_search
        from supersam.search.sweep import expand

        searches = expand(asked)
        with ends_with_reader():
            print(*(describe_search(search) for search in searches), sep="\n\n", flush=True)
            return 0 if not on_slurm or _show_submission(asked, len(searches)) else FAILURE
    if not on_slurm:
        with no_gc_while_importing():
            from supersam.search.command import run_search_here  # slow: it imports torch

        return run_search_here(asked)
    with slurm.slurm_errors_to_user():
        job_ids = submit_search_jobs(asked)
    if not job_ids:
        print(f"{asked.folder} is complete; a larger --trials goes on")
        return 0
    print(f"submitted job {' '.join(job_ids)}: {asked.cluster.nodes or 1} nodes, {asked.folder}")
    if asked.cluster.wait:
        return follow_searches(asked, job_ids)
    job_id = slurm.whole_job(job_ids[0])
    print(f"the same command goes on later; scancel {job_id} ends it, and nothing is lost")
    return 0


def _show_submission(asked: SearchRun, searches: int) -> bool:
    """Print the script and what Slurm would say to it. Returns whether nothing is an error."""
    array = f", as an array of {searches}," if searches > 1 else ""
    script = submitit_script(search_parameters(asked), asked.folder)
    print(f"\nsubmitted{array} would be\n\n{script}\npreflight")
    return show_findings(check_slurm(_with_all_nodes(asked)), print)


def search_in_job(asked: SearchRun, home: Path) -> int:
    """Search on the hosts of the job that this process is the batch step of.

    home: the folder with the job's code. Returns the exit code.
    """
    from supersam.search.folder import prepare_folder
    from supersam.search.inputs import find_inputs

    prepare_folder(asked, find_inputs(asked))
    _record_job(asked.folder, slurm.own_job_id())
    folder = str(shell_safe_path(asked.folder))
    try:
        SearchSupervisor(folder, str(home))()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def submit_search_jobs(asked: SearchRun) -> list[str]:
    """Check everything, prepare the folders, submit. Returns the ids: one, or an array's.

    None where nothing is left to do.
    """
    from supersam.search.folder import check_folder, is_complete, prepare_folder
    from supersam.search.inputs import find_inputs
    from supersam.search.sweep import expand

    _require_no_active_job(asked)
    require_enough_nodes(_with_all_nodes(asked))
    home = shell_safe_path(asked.folder)
    searches = expand(asked)
    basis = [find_inputs(search) for search in searches]  # all are checked before one is written
    for search, found in zip(searches, basis, strict=True):
        check_folder(search, found)
    if all(is_complete(search) for search in searches):
        return []
    for search, found in zip(searches, basis, strict=True):
        prepare_folder(search, found)
    snapshot_code(home)
    (home / JOB_FOLDER).mkdir(exist_ok=True)
    (home / JOB_FOLDER).chmod(0o700)  # it holds pickles
    executor = submitit.SlurmExecutor(home / JOB_FOLDER, python=supervisor_python())
    executor.update_parameters(**search_parameters(asked))
    drivers = [SearchSupervisor(str(shell_safe_path(s.folder)), str(home)) for s in searches]
    with slurm.outside_allocation():
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the fault holds sbatch's words too
                jobs = _submit(executor, drivers)
        except Exception as fault:  # submitit has several, each with sbatch's own words
            raise UserError(f"Slurm refused the job: {fault}") from fault
    for search, job in zip(searches, jobs, strict=True):
        _record_job(search.folder, job.job_id)
    if not asked.sweep.is_empty:
        _record_job(home, slurm.whole_job(jobs[0].job_id))
        write_bytes(home / SWEEP_YAML, dump_run(asked).encode())
    return [str(job.job_id) for job in jobs]


def _record_job(folder: Path, job_id: str) -> None:
    write_json(folder / JOB_FILE, {"job_id": job_id, "submitted": time.time()})


def _submit(executor: submitit.SlurmExecutor, drivers: list[SearchSupervisor]) -> list[Any]:
    """One job, or an array of them."""
    if len(drivers) == 1:
        return [executor.submit(drivers[0])]
    executor.update_parameters(array_parallelism=len(drivers))
    return list(executor.map_array(call, drivers))


def call(driver: SearchSupervisor) -> None:
    """What an element of the array does."""
    driver()


def search_parameters(asked: SearchRun) -> dict[str, Any]:
    """The parameters of submitit's Slurm executor for a search.

    Without --no-kill: where a host is lost the job is requeued, and the journal goes on. With it, a
    job whose batch host is lost would stand still until its time is over. And never a range of
    nodes, of which Slurm grants the fewest: `min_nodes` is for hosts that do not join.
    """
    cluster = _with_all_nodes(asked)
    evaluators = cluster.evaluators_per_node or cluster.gpus_per_node or 1
    return {
        **batch_parameters(asked.name, cluster, asked.folder),
        "nodes": cluster.nodes or 1,
        "ntasks_per_node": 1,
        "cpus_per_task": evaluators * (cluster.cpus_per_task or 1),
    }


class SearchSupervisor:
    """What submitit pickles and calls in the batch step: paths, no more."""

    def __init__(self, folder: str, home: str) -> None:
        """folder: the search's; home: the folder with the job's code, the sweep's or the same."""
        self.folder = folder
        self.home = home

    def __call__(self) -> None:
        """Drive the search on a Ray over the whole allocation; ends with its exit code."""
        os.chdir(os.environ["SLURM_SUBMIT_DIR"])  # relative paths of the run start there
        folder, home = Path(self.folder), Path(self.home)
        asked = load_run(SearchRun, folder / SEARCH_YAML).model_copy(update={"out": folder})
        try:
            # From here on, so that no signal is lost while the hosts and the search start.
            with stop_requested() as stop, _hosts_of_ray(folder, home) as meeting:
                code = _drive(asked, meeting, stop)
        except UserError as fault:
            raise SystemExit(print_error(fault)) from None
        if code == 128 + signal.SIGUSR2:  # out of time; another allocation goes on
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
            slurm.retry_slurm(lambda: slurm.requeue(slurm.own_job_id()))
            time.sleep(GRACE_S)  # Slurm ends this process; an exit of its own could come first
        _compare_sweep(home)
        raise SystemExit(code)


def _compare_sweep(home: Path) -> None:
    """Each search that ends brings the comparison up to date."""
    from supersam.search.report.comparison import write_comparison
    from supersam.search.sweep import expand

    if (home / SWEEP_YAML).is_file():
        sweep = load_run(SearchRun, home / SWEEP_YAML).model_copy(update={"out": home})
        write_comparison(home, expand(sweep))


def _drive(asked: SearchRun, meeting: Path, stop: StopFlag) -> int:
    with no_gc_while_importing():
        from supersam.search.command import finish, run_search

    return finish(asked, run_search(asked, cluster=partial(read_meeting, meeting), stop=stop))


@contextlib.contextmanager
def _hosts_of_ray(folder: Path, home: Path) -> Iterator[Path]:
    """A Ray on every host of the allocation, as one step; the step is gone after the block."""
    job_id, restart = slurm.own_job_id(), os.environ.get("SLURM_RESTART_COUNT", "0")
    meeting = folder / "ray" / f"{job_id}-{restart}.json"
    here = slurm.retry_slurm(lambda: slurm.job_hosts(job_id))
    lost = slurm.retry_slurm(lambda: slurm.lost_hosts(here))
    hosts = [host for host in here if host not in lost]
    head = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    (folder / "logs").mkdir(exist_ok=True)
    command = [
        *("srun", f"--nodes={len(hosts)}", f"--ntasks={len(hosts)}", "--ntasks-per-node=1"),
        *(f"--nodelist={','.join(hosts)}", f"--cpus-per-task={os.environ['SLURM_CPUS_PER_TASK']}"),
        *("--overlap", "--no-kill", "--kill-on-bad-exit=0", "--unbuffered"),
        f"--chdir={home / 'code'}",
        f"--output={folder / 'logs' / f'ray-%t.{job_id}-{restart}.log'}",
        *(sys.executable, "-u", "-m", "supersam.cluster.search.ray_host", str(meeting), head),
    ]
    step = subprocess.Popen(command, env=step_environment())
    try:
        yield meeting
    finally:
        meeting.unlink(missing_ok=True)  # the hosts see it and end their Ray
        with contextlib.suppress(subprocess.TimeoutExpired):
            step.wait(_END_S)
        step.kill()


def _is_for_slurm(asked: SearchRun) -> bool:
    config = asked.cluster
    if config.cluster != "slurm" and (config.cluster != "auto" or config.nodes is None):
        return False
    missing = None if asked.dry_run else slurm.missing_slurm()
    if missing is not None:
        raise UserError(
            f"a Slurm job was asked for, and {missing}. Submit from a login node; or leave out "
            "--nodes to search here"
        )
    return True


def _with_all_nodes(asked: SearchRun) -> SearchClusterConfig:
    """The search's place as Slurm is asked for it; see `search_parameters`."""
    return asked.cluster.model_copy(update={"min_nodes": None})


def _require_no_active_job(asked: SearchRun) -> None:
    job_id = submitted_job(asked.folder)
    facts = None if job_id is None else slurm.job_facts(job_id)
    if facts is not None and facts.is_active:
        raise UserError(
            f"this search is job {job_id}, which is {facts.state}; wait for it, or end it with "
            f"scancel {job_id} first"
        )
