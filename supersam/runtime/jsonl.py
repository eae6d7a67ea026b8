"""Files of JSON lines that only grow, and survive a writer that is killed in mid-line. No torch.

One JSON object per line. A line that a kill or a full disk cut short stays alone: the next append
begins a line of its own, and readers leave the damaged one out.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


def read_jsonl(
    path: Path, parse: Callable[[dict[str, Any]], Value], *, warn: bool = False
) -> list[Value]:
    """What `parse` makes of each line, in the order of the file; empty where there is no file.

    Leaves out a line that is not a JSON object, and one that `parse` refuses with ValueError,
    KeyError or TypeError; with `warn` the log names each. Safe while another process appends.
    """
    if not path.exists():
        return []
    values = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                values.append(parse(_object(line)))
            except (ValueError, KeyError, TypeError) as fault:
                if warn:
                    logger.warning("%s, line %d is damaged and left out: %s", path, number, fault)
    return values


def append_jsonl(path: Path, value: Mapping[str, object], *, durable: bool = False) -> None:
    """Append `value` as one line; creates the file. durable: returns when it is on disk."""
    descriptor = open_jsonl(path)
    try:
        append_lines(descriptor, json.dumps(value).encode() + b"\n", durable=durable)
    finally:
        os.close(descriptor)


def open_jsonl(path: Path) -> int:
    """A file descriptor to append to `path`, which is created where missing."""
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)


def append_lines(descriptor: int, lines: bytes, *, durable: bool) -> None:
    """Append whole lines to what `open_jsonl` opened. durable: returns when they are on disk.

    Raises OSError where the disk is full; the part that was written is then a damaged line.
    """
    size = os.fstat(descriptor).st_size
    if size > 0 and os.pread(descriptor, 1, size - 1) != b"\n":
        lines = b"\n" + lines
    rest = memoryview(lines)
    while rest:  # a full disk takes a part, and raises when it takes nothing more
        rest = rest[os.write(descriptor, rest) :]
    if durable:
        os.fsync(descriptor)


def _object(line: bytes) -> dict[str, Any]:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value
