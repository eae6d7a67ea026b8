"""What a search stands on, found and checked before anything is evaluated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from supersam.config import SearchRun, TrainRun, UserError
from supersam.config.files import SPACE_FILE
from supersam.data.identity import shared_sources
from supersam.data.manifest import read_manifest
from supersam.data.shards import ShardReader
from supersam.runs.folder import validation_folders
from supersam.runs.weights import WeightSource, find_weights, read_run
from supersam.search.costs import require_feasible
from supersam.search.searchers import Problem, build_searcher
from supersam.space import SearchSpace, read_space, resolve_shape


@dataclass(frozen=True)
class SeenData:
    """Whether training looked at the evaluation images."""

    seen: bool | None
    """Whether any evaluation image is in a training set; None where that is unknown."""
    detail: str
    """What was found, in words."""


@dataclass(frozen=True)
class SearchInputs:
    """What a search stands on, found and checked before anything is evaluated."""

    train_run: TrainRun
    space: SearchSpace
    source: WeightSource
    weights: str
    """16 hex digits of the checkpoint's content."""
    data_folders: tuple[Path, ...]
    data: str
    """16 hex digits of the evaluation shards' content."""
    seen: SeenData
    has_start: bool
    """Whether the weights that training began from were given, and are still there."""


def find_inputs(search: SearchRun) -> SearchInputs:
    """Check everything a user can get wrong, and write nothing. Raises UserError."""
    train_run = read_run(search.run)
    space_file = search.run / SPACE_FILE
    if not space_file.is_file():
        raise UserError(
            f"{search.run} has no space.yaml; it is no finished start of a training run"
        )
    space = read_space(space_file, resolve_shape(train_run.model))
    if search.checkpoint == "initial":
        raise UserError("--checkpoint initial is not trained; use last, best or a step number")
    source = find_weights(train_run, search.checkpoint)
    folders = tuple(search.data or validation_folders(train_run))
    if not folders:
        raise UserError(f"{search.run} has no validation set; name held-out shards with --data DIR")
    for folder in folders:
        read_manifest(folder)
    _require_distinct(folders)
    require_searchable(search, space)
    assert source.manifest is not None  # it is a checkpoint
    return SearchInputs(
        train_run=train_run,
        space=space,
        source=source,
        weights=weights_id(source.manifest.files),
        data_folders=folders,
        data=data_id(folders),
        seen=seen_in_training(train_run, source, folders),
        has_start=train_run.model.checkpoint is not None and train_run.model.checkpoint.exists(),
    )


def require_searchable(search: SearchRun, space: SearchSpace) -> None:
    """Raise UserError where no subnet keeps the limits, or the searcher cannot work here."""
    require_feasible(space, search.constraints)
    build_searcher(search.searcher, Problem.of(search, space))


def _require_distinct(folders: tuple[Path, ...]) -> None:
    whole = [folder.resolve() for folder in folders]
    for place, folder in enumerate(whole):
        if folder in whole[:place]:
            raise UserError(
                f"the evaluation data name {folders[place]} twice, so that its images would count "
                "double; name each folder once"
            )


def seen_in_training(run: TrainRun, source: WeightSource, folders: tuple[Path, ...]) -> SeenData:
    """Compare the evaluation's images with the training's, whole sets first, then image by image.

    Where shards of an old version do not hold their images' content, names decide.
    """
    trained_on = [] if source.manifest is None else source.manifest.data
    readers = [ShardReader(folder) for folder in folders]
    same = [str(f) for f, r in zip(folders, readers, strict=True) if r.fingerprint in trained_on]
    if same:
        return SeenData(True, f"{', '.join(same)} is a training set of this run")
    train = list(run.data.train) if run.data.source == "shards" else [run.folder / "data" / "train"]
    missing = [str(folder) for folder in train if not folder.is_dir()]
    if missing:
        return SeenData(None, f"training set {', '.join(missing)} is not here to compare with")
    shared = shared_sources(readers, [ShardReader(folder) for folder in train])
    found = f"{shared.images} evaluation images are in the training sets, compared {shared.how}"
    return SeenData(shared.images > 0, found)


def data_id(folders: Sequence[Path]) -> str:
    """16 hex digits of the content of the evaluation shards."""
    prints = [ShardReader(path).fingerprint for path in folders]
    return hashlib.sha256("".join(prints).encode()).hexdigest()[:16]


def weights_id(files: dict[str, str]) -> str:
    """16 hex digits of a checkpoint's weights, from its manifest's hashes of files."""
    weights = {name: digest for name, digest in files.items() if name.startswith("weights-")}
    return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()[:16]
