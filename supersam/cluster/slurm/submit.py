"""Submit a prepared run to Slurm through submitit, and follow it."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from supersam.cluster.slurm import commands as slurm
from supersam.cluster.slurm.avoided_hosts import hosts_to_avoid, merge_hosts
from supersam.cluster.slurm.script import build_executor, shell_safe_path
from supersam.cluster.slurm.supervisor import Supervisor
from supersam.cluster.snapshot import snapshot_code
from supersam.cluster.tasks import Task
from supersam.config import UserError
from supersam.config.files import CANCEL_FILE, JOB_FILE, JOB_FOLDER
from supersam.config.io import USAGE_ERROR
from supersam.health.bad_hosts import LIFE_H
from supersam.runs.attempts import read_attempts
from supersam.runtime.atomic import write_json

_POLL_S = 1.0
_SLOW_POLL_S = 10.0


def require_no_active_job(run: Task) -> None:
    """Raise UserError where a job of this run waits or runs: two would write the same files.

    A job that was requeued, and is made to wait for nothing, starts now.
    """
    job_id = submitted_job(run.folder)
    if job_id is None:
        return
    facts = slurm.job_facts(job_id)
    if facts is None or not facts.is_active:
        return
    state = facts.state
    if facts.waits_for_begin_time:
        slurm.end_begin_time_wait(job_id)
        state += ": it was requeued, and waited only for the time that Slurm makes it wait; no more"
    raise UserError(
        f"this run is job {job_id}, which is {state}; follow it with python "
        f"launch/status.py {run.folder} --follow, or end it with --cancel instead first"
    )


def submitted_job(folder: Path) -> str | None:
    """The Slurm job of a run's last submission; None where it never was submitted."""
    try:
        return str(json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))["job_id"])
    except FileNotFoundError:
        return None


def submit_job(run: Task) -> str:
    """Submit the run, whose folder is prepared. Returns the job's id."""
    folder = shell_safe_path(run.folder)
    (folder / CANCEL_FILE).unlink(missing_ok=True)
    run = _without_hung_hosts(run)
    prepare_job_folder(folder)
    with slurm.outside_allocation():
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the fault holds sbatch's words too
                job = build_executor(run).submit(Supervisor(str(folder)))
        except Exception as fault:  # submitit has several, each with sbatch's own words
            raise UserError(f"Slurm refused the job: {fault}") from fault
    write_json(folder / JOB_FILE, {"job_id": job.job_id, "submitted": time.time()})
    return str(job.job_id)


def prepare_job_folder(folder: Path) -> None:
    """Put into the run's folder what its jobs need: the code, and a place for their files."""
    snapshot_code(folder)
    (folder / JOB_FOLDER).mkdir(exist_ok=True)
    (folder / JOB_FOLDER).chmod(0o700)  # it holds pickles


def _without_hung_hosts(run: Task) -> Task:
    """The run, leaving out hosts on which ranks hung lately, where it can do without them."""
    avoided = hosts_to_avoid(run, run.cluster.partition)
    if not avoided:
        return run
    print(f"leaving out {', '.join(avoided)}, where ranks hung within the last {LIFE_H:g} hours")
    exclude = {"exclude": merge_hosts(run.cluster.exclude, avoided)}
    return run.model_copy(update={"cluster": run.cluster.model_copy(update=exclude)})


def follow_job(run: Task, job_id: str) -> int:
    """Show rank 0's log until the job is over. Returns the run's exit code.

    Also ends the wait that Slurm puts before each requeued start. Ctrl-C leaves the job alone.
    """
    folder = run.folder.absolute()
    printer = _LogPrinter(folder, job_id)
    try:
        facts = wait_for_end(job_id, printer.print_new)
    except KeyboardInterrupt:
        print(
            f"\njob {job_id} goes on; follow it with python launch/status.py {run.folder} "
            "--follow, end it with --cancel instead",
            file=sys.stderr,
        )
        return 128 + 2
    return _outcome(folder, job_id, facts)


def wait_for_end(job_id: str, show: Callable[[], None]) -> slurm.JobFacts | None:
    """What Slurm says of a job when it is over; None where it has forgotten it.

    Calls `show` every second until then, and ends the wait before each requeued start.
    """
    pause_s, silent = _POLL_S, False
    while True:
        show()
        try:
            facts = slurm.job_facts(job_id)
        except slurm.SlurmError as fault:
            if not silent and not isinstance(fault, slurm.KilledCommandError):
                print(f"Slurm does not answer ({fault}); waiting for it", file=sys.stderr)
                silent = True
            pause_s = min(2 * pause_s, _SLOW_POLL_S)
        else:
            silent, pause_s = False, _POLL_S
            if facts is None or not facts.is_active:
                show()
                return facts
            if facts.waits_for_begin_time:
                with contextlib.suppress(slurm.SlurmError):  # not every site allows it
                    slurm.end_begin_time_wait(job_id)
        time.sleep(pause_s)


def _outcome(folder: Path, job_id: str, facts: slurm.JobFacts | None) -> int:
    ends = [event for event in read_attempts(folder) if event.job_id == job_id]
    last = ends[-1] if ends else None
    if last is not None and last.event == "end":
        if last.reason == "finished":
            return 0
        print(f"job {job_id} ended: {last.reason}; see {folder / 'logs'}", file=sys.stderr)
        return USAGE_ERROR if last.exit_code == USAGE_ERROR else 1
    state = facts.state if facts is not None else "gone"
    log = folder / JOB_FOLDER / f"{job_id}_0_log.out"
    print(f"job {job_id} is {state} and left no word of its end; see {log}", file=sys.stderr)
    return 1


@dataclass
class _LogPrinter:
    """Prints what is new in the supervisor's and rank 0's logs of a job."""

    folder: Path
    job_id: str
    _read: dict[Path, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for log in self._logs():  # of earlier jobs of this run
            self._read[log] = log.stat().st_size

    def print_new(self) -> None:
        for log in self._logs():
            with log.open("rb") as file:
                file.seek(self._read.get(log, 0))
                piece = file.read()
            self._read[log] = self._read.get(log, 0) + len(piece)
            sys.stdout.write(piece.decode("utf-8", errors="replace"))
        sys.stdout.flush()

    def _logs(self) -> list[Path]:
        batch = self.folder / JOB_FOLDER / f"{self.job_id}_0_log.out"
        ranks = sorted((self.folder / "logs").glob("task-00000.attempt-*.log"))
        return [*([batch] if batch.exists() else []), *ranks]
