"""How a worker process begins: it leaves signals to its parent, and ends when its parent does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def begin_worker(_: int = 0) -> None:
    """Call first in a worker process; fits as `worker_init_fn` of a DataLoader.

    Ctrl-C reaches the parent, which decides what becomes of its workers. A parent that was killed
    decides nothing: workers of a fork server would outlive it, so a thread watches.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # only workers come here
    parent.join()
    os._exit(1)
