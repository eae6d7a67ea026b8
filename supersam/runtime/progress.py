"""How far a long loop is: a bar on a terminal, else a line now and then. No torch."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)
Item = TypeVar("Item")

_LINE_S = 10.0


def shown(
    items: Iterable[Item], total: int, *, what: str, unit: str, every_s: float = _LINE_S
) -> Iterator[Item]:
    """`items` one by one, and on stderr how many of the `total` are done and how long the rest is.

    Where stderr is no terminal, a log line every `every_s` seconds: none for what is short.
    """
    with tqdm(
        total=total, unit=unit, desc=what, dynamic_ncols=True, disable=not sys.stderr.isatty()
    ) as bar:
        began = said = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item  # its consumer's work is part of the item
            bar.update()
            now = time.monotonic()
            if bar.disable and done < total and now - said >= every_s:
                left_s = (now - began) / done * (total - done)
                logger.info("%s: %d of %d %ss, %.0f s left", what, done, total, unit, left_s)
                said = now
