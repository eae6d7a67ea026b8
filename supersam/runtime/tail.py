"""The ends of log files: the last bytes, and what was added since the last look. No torch."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

TAIL_BYTES = 1 << 16


def read_tail(path: Path, limit: int = TAIL_BYTES) -> str:
    """The last `limit` bytes of a file as text; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            return file.read(limit).decode("utf-8", errors="replace")
    except OSError:
        return ""


class LogTail:
    """What is new in a log file at each look; a file may appear later, or be cut short."""

    def __init__(self, path: Path, *, skip: bool = False, last_bytes: int = 0) -> None:
        """skip: leave out what the file holds already, but for its `last_bytes`."""
        self.path = path
        self._position = max(0, self._size() - last_bytes) if skip else 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def read_new(self) -> str:
        """The text added since the last call; empty where there is none, or no such file."""
        if self._size() < self._position:
            self._position = 0
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                piece = file.read()
        except OSError:
            return ""
        self._position += len(piece)
        return self._decoder.decode(piece)

    def print_new(self) -> None:
        """Write what `read_new` returns to stdout at once."""
        print(self.read_new(), end="", flush=True)

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0
