"""The first process of a host; `python3 -m devcluster.host NAME HOST` in new namespaces.

Makes the host (name, mounts, address), starts its daemons, then reaps. When it ends, the kernel
ends every process of the host. The switch runs nothing, but hosts are born in its PID namespace,
so its end is the end of the cluster.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from devcluster.cgroups import make_branch
from devcluster.daemons import DaemonError, Daemons
from devcluster.layout import CONTROLLER, SWITCH, Cluster, load_cluster
from devcluster.network import set_up_host_network
from devcluster.processes import ProcessRecord
from devcluster.services import start_services

GO = "go\n"


def main(name: str, host: str) -> int:
    """Be the first process of a host. Returns only when the host is to end."""
    cluster = load_cluster(name)
    assert cluster is not None  # boot() wrote it
    os.umask(0o022)  # the daemons' files do not depend on who types `up`
    ProcessRecord.of_this_process().write(cluster.record_path(host))
    if sys.stdin.readline() != GO:  # whoever started us is gone before the host was connected
        return 1
    if host == SWITCH:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps what it adopts
        os.execlp("sleep", "sleep", "infinity")
    try:
        daemons = Daemons(cluster, host)
        make_host(cluster, host)
        start_services(daemons)
        daemons.supervise()
    except DaemonError as error:
        error.failure.write(cluster.failure_path(host))
    return 1


def make_host(cluster: Cluster, host: str) -> None:
    """Name, network and mounts. What is not mounted here is shared, as on a cluster's NFS."""
    socket.sethostname(host)
    set_up_host_network(cluster, host)
    _mount("-t", "proc", "proc", "/proc")
    _mount_private_tmp(cluster)
    _mount_memory("/dev/shm", cluster.memory_mib)
    _mount("--bind", f"{cluster.folder}/etc/hosts", "/etc/hosts")
    _mount("--bind", f"{cluster.folder}/etc", "/etc/slurm")  # for jobs that lost SLURM_CONF
    if host != CONTROLLER:  # the controller's munged also serves the machine
        _mount("--bind", f"{cluster.host_folder(host)}/munge", str(cluster.munge_folder))
    if cluster.constrain_memory and host != CONTROLLER:
        _mount("--bind", str(make_branch(cluster, host)), f"{cluster.cgroup_folder}/memory")


def _mount_private_tmp(cluster: Cluster) -> None:
    """A /tmp of the host's own, but for the shared folders that lie in the machine's."""
    shared = [Path(path) for path in cluster.shared if Path("/tmp") in Path(path).parents]
    handles = [os.open(path, os.O_PATH) for path in shared]
    _mount_memory("/tmp", cluster.memory_mib)
    for path, handle in zip(shared, handles, strict=True):
        path.mkdir(parents=True, exist_ok=True)  # one may lie in another
        # -c: mount would otherwise follow the handle's link to the name that /tmp now hides
        _mount("-c", "--bind", f"/proc/{os.getpid()}/fd/{handle}", str(path))
        os.close(handle)


def _mount_memory(path: str, size_mib: int) -> None:
    _mount("-t", "tmpfs", "-o", f"mode=1777,size={size_mib}m", "tmpfs", path)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", "-n", *arguments], capture_output=True, text=True, timeout=20)
    if done.returncode != 0:
        raise DaemonError("boot", f"could not mount: {done.stderr.strip()}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
