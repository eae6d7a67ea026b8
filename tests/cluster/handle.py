"""A handle to a cluster of slurm/devcluster: what tests do to it and ask it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
COMMAND = PROJECT / "slurm" / "devcluster" / "devcluster"
RUN_ROOT = Path("/run/supersam-devcluster")
_LAST_LINES = 60


def devcluster_command(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `devcluster` to its end."""
    return subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )


def wait_for(condition: Callable[[], bool], timeout_s: float, *, what: str) -> None:
    """Poll until `condition` holds; fail the test with `what` when the time is up."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.2)


@dataclass(frozen=True)
class DevCluster:
    """A running cluster. `tmp_path` of a test is seen by all its hosts."""

    name: str
    hosts: list[str]

    @property
    def env(self) -> dict[str, str]:
        """The environment for subprocesses that speak to this cluster."""
        slurm_conf = RUN_ROOT / self.name / "etc" / "slurm.conf"
        return {**os.environ, "SLURM_CONF": str(slurm_conf)}

    def run(self, command: Sequence[str | Path], *, timeout_s: float = 60) -> str:
        """What a command prints that must succeed."""
        done = subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def control(self, *arguments: str) -> str:
        """What a `devcluster` command prints that must succeed on this cluster."""
        command, *rest = arguments
        return self.run([COMMAND, command, "--name", self.name, *rest], timeout_s=300)

    def kill(self, host: str) -> None:
        """Cut a host's power."""
        self.control("kill", host)

    def start(self, host: str) -> None:
        """Boot a host that is down."""
        self.control("start", host)

    def host_states(self) -> dict[str, str]:
        """Slurm's state of each host."""
        lines = self.run(["sinfo", "--noheader", "--Node", "--format=%N %T"]).splitlines()
        return dict(line.split(maxsplit=1) for line in lines)

    def wait_idle(self, timeout_s: float = 60) -> None:
        """Wait until every host is idle."""
        idle = dict.fromkeys(self.hosts, "idle")
        wait_for(lambda: self.host_states() == idle, timeout_s, what="all hosts idle")

    def show_state(self) -> None:
        """Print Slurm's jobs, hosts and last words, which pytest shows where a test failed."""
        for command in (["scontrol", "show", "job"], ["sinfo", "--Node", "--long"]):
            done = subprocess.run(
                command, env=self.env, capture_output=True, text=True, timeout=60, check=False
            )
            print(f"--- {' '.join(command)}\n{done.stdout}{done.stderr}")
        for log in sorted((RUN_ROOT / self.name).glob("hosts/*/log/slurm*d.log")):
            lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
            print(f"--- {log}", *lines, sep="\n")

    def wait_for_saved_state(self, since: float) -> None:
        """Wait until slurmctld has saved what happened at `since`: killed before, it forgets it."""
        saved = RUN_ROOT / self.name / "state" / "job_state"
        wait_for(lambda: saved.stat().st_mtime > since, 90, what="slurmctld saving its state")

    def submit(self, script: Path, *options: str) -> str:
        """The job id of a submitted script."""
        return self.run(["sbatch", "--parsable", *options, script]).strip()

    def job(self, job_id: str) -> dict[str, str]:
        """Slurm's fields of a job: JobState, Restarts, NodeList, ..."""
        words = self.run(["scontrol", "show", "job", "--oneliner", job_id]).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def set_limit(self, job_id: str, minutes: int) -> None:
        """Change a job's time limit, as its owner may lower it and root may raise it."""
        self.run(["scontrol", "update", f"JobId={job_id}", f"TimeLimit={minutes}"])

    def end_time_soon(self, job_id: str) -> None:
        """Leave a running job one to two minutes: a notice of 110 s then is due almost at once."""
        minutes_run = int(self.job(job_id)["RunTime"].split(":")[1])
        self.set_limit(job_id, minutes_run + 2)
