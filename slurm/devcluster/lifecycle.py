"""Up, down, kill, start: what the commands do. Every wait has a limit and names what failed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from devcluster.daemons import Failure, is_listening
from devcluster.errors import DevclusterError, StartError, UsageError
from devcluster.folder import make_folder
from devcluster.host import GO
from devcluster.layout import CONTROLLER, ROOT, SWITCH, Cluster, load_cluster
from devcluster.network import build_switch, choose_number, plug, run_ip, unplug
from devcluster.processes import ProcessRecord, wait_until
from devcluster.requirements import NAMESPACES, require_machine
from devcluster.services import SLURMCTLD_PORT
from devcluster.slurm import READY_STATES, node_states

BOOT_S, CONTROLLER_S, DATABASE_S, END_S, LOCK_S = 30, 60, 240, 30, 300
LOG_LINES = 15


def up(wanted: Cluster) -> Cluster:
    """Bring a cluster up, or what of it is down. Returns it once all hosts can take jobs."""
    require_machine(accounting=wanted.accounting)
    with _lock():
        cluster = load_cluster(wanted.name)
        if cluster is not None and is_alive(cluster, SWITCH):
            return _complete(cluster, wanted)
        _remove(wanted.name)  # what a crash or a reboot left
        cluster = replace(wanted, number=choose_number())
        try:
            make_folder(cluster)
            _boot_switch(cluster)
            _boot(cluster, [CONTROLLER, *cluster.host_names])
            _wait_ready(cluster)
        except BaseException:
            _remove(wanted.name)
            raise
    return cluster


def down(name: str) -> None:
    """End a cluster and remove all it made. Nothing there is no error."""
    if ROOT.exists():
        with _lock():
            _remove(name)


def kill(cluster: Cluster, host: str) -> None:
    """A power cut: first the cable, so that nobody hears a farewell, then every process."""
    with _lock():
        record = ProcessRecord.read(cluster.record_path(host))
        switch = ProcessRecord.read(cluster.record_path(SWITCH))
        if record is None or switch is None or not record.is_alive():
            return
        unplug(host, switch.pid)
        record.kill()
        record.wait_end(END_S)


def start(cluster: Cluster, host: str) -> None:
    """Boot a host that is down and wait until it can take jobs."""
    with _lock():
        if not is_alive(cluster, SWITCH):
            raise UsageError(f"cluster {cluster.name} is broken; run `devcluster up`")
        if not is_alive(cluster, host):
            _boot(cluster, [host])
        _wait_ready(cluster, only=host)


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """One command at a time. The lock is on the root folder itself, so no lock file stays."""
    deadline = time.monotonic() + LOCK_S
    while True:
        ROOT.mkdir(mode=0o711, parents=True, exist_ok=True)
        handle = os.open(ROOT, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if ROOT.exists() and os.path.samestat(os.fstat(handle), ROOT.stat()):
                break
        except BlockingIOError:
            pass
        os.close(handle)
        if time.monotonic() > deadline:
            raise DevclusterError(
                f"another devcluster command has held {ROOT} for {LOCK_S} s; end it, then retry"
            )
        time.sleep(0.1)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty: other clusters are there
            ROOT.rmdir()
        os.close(handle)


def _complete(cluster: Cluster, wanted: Cluster) -> Cluster:
    """Boot what is down of a cluster that is up, if it is the one that was asked for."""
    if replace(cluster, number=wanted.number) != wanted:
        raise UsageError(
            f"cluster {cluster.name} is up with other options ({cluster.options}); "
            "run `devcluster down` first, or choose another --name"
        )
    dead = [host for host in cluster.machines if not is_alive(cluster, host)]
    _boot(cluster, dead)
    _wait_ready(cluster)
    return cluster


def _remove(name: str) -> None:
    """End the switch, and so every process; then the interface and the folder go."""
    folder = ROOT / name
    cluster = load_cluster(name)
    switch = ProcessRecord.read(folder / "hosts" / SWITCH / "process.json")
    if switch is not None:
        switch.kill()
        switch.wait_end(END_S)
    if cluster is not None:
        _remove_interface(cluster)
    if folder.exists():
        shutil.rmtree(folder)


def _remove_interface(cluster: Cluster) -> None:
    """The kernel removes it soon after the switch has ended; waiting for that is not needed."""
    path = Path("/sys/class/net") / cluster.interface
    if path.exists():
        run_ip(f"link delete {cluster.interface}", ignore_errors=True)
    if not wait_until(lambda: not path.exists(), END_S):
        raise DevclusterError(
            f"interface {cluster.interface} is still there after {END_S} s; "
            f"run `ip link delete {cluster.interface}`, then `devcluster down`"
        )


def is_alive(cluster: Cluster, host: str) -> bool:
    """Whether a host's first process runs."""
    record = ProcessRecord.read(cluster.record_path(host))
    return record is not None and record.is_alive()


def _boot(cluster: Cluster, hosts: list[str]) -> None:
    """Start the first processes, connect them, and tell them to go on."""
    switch = ProcessRecord.read(cluster.record_path(SWITCH))
    assert switch is not None  # up() boots it first, and start() looks for it
    started = {host: _spawn(cluster, host, parent=switch) for host in hosts}
    pids = {host: _wait_record(cluster, host).pid for host in hosts}
    plug(pids, switch.pid)
    for process in started.values():
        _let_go(process)


def _boot_switch(cluster: Cluster) -> None:
    """Start the process that holds the bridge and all other processes."""
    process = _spawn(cluster, SWITCH, parent=None)
    build_switch(cluster, _wait_record(cluster, SWITCH).pid)
    _let_go(process)


def _let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None  # _spawn() made it a pipe
    process.stdin.write(GO)
    process.stdin.close()
    process.wait(BOOT_S)


def _spawn(
    cluster: Cluster, host: str, *, parent: ProcessRecord | None
) -> subprocess.Popen[str]:
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
    record = ProcessRecord.read(path)
    assert record is not None  # it was there
    return record


def _wait_ready(cluster: Cluster, *, only: str | None = None) -> None:
    """Wait for the controller, then until Slurm would give jobs to the hosts (or to one)."""
    record = ProcessRecord.read(cluster.record_path(CONTROLLER))
    assert record is not None  # _raise_failure() below is for one that has ended
    limit_s = DATABASE_S if cluster.accounting else CONTROLLER_S

    def controller_listens() -> bool:
        _raise_failure(cluster, CONTROLLER)
        return is_listening(SLURMCTLD_PORT, record.pid)

    if not wait_until(controller_listens, limit_s, every_s=0.1):
        raise _start_error(cluster, CONTROLLER, f"not ready within {limit_s} s", "slurmctld")
    if only != CONTROLLER:
        _wait_hosts(cluster, cluster.host_names if only is None else [only])


def _wait_hosts(cluster: Cluster, hosts: list[str]) -> None:
    late: list[str] = hosts

    def all_ready() -> bool:
        nonlocal late
        for host in hosts:
            _raise_failure(cluster, host)
        states = node_states(cluster)
        late = [host for host in hosts if states.get(host) not in READY_STATES]
        return len(late) == 0

    if not wait_until(all_ready, CONTROLLER_S, every_s=0.2):
        what = f"not ready within {CONTROLLER_S} s (late: {' '.join(late)})"
        raise _start_error(cluster, late[0], what, "slurmd")


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
