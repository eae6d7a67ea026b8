"""Hosts on which a rank hung: one file beside the runs, which share what they learn. No torch."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from supersam.config.files import STRIKES_FILE
from supersam.runtime.jsonl import append_jsonl, read_jsonl

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
    append_jsonl(_file(folder), asdict(strike))


def read_strikes(folder: Path) -> list[Strike]:
    """The strikes of the last `LIFE_H` hours, of the run of `folder` and of those beside it."""
    try:
        strikes = read_jsonl(_file(folder), lambda values: Strike(**values))
    except OSError:
        return []
    since = time.time() - LIFE_H * 3600
    return [strike for strike in strikes if strike.time >= since]


def count_strikes(folder: Path) -> Counter[str]:
    """How often each host was blamed lately, over all runs."""
    return Counter(strike.host for strike in read_strikes(folder))


def suspects(folder: Path) -> set[str]:
    """Hosts to do without: blamed once by the run of `folder`, or twice by any."""
    own = {s.host for s in read_strikes(folder) if s.run == folder.absolute().name}
    return own | {host for host, count in count_strikes(folder).items() if count >= _OF_OTHERS}


def _file(folder: Path) -> Path:
    return folder.absolute().parent / STRIKES_FILE
