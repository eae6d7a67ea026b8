"""The batch step of a Slurm job: starts the ranks, and decides what follows when they end.

It holds no tensors and takes part in no collective, so it can act when ranks are stuck or gone.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import FrameType

from supersam.cluster.ranked_run import alternatives, legal_node_counts, load_ranked_run
from supersam.cluster.rendezvous import clear_rendezvous
from supersam.cluster.slurm import commands as slurm
from supersam.cluster.slurm import srun
from supersam.cluster.slurm.avoided_hosts import hosts_to_avoid, merge_hosts
from supersam.cluster.slurm.hang_monitor import HangMonitor
from supersam.cluster.slurm.jobs import JobQueue, SlurmJob, read_job, was_preempted
from supersam.cluster.slurm.release_requeue import submit_release
from supersam.cluster.slurm.restart_policy import (
    WORDS,
    Action,
    Ending,
    next_action,
    pick_hosts,
    reason_of_state,
)
from supersam.cluster.slurm.supervisor_lease import keep_lease
from supersam.config import UserError
from supersam.config.errors import USAGE_ERROR, print_error
from supersam.config.files import LOGS
from supersam.health.bad_hosts import bad_hosts
from supersam.health.records import ATTEMPT_VARIABLE, saved_step
from supersam.health.watchdog import STALLED, read_hang_report
from supersam.runs.attempts import (
    AttemptEvent,
    Reason,
    attempts_without_progress,
    end_attempt,
    is_cancelled,
    read_attempts,
    start_attempt,
)
from supersam.runs.edits import keep_settings, tell_edits
from supersam.runtime.process import keep_others_from_writing
from supersam.runtime.waiting import growing_pauses, wait_until

logger = logging.getLogger(__name__)

_POLL_S = 0.3
_START_S = 600.0
"""Seconds for Slurm to start the ranks of an attempt, where it is busy or was away."""


class Supervisor:
    """What submitit pickles and calls in the batch step: the path of a run's folder, no more."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self) -> None:
        """Execute the run; the process ends with its exit code."""
        logging.basicConfig(
            format="%(asctime)s supervisor: %(message)s", level=logging.INFO, force=True
        )
        keep_others_from_writing()
        os.chdir(os.environ["SLURM_SUBMIT_DIR"])  # relative paths of the run start there
        try:
            code = _Job(Path(self.folder)).execute()
        except (UserError, slurm.SlurmError) as fault:
            print_error(fault)
            code = USAGE_ERROR if isinstance(fault, UserError) else 1
        except OSError as fault:
            print_error(
                f"the supervisor on {socket.gethostname()} cannot use {self.folder}: {fault}; the "
                "same command goes on when the folder can be written again"
            )
            code = 1
        raise SystemExit(code)


