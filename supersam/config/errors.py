"""What a user can mend: the exception, its message on the terminal, its exit code.

Apart from the settings: every floor raises it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

Options = TypeVar("Options")
USAGE_ERROR = 2


class UserError(Exception):
    """Something a user can mend; entry points print it without a traceback and exit with 2."""


def print_error(fault: object) -> int:
    """Print a user's mistake as `error: ...` on stderr. Returns the exit code for it, 2."""
    print(f"error: {fault}", file=sys.stderr, flush=True)
    return USAGE_ERROR


def exit_code(action: Callable[[Options], int], options: Options) -> int:
    """Perform `action` on `options`; a user's mistake becomes one message and exit code 2."""
    try:
        return action(options)
    except UserError as fault:
        return print_error(fault)
