"""Up, down, kill, start: what the commands do. Every wait has a limit and names what failed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from devcluster.boot import boot, boot_switch, is_alive, read_record, wait_ready
from devcluster.cgroups import remove_branches
from devcluster.errors import DevclusterError, UsageError
from devcluster.folder import make_folder
from devcluster.layout import CONTROLLER, ROOT, SWITCH, Cluster, load_cluster
from devcluster.network import choose_number, run_ip, unplug
from devcluster.processes import ProcessRecord, wait_until
from devcluster.requirements import require_machine

END_S, LOCK_S, SPAWN_S = 30, 300, 2


def up(wanted: Cluster) -> Cluster:
    """Bring a cluster up, or what of it is down. Returns it once all hosts can take jobs."""
    require_machine(accounting=wanted.accounting, constrain_memory=wanted.constrain_memory)
    with _lock():
        cluster = load_cluster(wanted.name)
        if cluster is not None and is_alive(cluster, SWITCH):
            return _complete(cluster, wanted)
        _remove(wanted.name)  # what a crash or a reboot left
        cluster = replace(wanted, number=choose_number())
        try:
            make_folder(cluster)
            boot_switch(cluster)
            boot(cluster, [CONTROLLER, *cluster.host_names])
            wait_ready(cluster)
        except BaseException:  # Ctrl-C too: nothing half made stays
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
        if not is_alive(cluster, host):
            return
        record = read_record(cluster, host)
        unplug(host, read_record(cluster, SWITCH).pid)
        record.kill()
        record.wait_end(END_S)


def start(cluster: Cluster, host: str) -> None:
    """Boot a host that is down and wait until it can take jobs."""
    with _lock():
        if not is_alive(cluster, SWITCH):
            raise UsageError(f"cluster {cluster.name} is broken; run `devcluster up`")
        if not is_alive(cluster, host):
            boot(cluster, [host])
        wait_ready(cluster, only=host)


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """One command at a time. The lock is on the root folder itself, so no lock file stays."""
    deadline = time.monotonic() + LOCK_S
    while True:
        with contextlib.suppress(FileExistsError):
            ROOT.mkdir()
            ROOT.chmod(0o711)
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
    boot(cluster, dead)
    wait_ready(cluster)
    return cluster


def _remove(name: str) -> None:
    """End the switch, and so every process; then the interface and the folder go."""
    folder = ROOT / name
    switch = _find_switch(folder / "hosts" / SWITCH)
    if switch is not None:
        switch.kill()
        switch.wait_end(END_S)
    remove_branches(name)
    with contextlib.suppress(UsageError):  # of another version: the interface goes by itself
        cluster = load_cluster(name)
        if cluster is not None:
            _remove_interface(cluster)
    if folder.exists():
        shutil.rmtree(folder)


def _find_switch(folder: Path) -> ProcessRecord | None:
    """The switch's record; one just spawned gets the time to write it."""
    path = folder / "process.json"
    if (folder / "log" / "boot.log").exists():  # made as it is spawned
        wait_until(path.exists, SPAWN_S)
    return ProcessRecord.read(path)


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
