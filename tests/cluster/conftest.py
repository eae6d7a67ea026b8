"""A real Slurm cluster for a session of tests; skipped, with the reason, where none can run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.handle import RUN_ROOT, DevCluster, devcluster_command
from tests.cluster.training import reference_run, show_logs

SESSION_NAME = f"pytest{os.getpid()}"  # not the default name: a user's own cluster is left alone


def _remove_leftovers() -> None:
    """End clusters, and unmount disks, of sessions that were killed."""
    for folder in RUN_ROOT.glob("pytest*"):
        if not _lives(folder.name.removeprefix("pytest").partition("_")[0]):
            devcluster_command("down", "--name", folder.name)
    for disk in Path("/run").glob("supersam-pytest*"):
        if not _lives(disk.name.removeprefix("supersam-pytest")):
            subprocess.run(["umount", "--lazy", disk], check=False)
            disk.rmdir()


@contextlib.contextmanager
def machine_to_oneself() -> Iterator[None]:
    """Within the block no other session of tests on this machine starts or ends a cluster."""
    with RUN_ROOT.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def quiet_machine(machine_for_clusters: None) -> Iterator[None]:
    """For tests that compare what there is on the machine before and after."""
    with machine_to_oneself():
        yield


def _lives(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture(scope="session")
def machine_for_clusters() -> None:
    """Skip where no cluster can be started, with what is missing."""
    check = devcluster_command("check")
    if check.returncode != 0:
        pytest.skip(check.stderr.strip())  # says what is missing: root, or packages
    with machine_to_oneself():
        _remove_leftovers()


@pytest.fixture(scope="session")
def start_cluster(
    machine_for_clusters: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., DevCluster]]:
    """Start clusters, each under a name of its own; all end with the session."""
    names: list[str] = []

    def start(*options: str, hosts: int) -> DevCluster:
        name = SESSION_NAME if len(names) == 0 else f"{SESSION_NAME}_{len(names)}"
        names.append(name)
        shared = str(tmp_path_factory.getbasetemp())
        size = ["--hosts", str(hosts), "--share", shared]
        with machine_to_oneself():
            done = devcluster_command("up", "--name", name, *size, *options, timeout_s=300)
        assert done.returncode == 0, done.stderr
        return DevCluster(name, [f"n{i}" for i in range(1, hosts + 1)])

    yield start
    for name in names:
        with machine_to_oneself():
            done = devcluster_command("down", "--name", name)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def small_disk(machine_for_clusters: None) -> Iterator[Path]:
    """A disk of 400 MiB that all hosts share; not below /tmp, which is each one's own."""
    disk = Path(f"/run/supersam-{SESSION_NAME}")
    disk.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)
    disk.rmdir()


@pytest.fixture(scope="session")
def session_cluster(small_disk: Path, start_cluster: Callable[..., DevCluster]) -> DevCluster:
    """Eight hosts, no accounting, one for all tests."""
    return start_cluster(hosts=8)


@pytest.fixture(scope="session")
def gpu_cluster(start_cluster: Callable[..., DevCluster]) -> DevCluster:
    """A host with two stand-in GPUs."""
    return start_cluster("--gpus", "2", hosts=1)


@pytest.fixture(scope="session")
def accounting_cluster(start_cluster: Callable[..., DevCluster]) -> DevCluster:
    """A host, and slurmdbd, which remembers what slurmctld forgets soon."""
    return start_cluster("--accounting", hosts=1)


@pytest.fixture(scope="session")
def memory_cluster(start_cluster: Callable[..., DevCluster]) -> DevCluster:
    """A host on which the kernel kills what takes more memory than was asked for."""
    if not Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists():
        pytest.skip("this machine has no cgroup v1 memory controller, which Slurm needs here")
    return start_cluster("--constrain-memory", hosts=1)


@pytest.fixture(scope="session")
def failed_job(accounting_cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of a job that ended with 3. Ask early: slurmctld forgets it within a minute."""
    script = tmp_path_factory.mktemp("job") / "job.sh"
    script.write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    return accounting_cluster.submit(script, "--output=/dev/null")


@pytest.fixture
def devcluster(session_cluster: DevCluster) -> Iterator[DevCluster]:
    """The session's cluster with all hosts idle, before the test and after it."""
    session_cluster.wait_idle()
    yield session_cluster
    session_cluster.start("ctl")
    session_cluster.show_state()
    session_cluster.run(["scancel", "--user", "root"])
    for host in session_cluster.hosts:
        if session_cluster.host_states().get(host) != "idle":
            session_cluster.start(host)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A run folder; when the test fails, what its commands and supervisors printed is shown."""
    folder = tmp_path / "run"
    yield folder
    show_logs(folder)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken tiny run of two ranks."""
    return reference_run(tmp_path_factory.mktemp("reference") / "two", 2)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Install stand-ins for Slurm's commands; there are no others on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin-without-slurm")

    def install(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (folder / name).chmod(0o755)

    return install
