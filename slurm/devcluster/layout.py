"""One cluster as values: its size, names, addresses and files. Starts and stops nothing."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from devcluster.errors import UsageError
from devcluster.processes import write_whole

ROOT = Path("/run/supersam-devcluster")
PROJECT = Path(__file__).resolve().parents[2]
SWITCH, CONTROLLER = "switch", "ctl"
MAX_HOSTS = 200


@dataclass(frozen=True)
class Cluster:
    """A cluster; `number` tells apart the networks of clusters side by side."""

    name: str
    number: int
    hosts: int
    cpus_per_host: int
    memory_mib: int
    gpus: int
    accounting: bool
    constrain_memory: bool
    shared: tuple[str, ...]

    @property
    def options(self) -> str:
        """The options of `devcluster up` that ask for this cluster."""
        shared = "".join(f" --share {path}" for path in self.shared[1:])
        return (
            f"--hosts {self.hosts} --cpus-per-host {self.cpus_per_host} "
            f"--memory-mib {self.memory_mib} --gpus {self.gpus}"
            f"{' --accounting' if self.accounting else ''}"
            f"{' --constrain-memory' if self.constrain_memory else ''}{shared}"
        )

    @property
    def folder(self) -> Path:
        """Keys, state and logs: all of the cluster's files."""
        return ROOT / self.name

    @property
    def slurm_conf(self) -> Path:
        """The value of SLURM_CONF."""
        return self.folder / "etc" / "slurm.conf"

    @property
    def munge_folder(self) -> Path:
        """Where clients look for munge's socket; each host sees its own daemon's there."""
        return self.folder / "munge"

    @property
    def cgroup_folder(self) -> Path:
        """Where each host sees its own cgroups."""
        return self.folder / "cgroup"

    @property
    def host_names(self) -> list[str]:
        """The hosts that run jobs: n1, n2, ..."""
        return [f"n{i}" for i in range(1, self.hosts + 1)]

    @property
    def machines(self) -> list[str]:
        """All that boots, in order: the switch, the controller, the hosts."""
        return [SWITCH, CONTROLLER, *self.host_names]

    @property
    def interface(self) -> str:
        """The one network interface that the machine itself gets."""
        return f"ssdc{self.number}"

    @property
    def subnet(self) -> str:
        """The hosts' network: of 198.19.0.0/16, which is reserved and so in nobody's way."""
        return f"198.19.{self.number}.0/24"

    def address(self, host: str | None) -> str:
        """The address of a host or of the controller; None is the machine itself."""
        tail = 1 if host is None else 2 if host == CONTROLLER else 10 + int(host[1:])
        return f"198.19.{self.number}.{tail}"

    def host_folder(self, host: str) -> Path:
        """A host's own files."""
        return self.folder / "hosts" / host

    def record_path(self, host: str) -> Path:
        """The record of a host's first process."""
        return self.host_folder(host) / "process.json"

    def log_path(self, host: str, daemon: str) -> Path:
        """A daemon's log."""
        return self.host_folder(host) / "log" / f"{daemon}.log"

    def failure_path(self, host: str) -> Path:
        """Why the host's start ended, if it did."""
        return self.host_folder(host) / "failure.json"

    def write(self) -> None:
        """Record the cluster in its folder."""
        write_whole(self.folder / "cluster.json", json.dumps(asdict(self), indent=1) + "\n")


def load_cluster(name: str) -> Cluster | None:
    """The recorded cluster, or None. A folder without a record counts as none."""
    path = ROOT / check_name(name) / "cluster.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Cluster(**{**values, "shared": tuple(values["shared"])})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not of this version ({error}); run `devcluster down --name {name}`"
        ) from error


def load_clusters() -> list[Cluster]:
    """All recorded clusters."""
    names = sorted(path.parent.name for path in ROOT.glob("*/cluster.json"))
    return [cluster for name in names if (cluster := load_cluster(name)) is not None]


def check_name(name: str) -> str:
    """The name, if it may name a folder and a Slurm cluster."""
    if re.fullmatch(r"[a-z][a-z0-9_]{0,19}", name) is None:
        raise UsageError(
            f"--name {name!r} is not a cluster name; use a letter, then up to 19 of a-z 0-9 _"
        )
    return name
