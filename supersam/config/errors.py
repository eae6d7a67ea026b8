"""What a user can mend: the exception, its message on the terminal, its exit code.

Apart from the settings: every floor raises it.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Options = TypeVar("Options")
USAGE_ERROR = 2
_DISK_FAULTS = tuple(
    os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
)
"""The system's words, which libraries repeat in errors of their own."""
_PATH_FAULTS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)
_DEVICE_FAULTS = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV)


_ADDRESS = re.compile(r"\w+:/")


class UserError(Exception):
    """Something a user can mend; entry points print it without a traceback and exit with 2."""


def print_error(fault: object) -> int:
    """Print a user's mistake as `error: ...` on stderr. Returns the exit code for it, 2."""
    print(f"error: {fault}", file=sys.stderr, flush=True)
    return USAGE_ERROR


def exit_code(action: Callable[[Options], int], options: Options) -> int:
    """Perform `action` on `options`; a user's mistake becomes one message and exit code 2.

    So does a fault of the disk or of a path, see `describe_os_error`.
    """
    try:
        return action(options)
    except UserError as fault:
        return print_error(fault)
    except OSError as fault:
        if (told := describe_os_error(fault)) is None:
            raise
        return print_error(told)


def describe_os_error(fault: OSError) -> str | None:
    """Return what is wrong with a disk or a path, and the remedy; None for faults of other kinds.

    A disk that takes no more: full, over the quota, read-only. A path that cannot be one, that this
    user may not reach, or at which there is nothing, as where a folder is deleted during the work.
    A disk, or the connection to it, that fails.
    """
    while fault.filename is None and isinstance(fault.__cause__, OSError):
        fault = fault.__cause__
    if is_full_disk(fault):
        return _describe_full_disk(fault)
    if fault.filename is None:
        return None
    path = Path(os.fsdecode(fault.filename))
    if fault.errno in _PATH_FAULTS:
        remedy = "name another path, or have its permissions changed"
        return f"{path}: {fault.strerror}; {remedy}"
    if fault.errno == errno.ENOENT and len(path.parts) > 1:  # else a program that is absent
        return (
            f"{_highest_missing(path)} does not exist, or was deleted or moved during the work; "
            "bring it back, or give the same command again"
        )
    if fault.errno in _DEVICE_FAULTS:
        return (
            f"{path}: {fault.strerror}; mend the disk or the connection to it, and give the same "
            "command again: what was saved is kept"
        )
    return None


def is_full_disk(fault: BaseException | None) -> bool:
    """Whether the disk takes no more: full, over the quota or a limit, read-only."""
    return isinstance(fault, OSError) and any(words in str(fault) for words in _DISK_FAULTS)


def _describe_full_disk(fault: OSError) -> str:
    """The fault without the system's number, and the remedy."""
    if fault.filename is None:
        told = re.sub(r"^\[Errno \d+\] | \(os error \d+\)", "", str(fault))
    else:
        told = f"{os.fsdecode(fault.filename)}: {fault.strerror}"
    return (
        f"{told}; make room, or free some of the quota, and give the same command again: what was "
        "saved is kept"
    )


def _highest_missing(path: Path) -> Path:
    """`path`, or the highest folder above it that is absent."""
    missing = [place for place in (path, *path.parents) if not os.path.lexists(place)]
    return missing[-1] if missing else path


def describe_missing(path: Path) -> str:
    """What is wrong with a path at which there is nothing, as the end of a sentence about it."""
    if _ADDRESS.match(str(path)):
        return "is an address; download it, and name the file"
    return "does not exist"
