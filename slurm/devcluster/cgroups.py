"""Memory cgroups: a branch of the machine's for each host, so that Slurm can confine its jobs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from devcluster.errors import DevclusterError
from devcluster.layout import Cluster
from devcluster.processes import wait_until

MEMORY = Path("/sys/fs/cgroup/memory")
END_S = 20


def missing_memory_controller() -> list[str]:
    """Why this machine cannot confine the memory of jobs, and what to do; empty if it can."""
    if (MEMORY / "memory.limit_in_bytes").is_file():
        return []
    return [
        f"no cgroup v1 memory controller at {MEMORY} (Slurm wants systemd for cgroup v2); leave "
        "out --constrain-memory"
    ]


def make_branch(cluster: Cluster, host: str) -> Path:
    """The host's own branch; what a killed host left in it is harmless."""
    branch = _branches(cluster.name) / host
    branch.mkdir(parents=True, exist_ok=True)
    return branch


def remove_branches(name: str) -> None:
    """Remove the branches of a cluster whose processes have been ended."""
    root = _branches(name)

    def gone() -> bool:
        for folder, _, _ in os.walk(root, topdown=False):
            with contextlib.suppress(OSError):  # the kernel is not done with a process of it
                os.rmdir(folder)
        return not root.exists()

    if not wait_until(gone, END_S):
        raise DevclusterError(f"{root} is still in use after {END_S} s; run `devcluster down`")


def _branches(name: str) -> Path:
    return MEMORY / f"supersam-devcluster-{name}"
