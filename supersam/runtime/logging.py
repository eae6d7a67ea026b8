"""One log format; rank 0 speaks, the others only warn."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from supersam.runtime.distributed import World

_FORMAT = "%(asctime)s %(levelname).1s %(message)s"


def setup_logging(world: World, file: Path | None = None) -> None:
    """Send the library's log to stderr and, where given, to `file` (appended)."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    handlers[0].setLevel(logging.INFO if world.is_first else logging.WARNING)
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
