"""Bounded waiting for what another process does. A file of its own: every floor waits. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

Value = TypeVar("Value")


def wait_until(check: Callable[[], Value], *, timeout_s: float, poll_s: float = 0.2) -> Value:
    """Call `check` every `poll_s` seconds until its result is true, and return that result.

    Calls it at least once. After `timeout_s` seconds (`math.inf` waits without a limit) it returns
    the last result, which is false: the caller says what did not come.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        result = check()
        left_s = deadline - time.monotonic()
        if result or left_s <= 0:
            return result
        time.sleep(min(poll_s, left_s))


def growing_pauses(first_s: float, most_s: float) -> Iterator[float]:
    """Yield `first_s`, then twice the pause before, up to `most_s`, without end."""
    pause_s = first_s
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, most_s)
