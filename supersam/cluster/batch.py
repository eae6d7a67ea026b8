"""Numbers of ranks and nodes among which a run's batch divides. Pure."""

from __future__ import annotations

from supersam.cluster.tasks import Task
from supersam.config import TrainRun, UserError


def legal_node_counts(run: Task) -> list[int]:
    """Numbers of nodes that `run` can run on."""
    each = run.cluster.ranks_per_node
    return [size // each for size in run.legal_world_sizes if size % each == 0]


def require_legal_world(run: Task, world_size: int) -> None:
    """Raise UserError where the work does not divide among `world_size` ranks."""
    legal = run.legal_world_sizes
    if world_size in legal:
        return
    if not isinstance(run, TrainRun):
        raise UserError(f"{world_size} ranks; at most {legal[-1]} can share this work")
    raise UserError(
        f"{world_size} ranks do not divide the {run.optim.global_batch} images of a step "
        f"(--optim.accumulate {run.optim.accumulate}); legal are {legal} ranks, "
        f"that is {legal_node_counts(run)} nodes of {run.cluster.ranks_per_node}"
    )
