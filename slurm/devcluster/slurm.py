"""Questions to a running cluster through Slurm's own commands, each with a limit."""

from __future__ import annotations

import os
import subprocess

from devcluster.errors import DevclusterError
from devcluster.layout import Cluster

READY_STATES = {"idle", "mixed", "allocated", "completing"}


def client_env(cluster: Cluster) -> dict[str, str]:
    """The environment of a client: this process's own, pointed at the cluster."""
    return {**os.environ, "SLURM_CONF": str(cluster.slurm_conf)}


def ask(cluster: Cluster, *argv: str, timeout_s: float = 10) -> str:
    """What a Slurm command prints."""
    try:
        done = subprocess.run(
            argv, env=client_env(cluster), capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        raise DevclusterError(f"{argv[0]} gave no answer within {timeout_s:g} s") from error
    if done.returncode != 0:
        raise DevclusterError(f"{argv[0]} failed: {done.stderr.strip()}")
    return done.stdout


def node_states(cluster: Cluster) -> dict[str, str]:
    """Slurm's state of each host, for example idle, down, idle* (* = does not answer)."""
    lines = ask(cluster, "sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
    return dict(line.split(maxsplit=1) for line in lines)
