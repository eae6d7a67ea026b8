"""Sizes that the attention kernels and their callers derive from their tensors. No triton."""

from __future__ import annotations

from torch import Tensor


def pitch(side: int) -> int:
    """Round `side` up to a multiple of 8: the slots of one query's position terms.

    A row of bfloat16 terms then fills whole 16 bytes.
    """
    return -(-side // 8) * 8


def side_of(rel_pos: Tensor) -> int:
    """Return the window side whose 2 * side - 1 distances the rows of `rel_pos` describe."""
    return (len(rel_pos) + 1) // 2
