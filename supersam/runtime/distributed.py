"""A process's place in the job, as a value: everything else takes it as an argument."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """Which process this is, and of how many."""

    rank: int
    """0 to `world_size - 1`, unique in the job."""
    world_size: int
    """Processes in the job, one for each device."""
    local_rank: int
    """0-based number of this process on its node; its device."""
    node: int
    """0-based number of the node."""

    @classmethod
    def single(cls) -> World:
        """The world of a process on its own."""
        return cls(rank=0, world_size=1, local_rank=0, node=0)
