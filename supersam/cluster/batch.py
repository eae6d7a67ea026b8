"""Numbers of ranks and nodes among which a run's batch divides. Pure."""

from __future__ import annotations

from supersam.config import TrainRun, UserError


def legal_world_sizes(run: TrainRun) -> list[int]:
    """Numbers of ranks that divide the images of a micro-batch."""
    micro = run.optim.global_batch // run.optim.accumulate
    return [n for n in range(1, micro + 1) if micro % n == 0]


def legal_node_counts(run: TrainRun) -> list[int]:
    """Numbers of nodes that `run` can train on."""
    each = run.cluster.ranks_per_node
    return [size // each for size in legal_world_sizes(run) if size % each == 0]


def require_legal_world(run: TrainRun, world_size: int) -> None:
    """Raise UserError where the batch does not divide among `world_size` ranks."""
    legal = legal_world_sizes(run)
    if world_size not in legal:
        raise UserError(
            f"{world_size} ranks do not divide the {run.optim.global_batch} images of a step "
            f"(optim.accumulate={run.optim.accumulate}); legal are {legal} ranks, "
            f"that is {legal_node_counts(run)} nodes of {run.cluster.ranks_per_node}"
        )
