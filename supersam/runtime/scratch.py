"""Temporary folders: those of processes that may be killed, and names that sockets can have."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

_LOCK = "owner.lock"
"""The owner holds a lock on it, which the kernel drops when the owner ends in whatever way."""


_SHORT = Path("/tmp")
_LONGEST = 60
"""Letters of a temporary folder; a socket in it may have 107 with all that is added."""


def shorten_temporary_names() -> None:
    """Let this process and its children use /tmp where TMPDIR is too long for sockets in it."""
    here = tempfile.gettempdir()
    if len(here) <= _LONGEST or not os.access(_SHORT, os.W_OK | os.X_OK):
        return
    logger.info("TMPDIR %s is too long for sockets; they go to %s", here, _SHORT)
    os.environ["TMPDIR"] = tempfile.tempdir = str(_SHORT)


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A new folder, gone after the block; those of the same prefix whose owners died go first."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        _remove_if_left(folder)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    lock = os.open(folder / f"{_LOCK}.tmp", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # under its name once it is locked: nobody ever meets it without an owner
        (folder / f"{_LOCK}.tmp").rename(folder / _LOCK)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_if_left(folder: Path) -> None:
    """Remove a folder whose owner is dead. One without a lock is not of this kind."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:  # also another user's
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
