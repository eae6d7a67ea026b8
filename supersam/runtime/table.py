"""Words in columns for a terminal, with numbers and times: every command prints some."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """The rows, of equally many words, each column as wide as its longest.

    right: the columns, from 0, whose words stand at the right end.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            word.rjust(width) if column in right else word.ljust(width)
            for column, (word, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def number(value: float | None, form: str) -> str:
    """The value in that form; a dash where there is none."""
    return "-" if value is None else format(value, form)


def count(number: int, noun: str, plural: str | None = None) -> str:
    """The number with its noun: 1 image, 1,707 images."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min, 2.5 h, 4.0 d."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"


def ago(seen: float | None) -> str:
    """How long ago that time was; a dash where there is none."""
    return "-" if seen is None else f"{duration(max(0.0, time.time() - seen))} ago"
