"""Ends the time that Slurm makes a requeued job wait, two minutes at most sites, for nothing.

That can be done only while the job is in the queue, when no process of it is left; one left behind
on a node would break the rules of every site. So the supervisor, before it gives up its place,
submits an usher: a job of one core and seconds. Where the site refuses it, or has no room for it,
the job waits its time; `--wait`, or the command of the run once more, ends it too.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
import time

from supersam.cluster.slurm import commands as slurm
from supersam.cluster.tasks import Task

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_PATIENCE_S = 110.0
_LIMIT_MIN = 2
_DEADLINE_MIN = 4  # one that found no room by then is of no use


def send_usher(run: Task, job_id: str, restarts: int) -> None:
    """Submit the usher of a job that was requeued `restarts` times and is about to be again."""
    folder = run.folder.absolute()
    command = [sys.executable, "-u", "-m", __name__, job_id, str(restarts)]
    code = shlex.quote(str(folder / "code"))
    script = (
        f"#!/bin/sh\nexport PYTHONPATH={code}\ncd {code} || exit 1\nexec {shlex.join(command)}\n"
    )
    cluster = run.cluster
    site = {"partition": cluster.partition, "account": cluster.account, "qos": cluster.qos}
    options = [
        *(f"--{name}={value}" for name, value in site.items() if value is not None),
        f"--job-name={run.name}-usher",
        *("--ntasks=1", "--cpus-per-task=1", "--mem=256M", "--no-requeue"),
        *(f"--time={_LIMIT_MIN}", f"--deadline=now+{_DEADLINE_MIN}minutes"),
        *(f"--output={folder / 'logs' / 'usher.log'}", "--open-mode=append"),
    ]
    try:
        with slurm.outside_allocation():
            slurm.run_command("sbatch", *options, stdin=script)
    except slurm.SlurmError as fault:
        logger.warning("no usher (%s): the job waits as long as Slurm makes it wait", fault)


def usher(job_id: str, restarts: int) -> None:
    """Wait until the job is in the queue again, and let it start."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(slurm.SlurmError):  # a controller that is busy: again
            facts = slurm.job_facts(job_id)
            if facts is None or not facts.is_active:
                return
            if facts.restarts > restarts and facts.state != "COMPLETING":
                if facts.waits_for_begin_time:
                    slurm.end_begin_time_wait(job_id)
                return
        time.sleep(_POLL_S)


if __name__ == "__main__":
    usher(sys.argv[1], int(sys.argv[2]))
