"""The batch step of a Slurm job: starts the ranks, and decides what follows when they end.

It holds no tensors and takes part in no collective, so it can act when ranks are stuck or gone.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeVar

from supersam.cluster import slurm
from supersam.cluster.attempts import (
    AttemptEvent,
    Reason,
    attempts_without_progress,
    end_attempt,
    is_cancelled,
    read_attempts,
    saved_step,
    start_attempt,
)
from supersam.cluster.batch import legal_node_counts
from supersam.cluster.decisions import Ending, next_action, pick_hosts
from supersam.cluster.orphans import start_beating
from supersam.cluster.rendezvous import clear_rendezvous
from supersam.cluster.sbatch import cores_per_rank
from supersam.config import TrainRun, UserError, load_run
from supersam.config.io import USAGE_ERROR
from supersam.runtime.watchdog import STALLED, blame, count_strikes

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

_POLL_S = 0.3
_GRACE_S = 30  # for the other ranks to end by themselves after the first has
_ANSWER_S = 600  # for a controller that is down to come back
# They describe the allocation as it began; a step on fewer hosts must not see them.
_STALE = ("NNODES", "NODELIST", "TASKS_PER_NODE", "NTASKS", "NPROCS", "NTASKS_PER_NODE")
_STALE_JOB = ("SLURM_JOB_NUM_NODES", "SLURM_JOB_NODELIST", "SLURM_JOB_CPUS_PER_NODE")


class Supervisor:
    """What submitit pickles and calls in the batch step: the path of a run's folder, no more."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self) -> None:
        """Execute the run; the process ends with its exit code."""
        logging.basicConfig(
            format="%(asctime)s supervisor: %(message)s", level=logging.INFO, force=True
        )
        os.chdir(os.environ["SLURM_SUBMIT_DIR"])  # relative paths of the run start there
        try:
            code = _Job(Path(self.folder)).execute()
        except (UserError, slurm.SlurmError) as fault:
            logger.error("error: %s", fault)
            code = USAGE_ERROR if isinstance(fault, UserError) else 1
        raise SystemExit(code)


