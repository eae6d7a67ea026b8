"""Processes known beyond doubt: a pid counts only with its start time and the machine's boot."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from devcluster.errors import DevclusterError

Kind = TypeVar("Kind")


def wait_until(condition: Callable[[], bool], timeout_s: float, *, every_s: float = 0.05) -> bool:
    """Poll `condition` until it holds. Returns False when the time is up."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


def write_whole(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a small file whole or not at all."""
    draft = path.with_name(path.name + ".tmp")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
    os.replace(draft, path)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _state_and_start(pid: str) -> tuple[str, int]:
    """State letter and start time (clock ticks since boot) of /proc/`pid`."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


class Recorded:
    """A dataclass of plain values that lies in a file, as JSON."""

    @classmethod
    def read(cls: type[Kind], path: Path) -> Kind | None:
        """What a file holds, or None where there is none."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def write(self, path: Path) -> None:
        """Write it to a file, whole or not at all."""
        write_whole(path, json.dumps(vars(self)) + "\n")


@dataclass(frozen=True)
class ProcessRecord(Recorded):
    """One process of this boot; a later process with the same pid is another one."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of_this_process(cls) -> ProcessRecord:
        """This process, with the pid that /proc shows: before a private /proc, the machine's."""
        return cls(int(os.readlink("/proc/self")), _state_and_start("self")[1], _boot_id())

    def is_alive(self) -> bool:
        """Whether the process runs; a zombie does not."""
        try:
            state, start_ticks = _state_and_start(str(self.pid))
        except (FileNotFoundError, ProcessLookupError):
            return False
        same = start_ticks == self.start_ticks and _boot_id() == self.boot_id
        return same and state not in "ZX"

    def kill(self) -> None:
        """Send KILL to the process, and so to all of the PID namespace that it leads."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.is_alive():  # asked after pidfd_open: the pid cannot change hands in between
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)

    def wait_end(self, timeout_s: float) -> None:
        """Wait until the process is gone."""
        if not wait_until(lambda: not self.is_alive(), timeout_s):
            raise DevclusterError(
                f"process {self.pid} outlived SIGKILL by {timeout_s:g} s; "
                f"see `cat /proc/{self.pid}/stack`, then run the command again"
            )
