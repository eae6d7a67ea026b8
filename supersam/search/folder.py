"""A search's folder: whose it is, what it was asked for, and what its numbers rest on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from supersam.config import SearchRun, TrainRun, UserError, dump_run, load_run
from supersam.config.files import JOURNAL_FILE, SEARCH_FILE, SEARCH_YAML, SPACE_FILE
from supersam.data.identity import shared_sources
from supersam.data.manifest import read_manifest
from supersam.data.shards import ShardReader
from supersam.runs.folder import git_commit, validation_folders, versions
from supersam.runs.weights import WeightSource, find_weights, read_run
from supersam.runtime.atomic import write_bytes, write_json
from supersam.search.costs import require_feasible
from supersam.search.journal import read_journal
from supersam.search.searchers import Problem, build_searcher
from supersam.space import SearchSpace, read_space, resolve_shape

FORMAT = 1

# What a second start may change: how far, how fast and where, but not what a trial means.
_CHANGEABLE = (
    "run",
    "out",
    "name",
    "trials",
    "chunk",
    "cache_gib",
    "device",
    "threads",
    "dry_run",
    "json",
)
_CHANGEABLE_SECTIONS = ("cluster", "sweep")
# But where latency or memory is measured, numbers taken in another way would not compare.
_MEASURED_WITH = ("device", "threads")


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


def find_inputs(asked: SearchRun) -> SearchInputs:
    """Check everything a user can get wrong, and write nothing. Raises UserError."""
    train_run = read_run(asked.run)
    space_file = asked.run / SPACE_FILE
    if not space_file.is_file():
        raise UserError(f"{asked.run} has no space.yaml; it is no finished start of a training run")
    space = read_space(space_file, resolve_shape(train_run.model))
    if asked.checkpoint == "initial":
        raise UserError("--checkpoint initial is not trained; use last, best or a step number")
    source = find_weights(train_run, asked.checkpoint)
    folders = tuple(asked.data or validation_folders(train_run))
    if not folders:
        raise UserError(f"{asked.run} has no validation set; name held-out shards with --data DIR")
    for folder in folders:
        read_manifest(folder)
    _require_distinct(folders)
    require_searchable(asked, space)
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


def require_searchable(asked: SearchRun, space: SearchSpace) -> None:
    """Raise UserError where no subnet keeps the limits, or the searcher cannot work here."""
    require_feasible(space, asked.constraints)
    build_searcher(asked.searcher, Problem.of(asked, space))


def _require_distinct(folders: tuple[Path, ...]) -> None:
    whole = [folder.resolve() for folder in folders]
    for place, folder in enumerate(whole):
        if folder in whole[:place]:
            raise UserError(
                f"the evaluation data name {folders[place]} twice, so that its images would count "
                "double; name each folder once"
            )


def prepare_folder(asked: SearchRun, basis: SearchInputs) -> SearchRun:
    """Create the search's folder, or check that an existing one is the same search.

    Returns what is searched: no fewer trials than are done. Raises UserError that says what
    differs; nothing is overwritten then.
    """
    check_folder(asked, basis)
    folder = asked.folder
    asked = asked.model_copy(update={"trials": max(asked.trials, trials_done(folder))})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / SEARCH_YAML, dump_run(asked).encode())
        if not (folder / SEARCH_FILE).is_file():
            write_record(asked, basis, {})
        elif asked.trials > read_record(folder)["config"]["trials"]:
            _reopen(asked)
    except OSError as fault:
        raise UserError(f"cannot write to {folder}: {fault}") from fault
    return asked


def trials_done(folder: Path) -> int:
    """Proposals that a search of this folder has evaluated; 0 where none began."""
    if not (folder / JOURNAL_FILE).is_file():
        return 0
    written = sum(trial.stage == "search" for trial in read_journal(folder / JOURNAL_FILE))
    # its own count has proposals, too, that were fixed subnets already
    return max(written, int(read_record(folder).get("num_trials", 0)))


def is_complete(asked: SearchRun) -> bool:
    """Whether nothing is left to do for as many trials as are asked for."""
    if not (asked.folder / SEARCH_FILE).is_file():
        return False
    ended = bool(read_record(asked.folder).get("finished", False))
    return ended and trials_done(asked.folder) >= asked.trials


def _reopen(asked: SearchRun) -> None:
    """A search that goes on to more trials is not finished, whatever it was before."""
    record = read_record(asked.folder)
    record |= {"config": asked.model_dump(mode="json", by_alias=True), "finished": False}
    write_json(asked.folder / SEARCH_FILE, record)


def check_folder(asked: SearchRun, basis: SearchInputs) -> None:
    """Raise UserError where the folder holds another search, or something else. Writes nothing."""
    folder = asked.folder
    if (folder / SEARCH_FILE).is_file():
        _require_same(asked, basis, folder)
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no search; choose another --out DIR")


def write_record(asked: SearchRun, basis: SearchInputs, results: dict[str, Any]) -> None:
    """Write `search.json`: what was asked, what it stands on, and results so far."""
    write_json(
        asked.folder / SEARCH_FILE,
        {
            "format": FORMAT,
            "config": asked.model_dump(mode="json", by_alias=True),
            "run": str(asked.run),
            "checkpoint": {
                "path": None if basis.source.path is None else basis.source.path.name,
                "step": basis.source.step,
                "sha256": basis.weights,
            },
            "data": {
                "folders": [str(folder) for folder in basis.data_folders],
                "id": basis.data,
                "seen_in_training": asdict(basis.seen),
            },
            "space": {**basis.space.to_dict(), "num_subnets": basis.space.num_subnets()},
            "versions": {**versions(), "git": git_commit()},
            **results,
        },
    )


def read_record(folder: Path) -> dict[str, Any]:
    """`search.json` of a search's folder. Raises UserError where it is missing or damaged."""
    file = folder / SEARCH_FILE
    if not file.is_file():
        found = sorted(path.parent for path in (folder / "results").glob(f"*/{SEARCH_FILE}"))
        hint = f"it is a run; its searches are {', '.join(map(str, found))}" if found else (
            "name the folder of a search, such as RUN/results/search"
        )  # fmt: skip
        raise UserError(f"{folder} holds no {SEARCH_FILE}; {hint}")
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise UserError(
            f"{file} is damaged ({fault}); restore it, or search again under another --name"
        ) from fault
    return values