class _Job:
    """This job: its allocation, the signals it got, and the attempts it makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run = load_run(TrainRun, folder / "run.yaml")
        self.run = run.model_copy(update={"run": folder})
        self.id = os.environ["SLURM_JOB_ID"]
        self.restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        self.notice = False  # USR2: save, your time or your place ends
        self.ending = False  # TERM: Slurm is ending the job now
        signal.signal(signal.SIGUSR2, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)  # comes before each TERM

    def execute(self) -> int:
        """Attempt the run until it is finished or another allocation has to go on."""
        (self.folder / "logs").mkdir(exist_ok=True)
        if not self.run.cluster.may_lose_nodes:
            return self._attempt_all()
        start_beating(self.folder)
        sentinels = subprocess.Popen(
            self._sentinels(),
            env=_step_environment(),
            stderr=subprocess.DEVNULL,  # that it is ended at the end would read as a fault
        )
        try:
            return self._attempt_all()
        finally:
            sentinels.terminate()

    def _attempt_all(self) -> int:
        while True:
            hosts = self._choose_hosts()
            if not hosts:
                raise UserError(f"the allocation holds none of {legal_node_counts(self.run)} nodes")
            started = start_attempt(
                self.folder,
                job_id=self.id,
                restart_count=self.restarts,
                hosts=[host for host in hosts for _ in range(self.run.cluster.ranks_per_node)],
                world_size=len(hosts) * self.run.cluster.ranks_per_node,
                killed_by=self._former_fault(),
            )
            logger.info("attempt %d from step %d on %s", started.attempt, started.step, hosts)
            ending = self._inspect(self._run_ranks(started, hosts), hosts)
            end_attempt(self.folder, started, ending.reason, ending.exit_code)
            action = self._decide(started, ending)
            if action == "exit":
                return self._exit_code(ending)
            if action == "requeue":
                return self._requeue()

    def _former_fault(self) -> Reason:
        """Why an attempt that left no end was killed: its hosts tell."""
        former = [event.hosts for event in read_attempts(self.folder)][-1:]
        hosts = sorted({host for group in former for host in group})
        return "node failure" if _patiently(lambda: slurm.lost_hosts(hosts)) else "requeued"

    def _choose_hosts(self) -> list[str]:
        """The hosts for the ranks: the most that are here, wanted, legal and not blamed."""
        here = _patiently(lambda: slurm.job_hosts(self.id))
        here = [host for host in here if host not in _patiently(lambda: slurm.lost_hosts(here))]
        cluster = self.run.cluster
        wanted = cluster.nodes or 1
        least = wanted if cluster.min_nodes is None else cluster.min_nodes
        counts = [n for n in legal_node_counts(self.run) if least <= n <= wanted]
        return pick_hosts(here, suspects=count_strikes(self.folder), counts=counts)

    def _run_ranks(self, started: AttemptEvent, hosts: list[str]) -> int | None:
        """Start the ranks and wait for them. Returns the exit code; None where nobody saw one."""
        clear_rendezvous(self.folder)
        step = subprocess.Popen(self._srun(started, hosts), env=_step_environment())
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
        code = 128 - step.returncode if step.returncode < 0 else step.returncode
        # srun also ends with 0 when Slurm ended the step under it; the last checkpoint is proof.
        done = saved_step(self.folder) >= self.run.optim.steps
        return code if code != 0 or done else None

    def _srun(self, started: AttemptEvent, hosts: list[str]) -> list[str]:
        each = self.run.cluster.ranks_per_node
        log = self.folder / "logs" / f"task-%5t.attempt-{started.attempt:03d}.log"
        return [
            *_srun_on(hosts, each),
            f"--cpus-per-task={cores_per_rank(self.run)}",
            "--distribution=block",
            "--overlap",
            f"--wait={_GRACE_S}",
            "--kill-on-bad-exit=0",  # ranks that saved end one by one; --wait bounds it
            "--unbuffered",
            f"--chdir={self.folder / 'code'}",  # the job goes back; see sbatch.py
            f"--output={log}",
            *(sys.executable, "-u", "-m", "supersam.cluster.job", str(self.folder)),
        ]

    def _sentinels(self) -> list[str]:
        log = self.folder / "logs" / "sentinel-%t.log"
        module = ("-m", "supersam.cluster.orphans", str(self.folder), self.id)
        return [
            *_srun_on(_patiently(lambda: slurm.job_hosts(self.id)), 1),
            *("--no-kill", "--overlap", "--mem=0", "--cpus-per-task=1"),
            *(f"--chdir={self.folder / 'code'}", f"--output={log}"),
            *(sys.executable, "-u", *module),
        ]

    def _inspect(self, code: int | None, hosts: list[str]) -> Ending:
        facts = _patiently(lambda: slurm.job_facts(self.id))
        requeued = facts is not None and facts.restarts > self.restarts
        return Ending(
            exit_code=code,
            cancelled=is_cancelled(self.folder) or (self.ending and not requeued),
            requeued=requeued,
            lost_hosts=tuple(_patiently(lambda: slurm.lost_hosts(hosts))) if code != 0 else (),
            noticed=self.notice,
            preempted=facts is not None and self._is_preempted(facts),
        )

    def _is_preempted(self, facts: slurm.JobFacts) -> bool:
        early = facts.time_left_s > self.run.cluster.signal_delay_s + 60
        return facts.preempted or (self.notice and early)  # Slurm may not say who needs the place

    def _decide(self, started: AttemptEvent, ending: Ending) -> str:
        stalled = attempts_without_progress(read_attempts(self.folder), self.id)
        most = self.run.cluster.max_attempts_without_progress
        enough = ending.reason in ("failed", "node failure") and bool(self._choose_hosts())
        action = next_action(ending, stalled=stalled, most_stalled=most, enough_hosts=enough)
        lost = f", lost {list(ending.lost_hosts)}" if ending.lost_hosts else ""
        blamed = blame(self.folder) if ending.exit_code == STALLED else None
        if blamed is not None:
            lost += f", stuck: rank {blamed.rank} on {blamed.host}: {blamed.reason}"
        what = {"exit": "ends here", "restart": "starts again here", "requeue": "is requeued"}
        logger.info(
            "attempt %d ended at step %d (%s, exit code %s%s); the run %s",
            *(started.attempt, saved_step(self.folder), ending.reason, ending.exit_code, lost),
            what[action],
        )
        if action == "exit" and stalled >= most and ending.reason not in ("finished", "cancelled"):
            logger.error(
                "error: %d attempts without a new checkpoint, the last because: %s; see %s, and "
                "submit again when it is mended",
                *(stalled, ending.reason, self.folder / "logs"),
            )
        return action

    def _requeue(self) -> int:
        _patiently(lambda: slurm.requeue(self.id))
        time.sleep(_GRACE_S)  # Slurm ends this process; an exit of its own could come first
        return 1

    def _exit_code(self, ending: Ending) -> int:
        return ending.exit_code if ending.exit_code in (0, USAGE_ERROR) else 1

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR2:
            self.notice = True
        else:
            self.ending = True


def _srun_on(hosts: list[str], each: int) -> list[str]:
    """The beginning of a step with `each` tasks on every host."""
    return [
        "srun",
        f"--nodes={len(hosts)}",
        f"--ntasks={len(hosts) * each}",
        f"--ntasks-per-node={each}",
        f"--nodelist={','.join(hosts)}",
    ]


def _step_environment() -> dict[str, str]:
    stale = {f"SLURM_{name}" for name in _STALE} | set(_STALE_JOB)
    return {name: value for name, value in os.environ.items() if name not in stale}


def _patiently(ask: Callable[[], Answer]) -> Answer:
    """The answer of Slurm, also where its controller is away for some minutes."""
    deadline, pause_s = time.monotonic() + _ANSWER_S, 1.0
    while True:
        try:
            return ask()
        except slurm.SlurmError as fault:
            if time.monotonic() > deadline:
                raise
            logger.warning("Slurm does not answer (%s); asking again", fault)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 15.0)
