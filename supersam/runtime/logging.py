"""The log, in one format (rank 0 speaks, the others only warn), and how far a long loop is."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tqdm import tqdm

from supersam.runtime.table import count, duration

if TYPE_CHECKING:  # it imports torch, which conversions do not need
    from supersam.runtime.distributed import World

logger = logging.getLogger(__name__)
Item = TypeVar("Item")

_LINE_S = 10.0
_FORMAT = "%(asctime)s %(levelname).1s %(message)s"


def setup_logging(world: World | None = None, file: Path | None = None) -> None:
    """Send the library's log to stderr and, where given, to `file` (appended).

    `world` None is a process without ranks.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    is_first = world is None or world.is_first
    handlers[0].setLevel(logging.INFO if is_first else logging.WARNING)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    logger = logging.getLogger("supersam")
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO)
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT, "%H:%M:%S"))
        logger.addHandler(handler)


def shown(
    items: Iterable[Item], total: int, *, what: str, unit: str, every_s: float = _LINE_S
) -> Iterator[Item]:
    """Yield `items`, and show on stderr how many of `total` are done and how long the rest takes.

    On a terminal this is a bar, elsewhere a log line every `every_s` seconds, so none for a short
    loop.
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
                logger.info("%s: %d of %s, %s left", what, done, count(total, unit),
                            duration(left_s))  # fmt: skip
                said = now
