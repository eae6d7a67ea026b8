"""What a user can mend: the exception, its message on the terminal, its exit code.

Apart from the settings: every floor raises it.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from typing import TypeVar

Options = TypeVar("Options")
USAGE_ERROR = 2
_DISK_FAULTS = tuple(
    os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
)
"""The system's words, which libraries repeat in errors of their own."""


class UserError(Exception):
    """Something a user can mend; entry points print it without a traceback and exit with 2."""


def print_error(fault: object) -> int:
    """Print a user's mistake as `error: ...` on stderr. Returns the exit code for it, 2."""
    print(f"error: {fault}", file=sys.stderr, flush=True)
    return USAGE_ERROR


def exit_code(action: Callable[[Options], int], options: Options) -> int:
    """Perform `action` on `options`; a user's mistake becomes one message and exit code 2.

    So does a disk that takes no more: full, over the quota, read-only.
    """
    try:
        return action(options)
    except UserError as fault:
        return print_error(fault)
    except OSError as fault:
        if not is_full_disk(fault):
            raise
        return print_error(describe_full_disk(fault))


def is_full_disk(fault: BaseException | None) -> bool:
    """Whether the disk takes no more: full, over the quota or a limit, read-only."""
    return isinstance(fault, OSError) and any(words in str(fault) for words in _DISK_FAULTS)


def describe_full_disk(fault: OSError) -> str:
    """The fault without the system's number, and the remedy."""
    told = re.sub(r"^\[Errno \d+\] | \(os error \d+\)", "", str(fault))
    return (
        f"{told}; make room, or free some of the quota, and give the same command again: what was "
        "saved is kept"
    )
