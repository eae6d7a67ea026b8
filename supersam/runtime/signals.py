"""Requests to stop, turned into a flag that a loop reads between its steps."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
_STDERR = 2


class StopFlag:
    """Which signal asked this process to stop, if any. A second Ctrl-C raises KeyboardInterrupt."""

    def __init__(self, notice: str = "") -> None:
        """notice: a line for the terminal at the first Ctrl-C, as the loop may take a while."""
        self.signal: signal.Signals | None = None
        self._notice = notice

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def number(self) -> int:
        """The signal's number; 0 for none."""
        return 0 if self.signal is None else int(self.signal)

    def _set(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C means now
        self.signal = signal.Signals(number)
        if self._notice and number == signal.SIGINT:
            with contextlib.suppress(OSError):  # the terminal may be closed
                os.write(_STDERR, f"\n{self._notice}\n".encode())  # print is not for handlers


@contextlib.contextmanager
def stop_requested(notice: str = "") -> Iterator[StopFlag]:
    """Within the block, stop signals set the flag instead of ending the process.

    notice: said at the first Ctrl-C, at once.
    """
    flag = StopFlag(notice)
    former = {number: signal.signal(number, flag._set) for number in STOP_SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
