"""The runs that ranks execute, a training and a design of a search space, by one set of verbs.

Imports torch only inside functions: the command line must not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from supersam.config import DesignRun, TrainRun, UserError, load_run, read_yaml
from supersam.config.files import RUN_FILE

RankedRun = TrainRun | DesignRun


def load_ranked_run(folder: Path) -> RankedRun:
    """Read the prepared run of `folder`, wherever that was moved to. Raises UserError."""
    path = folder / RUN_FILE
    if read_yaml(path).get("kind") == "design":
        run = load_run(DesignRun, path)
        return run.model_copy(update={"out": folder.with_name(run.out.name)})
    return load_run(TrainRun, path).model_copy(update={"run": folder})


def prepare_ranked_run(run: RankedRun) -> None:
    """Create or check the run's folder. Raises UserError for what is known already."""
    if isinstance(run, DesignRun):
        from supersam.design.files import prepare_design_folder

        prepare_design_folder(run)
        return
    from supersam.runs.folder import prepare_run_folder

    prepare_run_folder(run)


def execute_ranked_run(run: RankedRun) -> None:
    """Execute the prepared run as the rank that the environment describes."""
    if isinstance(run, DesignRun):
        from supersam.design.session import design

        design(run)
        return
    from supersam.training.session import train

    train(run)


def legal_node_counts(run: RankedRun) -> list[int]:
    """List the numbers of nodes among whose ranks the work of `run` divides."""
    each = run.cluster.ranks_per_node
    return [size // each for size in run.legal_world_sizes if size % each == 0]


def alternatives(counts: Sequence[int]) -> str:
    """Numbers to choose from, as a message has them: 1, 2 or 4."""
    *first, last = map(str, counts or ("no",))
    return f"{', '.join(first)} or {last}" if first else last


def require_legal_world(run: RankedRun, world_size: int) -> None:
    """Raise UserError where the work does not divide among `world_size` ranks."""
    legal = run.legal_world_sizes
    if world_size in legal:
        return
    if not isinstance(run, TrainRun):
        raise UserError(
            f"{world_size} ranks; at most {legal[-1]} can share this work: ask for fewer"
        )
    raise UserError(
        f"{world_size} ranks do not divide the {run.optim.global_batch} images of a step "
        f"(--optim.accumulate {run.optim.accumulate}); take {alternatives(legal)} ranks: "
        f"{alternatives(legal_node_counts(run))} nodes of {run.cluster.ranks_per_node}"
    )
