"""Words in columns, for a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence

from supersam.status.diagnosis import duration


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """The rows, of equally many words, each column as wide as its longest."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = (
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in padded)


def number(value: float | None, form: str) -> str:
    """The value in that form; a dash where there is none."""
    return "-" if value is None else format(value, form)


def ago(seen: float | None) -> str:
    """How long ago that time was; a dash where there is none."""
    return "-" if seen is None else f"{duration(max(0.0, time.time() - seen))} ago"
