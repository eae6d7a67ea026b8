"""Requests to stop, turned into a flag that the training loop reads between steps."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class StopFlag:
    """Which signal asked this process to stop, if any."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

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


@contextlib.contextmanager
def stop_requested() -> Iterator[StopFlag]:
    """Within the block, stop signals set the flag instead of ending the process."""
    flag = StopFlag()
    former = {number: signal.signal(number, flag._set) for number in STOP_SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
