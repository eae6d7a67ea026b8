"""Hosts on which ranks hung: one file beside the runs, which share what they learn. No torch."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from supersam.config.files import STRIKES_FILE
from supersam.runtime.jsonl import append_jsonl, read_jsonl

LIFE_H = 24.0
"""A hang counts for this many hours: a host that keeps hanging is repaired, or named again."""
_OF_OTHERS = 2  # a single hang of another run may be that run's own fault


@dataclass(frozen=True)
class HostHang:
    """A line of `strikes.jsonl`: a rank hung, and this host was named as the cause."""

    time: float
    """Unix seconds."""
    host: str
    run: str
    """Name of the run's folder."""
    rank: int | None
    step: int
    reason: str


def record_host_hang(folder: Path, hang: HostHang) -> None:
    """Record a hang of the run of `folder`."""
    append_jsonl(_file(folder), asdict(hang))


def read_host_hangs(folder: Path) -> list[HostHang]:
    """Read the hangs of the last `LIFE_H` hours, of the run of `folder` and of those beside it."""
    try:
        hangs = read_jsonl(_file(folder), lambda values: HostHang(**values))
    except OSError:
        return []
    since = time.time() - LIFE_H * 3600
    return [hang for hang in hangs if hang.time >= since]


def count_host_hangs(folder: Path) -> Counter[str]:
    """Count the recent hangs of each host, over all runs beside `folder`."""
    return Counter(hang.host for hang in read_host_hangs(folder))


def bad_hosts(folder: Path) -> set[str]:
    """Hosts to leave out: they hung once in the run of `folder`, or twice in any runs."""
    own = {hang.host for hang in read_host_hangs(folder) if hang.run == folder.absolute().name}
    return own | {host for host, count in count_host_hangs(folder).items() if count >= _OF_OTHERS}


def _file(folder: Path) -> Path:
    return folder.absolute().parent / STRIKES_FILE
