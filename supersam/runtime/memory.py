"""The C library's allocator, set for programs that free and allocate large tensors all the time."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h
_KEEP_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next tensors.

    By default glibc hands every large block back to the kernel and gets it again page by page,
    zeroed: on CPU that took a sixth of a training step (500,000 page faults in 10 s). A no-op
    with another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, 2 * _KEEP_BYTES - 1)
