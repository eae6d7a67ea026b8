"""Python's search for garbage, kept from what stays. No torch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_gc_while_importing() -> Iterator[None]:
    """Within the block, which imports, no garbage is searched for; nor later in what it made.

    Classes and functions of modules stay as long as the process: to go through all of them again
    and again is a sixth of the time that a rank needs to import torch and deepspeed.
    """
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if searched:
            gc.enable()
