"""One start at a time in a folder, on all hosts that share it. No torch.

`claim.json` names the process that works in the folder. It is current while that process lives on
this host, or, seen from another host, while its holder refreshes it: a crash leaves no lock behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from supersam.config import UserError
from supersam.config.files import CLAIM_FILE
from supersam.health.records import is_alive, read_heartbeats
from supersam.runs.attempts import read_attempts
from supersam.runtime.process import is_same_process, start_ticks

_REFRESH_S = 10.0
STALE_S = 60.0
"""A claim of another host that was not refreshed for so long is void."""


class FolderInUseError(UserError):
    """Another process works in the folder."""


@dataclass(frozen=True)
class Claim:
    """The process that works in a folder."""

    host: str
    pid: int
    started_ticks: int


@contextlib.contextmanager
def claimed(folder: Path, *, heartbeat_s: float) -> Iterator[None]:
    """Hold `folder`, which exists, for this process while the block runs.

    heartbeat_s: seconds between the heartbeats of ranks that may work there without a claim, as
    those of a Slurm job. Raises FolderInUseError that names the host and process of another holder.
    """
    _take(folder)
    over = threading.Event()
    path = folder / CLAIM_FILE
    refresher = threading.Thread(target=_refresh, args=(path, over), name="claim", daemon=True)
    try:
        _require_no_ranks(folder, heartbeat_s)
        refresher.start()
        yield
    finally:
        over.set()
        with contextlib.suppress(OSError):  # it is void anyway when this process is over
            path.unlink()


def require_unclaimed(folder: Path) -> None:
    """Raise FolderInUseError where a process holds `folder`."""
    path = folder / CLAIM_FILE
    claim = _read(path)
    if claim is not None and _is_current(claim, path):
        raise FolderInUseError(_refusal(folder, claim))


def _take(folder: Path) -> None:
    path, pid = folder / CLAIM_FILE, os.getpid()
    own = Claim(socket.gethostname(), pid, start_ticks(pid) or 0)
    mine = path.with_name(f".{path.name}.{own.host}.{pid}")
    mine.write_text(json.dumps(asdict(own)), encoding="utf-8")
    try:
        while True:
            try:
                os.link(mine, path)  # whole, and never over another's
                return
            except FileExistsError:
                require_unclaimed(folder)
                _remove_void(path, _read(path))
    except OSError as fault:
        raise UserError(f"cannot write to {folder}: {fault}") from fault
    finally:
        mine.unlink(missing_ok=True)


def _remove_void(path: Path, void: Claim | None) -> None:
    """Remove a claim that is void, but not one that another start has put there meanwhile."""
    aside = path.with_name(f".{path.name}.void.{socket.gethostname()}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        if _read(aside) != void:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _is_current(claim: Claim, path: Path) -> bool:
    if claim.host == socket.gethostname():
        return is_same_process(claim.pid, claim.started_ticks)
    return _age_s(path) < STALE_S


def _age_s(path: Path) -> float:
    """Seconds since a file was refreshed, by the clock of its file system: those of hosts differ."""
    probe = path.with_name(f".{path.name}.now.{socket.gethostname()}.{os.getpid()}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:  # released meanwhile
        return STALE_S
    finally:
        probe.unlink(missing_ok=True)


def _require_no_ranks(folder: Path, heartbeat_s: float) -> None:
    events = read_attempts(folder)
    if events and events[-1].event == "end":
        return  # a rank that was killed on another host leaves a fresh heartbeat behind
    for beat in read_heartbeats(folder):
        if is_alive(beat, heartbeat_s):
            raise FolderInUseError(_refusal(folder, Claim(beat.host, beat.pid, 0)))


def _refusal(folder: Path, claim: Claim) -> str:
    here = claim.host == socket.gethostname()
    remedy = (
        "wait for it, or end it with Ctrl-C or launch/status.py --cancel"
        if here
        else f"wait for it or end it there; if it crashed, try again in {STALE_S:.0f} s"
    )
    return (
        f"{folder} is in use by process {claim.pid} on {claim.host}; {remedy}, or choose another "
        "--run DIR"
    )


def _refresh(path: Path, over: threading.Event) -> None:
    while not over.wait(_REFRESH_S):
        with contextlib.suppress(OSError):  # a disk that is away for a while
            os.utime(path)


def _read(path: Path) -> Claim | None:
    try:
        return Claim(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
