"""A host's daemons: started in the foreground, waited for with a limit, named when they fail."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from devcluster.layout import Cluster
from devcluster.processes import Recorded, wait_until


@dataclass(frozen=True)
class Failure(Recorded):
    """Which daemon of a host failed, and how."""

    daemon: str
    reason: str


class DaemonError(Exception):
    """A daemon of this host failed."""

    def __init__(self, daemon: str, reason: str) -> None:
        super().__init__(f"{daemon} {reason}")
        self.failure = Failure(daemon, reason)


def is_listening(port: int, pid: int | Literal["self"] = "self") -> bool:
    """Whether a socket in a process's network listens at a TCP port.

    Read from /proc: a connection that says nothing would stand in the daemon's log as an error.
    """
    try:
        lines = Path(f"/proc/{pid}/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    except FileNotFoundError:
        return False
    sockets = (line.split() for line in lines)
    listening = "0A"
    return any(s[3] == listening and int(s[1].rpartition(":")[2], 16) == port for s in sockets)


class Daemons:
    """The daemons of one host, children of its first process."""

    def __init__(self, cluster: Cluster, host: str) -> None:
        self.cluster = cluster
        self.host = host
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._env = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "SLURM_CONF": str(cluster.slurm_conf),
        }

    def start(self, name: str, argv: Sequence[str], *, user: str | None = None) -> None:
        """Start a daemon that stays in the foreground; what it prints goes to its log."""
        with self._log(name) as log:
            self._running[name] = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                cwd="/",
                user=user,
                group=user,
                extra_groups=None if user is None else [],
                start_new_session=True,
            )

    def run(self, name: str, argv: Sequence[str], *, timeout_s: float) -> None:
        """Run a command to its end; what it prints goes to its log."""
        with self._log(name) as log:
            try:
                done = subprocess.run(
                    argv, stdout=log, stderr=log, env=self._env, cwd="/", timeout=timeout_s
                )
            except subprocess.TimeoutExpired as error:
                raise DaemonError(name, f"did not end within {timeout_s:g} s") from error
        if done.returncode != 0:
            raise DaemonError(name, f"ended with exit status {done.returncode}")

    def wait_ready(self, name: str, is_ready: Callable[[], bool], *, timeout_s: float) -> None:
        """Wait until a daemon is ready; an early end or a late start is an error."""
        daemon = self._running[name]
        if not wait_until(lambda: daemon.poll() is not None or is_ready(), timeout_s):
            raise DaemonError(name, f"was not ready within {timeout_s:g} s")
        if daemon.returncode is not None:
            raise DaemonError(name, _ending(daemon.returncode))

    def supervise(self) -> None:
        """Reap orphans, as a first process must, until a daemon ends; that is an error."""
        names = {daemon.pid: name for name, daemon in self._running.items()}
        while True:
            pid, status = os.wait()
            if pid in names:
                raise DaemonError(names[pid], _ending(os.waitstatus_to_exitcode(status)))

    def _log(self, name: str) -> IO[bytes]:
        return self.cluster.log_path(self.host, name).open("ab")


def _ending(code: int) -> str:
    how = f"exit status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
    return f"ended with {how}"
