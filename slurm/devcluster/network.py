"""The cable work: a bridge in a namespace of its own, one veth pair a host, one to the machine.

The bridge is not in the machine's namespace: a firewall there (Docker's, for one) would drop what
hosts say to each other, and what lies in a namespace is gone with its last process.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
from pathlib import Path

from devcluster.errors import DevclusterError
from devcluster.layout import Cluster, load_clusters

MAX_NETWORKS = 64


def run_ip(*commands: str, inside_pid: int | None = None, ignore_errors: bool = False) -> None:
    """Run `ip` commands in one go, in the network namespace of a process or here."""
    enter = [] if inside_pid is None else ["nsenter", f"--net=/proc/{inside_pid}/ns/net"]
    done = subprocess.run(
        [*enter, "ip", "-batch", "-"],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        timeout=20,
    )
    if done.returncode != 0 and not ignore_errors:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        raise DevclusterError(f"ip failed: {said}; the commands were: {'; '.join(commands)}")


def choose_number() -> int:
    """The first network that neither another cluster nor the machine uses."""
    taken = {cluster.number for cluster in load_clusters()}
    listed = subprocess.run(
        ["ip", "-4", "-json", "route", "show", "table", "all"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    routes = [route["dst"] for route in json.loads(listed.stdout or "[]")]
    nets = [ipaddress.ip_network(dst, strict=False) for dst in routes if dst != "default"]
    for number in range(MAX_NETWORKS):
        subnet = ipaddress.ip_network(f"198.19.{number}.0/24")
        in_use = Path(f"/sys/class/net/ssdc{number}").exists()
        if not (number in taken or in_use or any(net.overlaps(subnet) for net in nets)):
            return number
    raise DevclusterError(
        f"no free network among 198.19.0.0 to 198.19.{MAX_NETWORKS - 1}.0; see `ip route` and "
        "end clusters that are not needed (`devcluster down --name NAME`)"
    )


def build_switch(cluster: Cluster, switch_pid: int) -> None:
    """The bridge, and the machine's own cable to it."""
    run_ip("link add bridge type bridge", "link set bridge up", inside_pid=switch_pid)
    run_ip(
        f"link add {cluster.interface} type veth peer name uplink netns {switch_pid}",
        f"address add {cluster.address(None)}/24 dev {cluster.interface}",
        f"link set {cluster.interface} up",
    )
    run_ip("link set uplink master bridge up", inside_pid=switch_pid)


def plug(host_pids: dict[str, int], switch_pid: int) -> None:
    """Connect hosts to the bridge; each finds its end as `eth0`."""
    for host in host_pids:
        unplug(host, switch_pid)  # the kernel may not yet have cleared a dead host's cable
    run_ip(
        *(
            f"link add {host} master bridge up type veth peer name eth0 netns {pid}"
            for host, pid in host_pids.items()
        ),
        inside_pid=switch_pid,
    )


def unplug(host: str, switch_pid: int) -> None:
    """Cut a host's cable: from now on it neither sends nor answers. No cable is no error."""
    run_ip(f"link delete {host}", inside_pid=switch_pid, ignore_errors=True)


def set_up_host_network(cluster: Cluster, host: str) -> None:
    """Inside a host: its loopback and its address."""
    run_ip(
        "link set lo up",
        f"address add {cluster.address(host)}/24 dev eth0",
        "link set eth0 up",
    )