class _Job:
    """This job: its allocation, the signals it got, and the attempts it makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = load_ranked_run(folder)
        self.id = os.environ["SLURM_JOB_ID"]
        self.restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        self.notice = False  # USR2: save, your time or your place ends
        self.ending = False  # TERM: Slurm is ending the job now
        signal.signal(signal.SIGUSR2, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)  # comes before each TERM

    def execute(self) -> int:
        """Attempt the run until it is finished or another allocation has to go on."""
        (self.folder / LOGS).mkdir(exist_ok=True)
        tell_edits(self.folder)  # made while the job was in the queue, or ran
        keep_settings(self.folder)
        hosts = slurm.retry_slurm(lambda: slurm.job_hosts(self.id))
        if not hosts:
            return self._leave_requeued()
        srun.require_shared_folder(self.folder, hosts)
        if not self.run.cluster.may_lose_nodes:
            return self._attempt_all()
        keep_lease(self.folder)
        watchers = subprocess.Popen(
            srun.lease_watch_step(self.run, hosts, job_id=self.id),
            env=srun.step_environment(),
            stderr=subprocess.DEVNULL,  # that it is ended at the end would read as a fault
        )
        try:
            return self._attempt_all()
        finally:
            watchers.terminate()

    def _attempt_all(self) -> int:
        while True:
            hosts = self._choose_hosts()
            if not hosts:
                return self._leave_short_allocation()
            started = start_attempt(
                self.folder,
                job_id=self.id,
                restart_count=self.restarts,
                hosts=[host for host in hosts for _ in range(self.run.cluster.ranks_per_node)],
                world_size=len(hosts) * self.run.cluster.ranks_per_node,
                killed_by=self._former_fault(),
            )
            logger.info("attempt %d from step %d on %s", started.attempt, started.step, hosts)
            ending = self._inspect(started, self._run_ranks(started, hosts), hosts)
            end_attempt(self.folder, started, ending.reason, ending.exit_code)
            action = self._decide(started, ending)
            if action == "exit":
                return self._exit(ending)
            if action == "requeue":
                return self._requeue()

    def _leave_short_allocation(self) -> int:
        """Go back into the queue where Slurm gave a host that was dead already."""
        job = slurm.retry_slurm(lambda: read_job(self.id))
        if job is None or job.state != "RUNNING" or job.restarts > self.restarts:
            return self._leave_requeued()  # while it completes, fewer and fewer hosts are listed
        here = slurm.retry_slurm(lambda: slurm.job_hosts(self.id))
        lost = slurm.retry_slurm(lambda: slurm.lost_hosts(here))
        if not lost:
            nodes = alternatives(legal_node_counts(self.run))
            raise UserError(
                f"too few hosts in this allocation: the batch divides among "
                f"{nodes} nodes; ask for as many with --nodes"
            )
        logger.info("%s of this allocation cannot be reached; %s", lost, WORDS["requeue"])
        return self._requeue()

    def _former_fault(self) -> Reason:
        """Find why an attempt without an end is over, from Slurm or from the hosts' states."""
        events = read_attempts(self.folder)
        former = events[-1].job_id if events else None
        if former is not None and former != self.id:  # nothing requeues a job under another number
            job = JobQueue().jobs([former]).get(former)
            return reason_of_state(None if job is None else job.state)
        hosts = sorted(set(events[-1].hosts)) if events else []
        if slurm.retry_slurm(lambda: slurm.lost_hosts(hosts)):
            return "node failure"
        if events and was_preempted(self.folder, self.id, attempt=events[-1].attempt):
            return "preempted without notice"
        return "requeued"

    def _choose_hosts(self) -> list[str]:
        """Choose the hosts for the ranks: as many as are here, wanted, legal and not blamed."""
        here = slurm.retry_slurm(lambda: slurm.job_hosts(self.id))
        lost = slurm.retry_slurm(lambda: slurm.lost_hosts(here))
        here = [host for host in here if host not in lost]
        cluster = self.run.cluster
        wanted = cluster.nodes or 1
        least = wanted if cluster.min_nodes is None else cluster.min_nodes
        counts = [n for n in legal_node_counts(self.run) if least <= n <= wanted]
        return pick_hosts(here, bad=bad_hosts(self.folder), counts=counts)

    def _run_ranks(self, started: AttemptEvent, hosts: list[str]) -> int | None:
        """Start the ranks and wait for them. Returns the exit code; None where nobody saw one.

        An srun that started no rank, as where the controller has just come back and still holds
        the step before, is followed by another one after a pause, for some minutes.
        """
        deadline, pauses = time.monotonic() + _START_S, growing_pauses(1.0, 30.0)
        while True:
            code = self._run_step(started, hosts)
            if code in (0, None, STALLED) or srun.ranks_began(self.folder, started.attempt):
                return code
            if time.monotonic() > deadline or slurm.retry_slurm(lambda: slurm.lost_hosts(hosts)):
                return code
            pause_s = next(pauses)
            logger.warning("srun started no rank (exit code %s): again in %g s", code, pause_s)
            if wait_until(lambda: self.notice or self.ending, timeout_s=pause_s, poll_s=_POLL_S):
                return code

    def _run_step(self, started: AttemptEvent, hosts: list[str]) -> int | None:
        """Run the ranks as one step, to its end. Returns as `_run_ranks`."""
        clear_rendezvous(self.folder)
        monitor = HangMonitor(self.folder, self.run.watchdog, attempt=started.attempt)
        command = srun.rank_step(self.run, hosts, attempt=started.attempt)
        number = {ATTEMPT_VARIABLE: str(started.attempt)}
        step = subprocess.Popen(command, env=srun.step_environment() | number)
        save_until: float | None = None
        while step.poll() is None:
            time.sleep(_POLL_S)
            if self.notice and save_until is None:
                logger.info("told to save; passing it on to the ranks")
                step.send_signal(signal.SIGUSR2)  # srun hands it to each of them
                save_until = time.monotonic() + 0.75 * self.run.cluster.signal_delay_s
            if save_until is not None and time.monotonic() > save_until and not self.ending:
                logger.error("the ranks are stuck: they did not save in time")
                return None
            if monitor.detects_hang():
                srun.end_step(step)
                return STALLED
        code = 128 - step.returncode if step.returncode < 0 else step.returncode
        # srun also ends with 0 when Slurm ended the step under it; the last checkpoint is proof.
        done = saved_step(self.folder) >= self.run.last_step
        return code if code != 0 or done else None

    def _inspect(self, started: AttemptEvent, code: int | None, hosts: list[str]) -> Ending:
        job = slurm.retry_slurm(lambda: read_job(self.id))
        requeued = job is not None and job.restarts > self.restarts
        blamed = read_hang_report(self.folder) if code == STALLED else None
        return Ending(
            exit_code=code,
            cancelled=is_cancelled(self.folder) or (self.ending and not requeued),
            requeued=requeued,
            lost_hosts=tuple(slurm.retry_slurm(lambda: slurm.lost_hosts(hosts)))
            if code != 0
            else (),
            noticed=self.notice,
            preempted=job is not None and self._is_preempted(job, started.attempt),
            blamed_host=None if blamed is None else blamed.host,
        )

    def _is_preempted(self, job: SlurmJob, attempt: int) -> bool:
        if job.restarts > self.restarts and not self.notice:
            return was_preempted(self.folder, self.id, attempt=attempt)
        early = job.time_left_s > self.run.cluster.signal_delay_s + 60
        return job.preempted or (self.notice and early)  # Slurm may not say who needs the place

    def _decide(self, started: AttemptEvent, ending: Ending) -> Action:
        stalled = attempts_without_progress(read_attempts(self.folder), self.id)
        most = self.run.cluster.max_attempts_without_progress
        stays = ending.reason in ("failed", "node failure", "stuck")
        action = next_action(
            ending,
            stalled=stalled,
            most_stalled=most,
            hosts=self._choose_hosts() if stays else [],
            others=ending.blamed_host is not None and ending.blamed_host in self._avoided(),
        )
        lost = f", lost {list(ending.lost_hosts)}" if ending.lost_hosts else ""
        blamed = read_hang_report(self.folder) if ending.exit_code == STALLED else None
        lost += f", stuck: {blamed.reason}" if blamed is not None else ""
        logger.info(
            "attempt %d ended at step %d (%s, exit code %s%s); %s",
            *(started.attempt, saved_step(self.folder), ending.reason, ending.exit_code, lost),
            WORDS[action],
        )
        if action == "exit" and stalled >= most and ending.reason not in ("finished", "cancelled"):
            print_error(
                f"{stalled} attempts without a new checkpoint, the last because: {ending.reason}"
                f"{lost}; see {self.folder / 'logs'}, and submit again when it is mended"
            )
        return action

    def _avoided(self) -> list[str]:
        partition = os.environ.get("SLURM_JOB_PARTITION")
        return slurm.retry_slurm(lambda: hosts_to_avoid(self.run, partition))

    def _requeue(self) -> int:
        avoided = self._avoided()
        submit_release(self.run, self.id, self.restarts)
        self.ending = False
        slurm.retry_slurm(lambda: slurm.requeue(self.id))
        if avoided:  # only now, as Slurm takes it of no running job
            logger.info("without %s, where ranks hung", ", ".join(avoided))
            hosts = merge_hosts(self.run.cluster.exclude, avoided)
            slurm.retry_slurm(lambda: slurm.exclude_hosts(self.id, hosts))
        return self._wait_for_term()

    def _leave_requeued(self) -> int:
        """Leave an allocation that Slurm has taken back already, as for a requeue by a user."""
        logger.info("this allocation has no hosts any more: Slurm has requeued or ended the job")
        submit_release(self.run, self.id, self.restarts)
        return self._wait_for_term()

    def _wait_for_term(self) -> int:
        """Stay until Slurm ends this process: an exit before would be the job's own end."""
        wait_until(lambda: self.ending, timeout_s=srun.GRACE_S, poll_s=_POLL_S)
        return 1

    def _exit(self, ending: Ending) -> int:
        if ending.requeued:  # by Slurm, which leaves a moment
            submit_release(self.run, self.id, self.restarts)
        return ending.exit_code if ending.exit_code in (0, USAGE_ERROR) else 1

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR2:
            self.notice = True
        else:
            self.ending = True
