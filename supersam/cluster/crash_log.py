"""The log file of a rank, and what a rank on a terminal writes there when it fails. No torch.

Apart from `rank`: the front door and the starter of local ranks write there, too.
"""

from __future__ import annotations

import faulthandler
import sys
import traceback
from pathlib import Path
from types import TracebackType

from supersam.config.files import LOGS


def task_log(folder: Path, rank: int) -> Path:
    """Return the file that takes what a rank on this machine prints."""
    return folder / LOGS / f"task-{rank:05d}.log"


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
    """Append `text` to `log`; where the disk is full, say so on stderr.

    Nothing where the folder is gone: then that is the fault, which is told anyway.
    """
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(text.rstrip() + "\n")
    except FileNotFoundError:
        pass
    except OSError as fault:
        print(f"{log} could not be written: {fault}", file=sys.stderr)
