"""From a folder to hosts that take jobs: first processes, cables, waits with a limit."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from devcluster.daemons import Failure, is_listening
from devcluster.errors import DevclusterError, StartError
from devcluster.host import GO
from devcluster.layout import CONTROLLER, SWITCH, Cluster
from devcluster.network import build_switch, plug
from devcluster.processes import ProcessRecord, wait_until
from devcluster.requirements import NAMESPACES
from devcluster.services import SLURMCTLD_PORT, SLURMD_PORT
from devcluster.slurm import READY_STATES, node_states

BOOT_S, HOSTS_S, CONTROLLER_S, DATABASE_S = 30, 60, 60, 240
LOG_LINES = 15


def is_alive(cluster: Cluster, host: str) -> bool:
    """Whether a host's first process runs."""
    record = ProcessRecord.read(cluster.record_path(host))
    return record is not None and record.is_alive()


def read_record(cluster: Cluster, host: str) -> ProcessRecord:
    """The record of a host that has been booted."""
    record = ProcessRecord.read(cluster.record_path(host))
    assert record is not None  # the caller booted it, or asked is_alive()
    return record


def boot(cluster: Cluster, hosts: list[str]) -> None:
    """Start the first processes, connect them, and tell them to go on."""
    switch = read_record(cluster, SWITCH)
    started = {host: _spawn(cluster, host, parent=switch) for host in hosts}
    pids = {host: _wait_record(cluster, host).pid for host in hosts}
    plug(pids, switch.pid)
    for process in started.values():
        _let_go(process)


def boot_switch(cluster: Cluster) -> None:
    """Start the process that holds the bridge and all other processes."""
    process = _spawn(cluster, SWITCH, parent=None)
    build_switch(cluster, _wait_record(cluster, SWITCH).pid)
    _let_go(process)


def _let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None  # _spawn() made it a pipe
    with contextlib.suppress(BrokenPipeError):  # it has died; wait_ready() finds out why
        process.stdin.write(GO)
        process.stdin.close()
    process.wait(BOOT_S)


def _spawn(cluster: Cluster, host: str, *, parent: ProcessRecord | None) -> subprocess.Popen[str]:
    """A host's first process; it waits for our word, and ends should we end before.

    `setsid --fork` leaves it to the first process of its PID namespace, which reaps it one day.
    """
    for path in (cluster.record_path(host), cluster.failure_path(host)):
        path.unlink(missing_ok=True)
    enter = [] if parent is None else ["nsenter", f"--pid=/proc/{parent.pid}/ns/pid", "--"]
    separate = ["setsid", "--fork", "unshare", *NAMESPACES, "--propagation=slave"]
    python = [sys.executable, "-B", "-S", "-m", "devcluster.host", cluster.name, host]
    with cluster.log_path(host, "boot").open("ab") as log:
        return subprocess.Popen(
            [*enter, *separate, *python],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        )


def _wait_record(cluster: Cluster, host: str) -> ProcessRecord:
    path = cluster.record_path(host)
    if not wait_until(path.exists, BOOT_S, every_s=0.02):
        raise _start_error(cluster, host, f"did not boot within {BOOT_S} s", "boot")
    return read_record(cluster, host)


def wait_ready(cluster: Cluster, *, only: str | None = None) -> None:
    """Wait for the controller, then until Slurm would give jobs to the hosts (or to one)."""
    limit_s = DATABASE_S if cluster.accounting else CONTROLLER_S

    def controller_listens() -> bool:
        _raise_failure(cluster, CONTROLLER)
        return is_listening(SLURMCTLD_PORT, read_record(cluster, CONTROLLER).pid)

    if not wait_until(controller_listens, limit_s, every_s=0.1):
        raise _start_error(cluster, CONTROLLER, f"not ready within {limit_s} s", "slurmctld")
    if only != CONTROLLER:
        _wait_hosts(cluster, cluster.host_names if only is None else [only])


def _wait_hosts(cluster: Cluster, hosts: list[str]) -> None:
    late: list[str] = hosts

    def all_ready() -> bool:
        nonlocal late
        late = _late_hosts(cluster, hosts)
        return len(late) == 0

    if not wait_until(all_ready, HOSTS_S, every_s=0.1):
        what = f"not ready within {HOSTS_S} s (late: {' '.join(late)})"
        raise _start_error(cluster, late[0], what, "slurmd")


def _late_hosts(cluster: Cluster, hosts: list[str]) -> list[str]:
    """The hosts whose daemon does not listen yet or whom Slurm would not give jobs."""
    for host in (CONTROLLER, *hosts):
        _raise_failure(cluster, host)
    try:
        states = node_states(cluster)
    except DevclusterError:  # the controller is busy; the next question may be answered
        return hosts
    return [
        host
        for host in hosts
        if states.get(host) not in READY_STATES  # Slurm may think so of a host just killed
        or not is_listening(SLURMD_PORT, read_record(cluster, host).pid)
    ]


def _raise_failure(cluster: Cluster, host: str) -> None:
    """Raise what the host itself found wrong, or that it has ended."""
    failure = Failure.read(cluster.failure_path(host))
    if failure is not None:
        raise _start_error(cluster, host, f"{failure.daemon} {failure.reason}", failure.daemon)
    if not is_alive(cluster, host):
        raise _start_error(cluster, host, "its first process ended", "boot")


def _start_error(cluster: Cluster, host: str, fault: str, daemon: str) -> StartError:
    path = cluster.log_path(host, daemon)
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    tail = "\n  ".join(text.splitlines()[-LOG_LINES:]) or "(empty)"
    return StartError(f"host {host}: {fault}; the end of {daemon}.log:\n  {tail}")