def _require_same(asked: SearchRun, basis: SearchInputs, folder: Path) -> None:
    record = read_record(folder)
    weights, data = record["checkpoint"]["sha256"], record["data"]["id"]
    if weights != basis.weights:
        raise UserError(
            f"{folder} holds a search of another checkpoint (step {record['checkpoint']['step']} "
            f"of {record['run']}, content {weights}; now step {basis.source.step} of {asked.run}, "
            f"{basis.weights}); name that one with --checkpoint, or choose another --out DIR"
        )
    if data != basis.data:
        raise UserError(
            f"{folder} holds a search on other evaluation data ({record['data']['folders']}, "
            f"content {data}; now {basis.data}); choose another --out DIR"
        )
    before = _fixed(load_run(SearchRun, folder / SEARCH_YAML))
    now = _fixed(asked)
    changed = [
        f"{name}: {before.get(name)} -> {value}"
        for name, value in now.items()
        if before.get(name) != value
    ]
    if changed:
        raise UserError(
            f"{folder} holds another search. It differs in\n  "
            + "\n  ".join(changed)
            + "\nChoose another --out DIR or --name"
        )


def _fixed(asked: SearchRun) -> dict[str, Any]:
    values = asked.model_dump(mode="json", by_alias=True)
    fixed: dict[str, Any] = {}
    if asked.measured:
        fixed |= {name: values[name] for name in _MEASURED_WITH}
        fixed["evaluators_per_node"] = asked.cluster.evaluators_per_node
    for name, value in values.items():
        if name in (*_CHANGEABLE, *_CHANGEABLE_SECTIONS, "data", "checkpoint"):
            continue
        parts = value if isinstance(value, dict) else {"": value}
        fixed |= {f"{name}.{part}".rstrip("."): each for part, each in parts.items()}
    return fixed


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
