"""Memory: how much there is to take, and the C library's allocator for large tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

from supersam.runtime.process import available_gib

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


def free_bytes() -> float:
    """Memory that this process could still take: of the host, and below its cgroups' limits."""
    return min(available_gib() * 2**30, *_below_limits(Path("/")), float("inf"))


def _below_limits(root: Path) -> Iterator[float]:
    """What the cgroup of this process, and each above it, has left; a Slurm job has one.

    root: where `proc` and `sys` are.
    """
    tables = {
        "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                   "total_inactive_file"),
    }  # fmt: skip
    for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers not in tables:
            continue
        place, limit, used, cached = tables[controllers]
        folder = root / place / name.lstrip("/")
        while folder != (root / place).parent:
            left = _left(folder, limit=limit, used=used, cached=cached)
            if left is not None:
                yield left
            folder = folder.parent


def _left(folder: Path, *, limit: str, used: str, cached: str) -> float | None:
    """None where the cgroup has no limit, or is not to be seen from here."""
    try:
        most = float((folder / limit).read_text(encoding="ascii"))
        taken = float((folder / used).read_text(encoding="ascii"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):  # "max" is not a number
        return None
    files = sum(float(line.split()[1]) for line in lines if line.split()[0] == cached)
    return max(0.0, most - taken + files)  # cached files are given up first
