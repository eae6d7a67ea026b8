"""Ends the time that Slurm makes a requeued job wait, two minutes at most sites, for nothing.

That can be done only while the job is in the queue, when no process of it is left; one left behind
on a node would break the rules of every site. So the supervisor, before it gives up its place,
submits a job of one core and seconds that does it. Where the site refuses that job, or has no room
for it, the run waits its time; `--wait`, or the command of the run once more, ends the wait too.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys

from supersam.cluster.ranked_run import RankedRun
from supersam.cluster.slurm import commands as slurm
from supersam.cluster.slurm.jobs import read_job
from supersam.config.files import CODE
from supersam.runtime.waiting import wait_until

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_PATIENCE_S = 110.0
_LIMIT_MIN = 2
_DEADLINE_MIN = 4  # one that found no room by then is of no use


def submit_release(run: RankedRun, job_id: str, restarts: int) -> None:
    """Submit the job that releases `job_id`, which is about to be requeued.

    restarts: how often it was requeued before.
    """
    folder = run.folder.absolute()
    command = [sys.executable, "-u", "-m", __name__, job_id, str(restarts)]
    code = shlex.quote(str(folder / CODE))
    script = (
        f"#!/bin/sh\nexport PYTHONPATH={code}\ncd {code} || exit 1\nexec {shlex.join(command)}\n"
    )
    cluster = run.cluster
    site = {"partition": cluster.partition, "account": cluster.account, "qos": cluster.qos}
    options = [
        *(f"--{name}={value}" for name, value in site.items() if value is not None),
        f"--job-name={run.name}-release",
        *("--ntasks=1", "--cpus-per-task=1", "--mem=256M", "--no-requeue"),
        *(f"--time={_LIMIT_MIN}", f"--deadline=now+{_DEADLINE_MIN}minutes"),
        *(f"--output={folder / 'logs' / 'release.log'}", "--open-mode=append"),
    ]
    try:
        with slurm.outside_allocation():
            slurm.run_command("sbatch", *options, stdin=script)
    except slurm.SlurmError as fault:
        logger.warning("no job to release this one (%s): it waits as long as Slurm says", fault)


def release_when_requeued(job_id: str, restarts: int) -> None:
    """Wait until the job is in the queue again, and let it start."""

    def is_done() -> bool:
        with contextlib.suppress(slurm.SlurmError):  # a controller that is busy: again
            job = read_job(job_id)
            if job is None or not job.is_active:
                return True
            if job.restarts > restarts and job.state != "COMPLETING":
                if job.waits_for_begin_time:
                    slurm.end_begin_time_wait(job_id)
                return True
        return False

    wait_until(is_done, timeout_s=_PATIENCE_S, poll_s=_POLL_S)


if __name__ == "__main__":
    release_when_requeued(sys.argv[1], int(sys.argv[2]))
