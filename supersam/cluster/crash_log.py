"""What a rank on a terminal says when it fails, in its log file too. No torch."""

from __future__ import annotations

import faulthandler
import sys
import traceback
from pathlib import Path
from types import TracebackType


def keep_crash_log(log: Path) -> None:
    """From now on, write an uncaught exception or a crash of this process to `log` as well."""
    log.parent.mkdir(parents=True, exist_ok=True)
    faulthandler.enable(log.open("a", encoding="utf-8"))  # it stays open: faulthandler needs it
    before = sys.excepthook

    def tell(kind: type[BaseException], fault: BaseException, trace: TracebackType | None) -> None:
        write_crash_log(log, "".join(traceback.format_exception(kind, fault, trace)))
        before(kind, fault, trace)

    sys.excepthook = tell


def write_crash_log(log: Path, text: str) -> None:
    """Append to `log`; a disk without room takes no last words."""
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(text.rstrip() + "\n")
    except OSError as fault:
        print(f"{log} could not be written: {fault}", file=sys.stderr)
