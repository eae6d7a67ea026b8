"""The batch step of a search's Slurm job: a Ray on every host, the search, the requeue."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import takewhile
from pathlib import Path

from supersam.cluster.search.ray_host import read_head_address
from supersam.cluster.slurm import commands as slurm
from supersam.cluster.slurm.script import shell_safe_path
from supersam.cluster.slurm.srun import GRACE_S, require_shared_folder, step_environment
from supersam.cluster.slurm.submit import record_job
from supersam.config import SearchRun, UserError, load_run
from supersam.config.errors import print_error
from supersam.config.files import JOURNAL_FILE, LOGS, SEARCH_YAML, STARTS_FILE, SWEEP_YAML
from supersam.runtime.jsonl import append_jsonl, read_jsonl
from supersam.runtime.process import no_gc_while_importing
from supersam.runtime.signals import StopFlag, stop_requested
from supersam.runtime.waiting import wait_until
from supersam.search.command import finish
from supersam.search.folder import prepare_folder
from supersam.search.inputs import find_inputs
from supersam.search.sweep import expand

_STOP_SHARE = 0.6
"""Share of the time between notice and time limit in which a search can end by itself."""
_MOST_FRUITLESS = 3
_END_S = 8.0
"""Seconds for the hosts of the Ray to end; the allocation is released after it in any case."""


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
        run = load_run(SearchRun, folder / SEARCH_YAML).model_copy(update={"out": folder})
        starts = SearchStarts(folder, slurm.own_job_id())
        starts.record()
        try:
            # From here on, so that no signal is lost while the hosts and the search start.
            with stop_requested() as stop, ray_on_all_hosts(folder, home) as address_file:
                _requeue_late(stop, starts, delay_s=_STOP_SHARE * run.cluster.signal_delay_s)
                code = _drive(run, address_file, stop)
        except UserError as fault:
            raise SystemExit(print_error(fault)) from None
        if code == 128 + signal.SIGUSR2:  # out of time; another allocation goes on
            starts.requeue(code)
        _compare_sweep(home)
        raise SystemExit(code)


class SearchStarts:
    """The starts of a search's job, in a file: those that find nothing new are not repeated."""

    def __init__(self, folder: Path, job_id: str) -> None:
        self._folder, self._job_id = folder, job_id

    def record(self) -> None:
        """Record that the job starts now."""
        place = {"time": time.time(), "job_id": self._job_id, "trials": self._trials()}
        append_jsonl(self._folder / STARTS_FILE, place)

    def without_progress(self) -> int:
        """Count the job's last starts since which the journal has no new trial."""
        starts = read_jsonl(
            self._folder / STARTS_FILE, lambda start: (start["job_id"], start["trials"])
        )
        now = (self._job_id, self._trials())
        return len(list(takewhile(now.__eq__, reversed(starts))))

    def requeue(self, code: int) -> None:
        """Let Slurm start the job again and end this process; return where that is of no use."""
        fruitless = self.without_progress()
        if fruitless >= _MOST_FRUITLESS:
            print_error(
                f"{fruitless} starts of job {self._job_id} ended at the time limit without a new "
                "trial: loading took all of it; raise --time, then the same command goes on"
            )
            return
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
        slurm.retry_slurm(lambda: slurm.requeue(self._job_id))
        time.sleep(GRACE_S)  # Slurm ends this process; an exit of its own could come first

    def _trials(self) -> int:
        path = self._folder / JOURNAL_FILE
        return path.read_bytes().count(b'"key"') if path.exists() else 0


def _requeue_late(stop: StopFlag, starts: SearchStarts, *, delay_s: float) -> None:
    """Requeue the job from a thread where the search has not ended `delay_s` after its notice.

    An evaluator that loads, or a host that does not join, keeps it from that. The journal holds
    each trial that is done, so nothing is lost.
    """

    def watch() -> None:
        wait_until(lambda: stop.number == signal.SIGUSR2, timeout_s=math.inf, poll_s=1.0)
        print("the time of this job ends soon: chunks under way are finished", flush=True)
        time.sleep(delay_s)
        if starts.without_progress() >= _MOST_FRUITLESS:
            return  # the time limit ends it, and `--why` says so
        with contextlib.suppress(slurm.SlurmError):
            slurm.requeue(slurm.own_job_id())

    threading.Thread(target=watch, daemon=True).start()


def search_in_job(run: SearchRun, home: Path) -> int:
    """Search on the hosts of the job that this process is the batch step of.

    home: the folder with the job's code. Returns the exit code.
    """
    prepare_folder(run, find_inputs(run))
    record_job(run.folder, slurm.own_job_id())
    folder = str(shell_safe_path(run.folder))
    try:
        SearchSupervisor(folder, str(home))()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _compare_sweep(home: Path) -> None:
    """Bring the comparison of a sweep up to date, as each of its searches does when it ends."""
    from supersam.search.report.comparison import write_comparison  # slow: it imports torch

    if (home / SWEEP_YAML).is_file():
        sweep = load_run(SearchRun, home / SWEEP_YAML).model_copy(update={"out": home})
        write_comparison(home, expand(sweep))


def _drive(run: SearchRun, address_file: Path, stop: StopFlag) -> int:
    with no_gc_while_importing():
        from supersam.search.session import run_search

    find_head = partial(read_head_address, address_file)
    return finish(run, run_search(run, cluster=find_head, stop=stop))


@contextlib.contextmanager
def ray_on_all_hosts(folder: Path, home: Path) -> Iterator[Path]:
    """Within the block a Ray runs on every host of the allocation, as one step.

    Yields the file that will say where its head is.
    """
    job_id, restart = slurm.own_job_id(), os.environ.get("SLURM_RESTART_COUNT", "0")
    address_file = folder / "ray" / f"{job_id}-{restart}.json"
    here = slurm.retry_slurm(lambda: slurm.job_hosts(job_id))
    lost = slurm.retry_slurm(lambda: slurm.lost_hosts(here))
    hosts = [host for host in here if host not in lost]
    require_shared_folder(folder, hosts)
    _remove_stale_addresses(address_file.parent)
    head = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    (folder / LOGS).mkdir(exist_ok=True)
    command = [
        *("srun", f"--nodes={len(hosts)}", f"--ntasks={len(hosts)}", "--ntasks-per-node=1"),
        *(f"--nodelist={','.join(hosts)}", f"--cpus-per-task={os.environ['SLURM_CPUS_PER_TASK']}"),
        *("--overlap", "--no-kill", "--kill-on-bad-exit=0", "--unbuffered"),
        f"--chdir={home / 'code'}",
        f"--output={folder / 'logs' / f'ray-%t.{job_id}-{restart}.log'}",
        *(sys.executable, "-u", "-m", "supersam.cluster.search.ray_host", str(address_file), head),
    ]
    step = subprocess.Popen(command, env=step_environment())
    try:
        yield address_file
    finally:
        address_file.unlink(missing_ok=True)  # the hosts see it and end their Ray
        with contextlib.suppress(subprocess.TimeoutExpired):
            step.wait(_END_S)
        step.kill()


def _remove_stale_addresses(folder: Path) -> None:
    """Remove addresses, which hold a token, of jobs that were killed: a search has one job."""
    for file in folder.glob("*.json"):
        file.unlink(missing_ok=True)
