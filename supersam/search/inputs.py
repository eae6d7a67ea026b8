"""What a search stands on, found and checked before anything is evaluated."""

from __future__ import annotations

from dataclasses import dataclass

from supersam.config import SearchRun, TrainRun, UserError
from supersam.config.files import SPACE_FILE
from supersam.runs.provenance import weights_id
from supersam.runs.seen_data import SeenData, seen_in_training
from supersam.runs.weights import WeightSource, find_weights, read_run
from supersam.search.costs import require_feasible
from supersam.search.image_set import ImageSet, final_set, selection_set
from supersam.search.searchers import build_searcher, pose_problem
from supersam.space import SearchSpace, read_space, resolve_shape


@dataclass(frozen=True)
class SearchInputs:
    """What a search stands on, found and checked before anything is evaluated."""

    train_run: TrainRun
    space: SearchSpace
    source: WeightSource
    weights: str
    """16 hex digits of the checkpoint's content."""
    selection: ImageSet
    """The images that proposals are judged on."""
    data: str
    """16 hex digits of their content."""
    seen: SeenData
    final: ImageSet | None
    """Images that no proposal sees: the front is measured on them at the end."""
    final_seen: SeenData | None
    has_start: bool
    """Whether the weights that training began from were given, and are still there."""


def find_inputs(search: SearchRun) -> SearchInputs:
    """Check everything a user can get wrong, and write nothing. Raises UserError."""
    train_run = read_run(search.run)
    space_file = search.run / SPACE_FILE
    if not space_file.is_file():
        raise UserError(f"{search.run} has no space.yaml; no training was prepared in it")
    space = read_space(space_file, resolve_shape(train_run.model))
    if search.checkpoint == "initial":
        raise UserError("--checkpoint initial is not trained; use last, best or a step number")
    source = find_weights(train_run, search.checkpoint)
    selection = selection_set(search, train_run)
    final = final_set(search, selection)
    require_searchable(search, space)
    assert source.manifest is not None  # it is a checkpoint
    return SearchInputs(
        train_run=train_run,
        space=space,
        source=source,
        weights=weights_id(source.manifest.files),
        selection=selection,
        data=selection.id(),
        seen=seen_in_training(train_run, source, selection.folders),
        final=final,
        final_seen=None if final is None else seen_in_training(train_run, source, final.folders),
        has_start=train_run.model.checkpoint is not None and train_run.model.checkpoint.exists(),
    )


def require_searchable(search: SearchRun, space: SearchSpace) -> None:
    """Raise UserError where no subnet keeps the limits, or the searcher cannot work here."""
    require_feasible(space, search.constraints)
    build_searcher(search.searcher, pose_problem(search, space))
