"""Hosts on which a rank hung: one file beside the runs, which share what they learn. No torch."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from supersam.config.files import STRIKES_FILE

LIFE_H = 24.0
"""A strike counts for so long: a host that keeps hanging is repaired, or named again."""
_OF_OTHERS = 2  # one strike of another run may be that run's own fault


@dataclass(frozen=True)
class Strike:
    """A rank hung, and this host was blamed for it."""

    time: float
    """Unix seconds."""
    host: str
    run: str
    """Name of the run's folder."""
    rank: int | None
    step: int
    reason: str


def add_strike(folder: Path, strike: Strike) -> None:
    """Record a strike of the run of `folder`."""
    line = json.dumps(asdict(strike)) + "\n"
    descriptor = os.open(_file(folder), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read_strikes(folder: Path) -> list[Strike]:
    """The strikes of the last `LIFE_H` hours, of the run of `folder` and of those beside it."""
    try:
        lines = _file(folder).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    since = time.time() - LIFE_H * 3600
    strikes = (_parse(line) for line in lines)
    return [strike for strike in strikes if strike is not None and strike.time >= since]


def count_strikes(folder: Path) -> Counter[str]:
    """How often each host was blamed lately, over all runs."""
    return Counter(strike.host for strike in read_strikes(folder))


def suspects(folder: Path) -> set[str]:
    """Hosts to do without: blamed once by the run of `folder`, or twice by any."""
    own = {s.host for s in read_strikes(folder) if s.run == folder.absolute().name}
    return own | {host for host, count in count_strikes(folder).items() if count >= _OF_OTHERS}


def _file(folder: Path) -> Path:
    return folder.absolute().parent / STRIKES_FILE


def _parse(line: str) -> Strike | None:
    try:
        return Strike(**cast("dict[str, Any]", json.loads(line)))
    except (ValueError, TypeError):  # cut short by a crash, or another version's
        return None
