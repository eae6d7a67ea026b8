"""A search's folder: whose it is, and what it was asked for."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from supersam.config import SearchRun, UserError, dump_run, load_run
from supersam.config.files import JOURNAL_FILE, RESULTS, SEARCH_FILE, SEARCH_YAML, STARTED_FILE
from supersam.runs.edits import tell_edits_of_search, write_settings
from supersam.runs.provenance import git_commit, versions
from supersam.runtime.atomic import write_json
from supersam.search.image_set import ImageSet
from supersam.search.inputs import SearchInputs
from supersam.search.journal import read_journal

FORMAT = 4
"""1: proposals of regularized evolution, NSGA-II and OpenTuner were made otherwise; to 2 those of
Optuna; to 3 those of OpenTuner."""

# What a second start may change: how far, how fast and where, but not what a trial means.
_CHANGEABLE = (
    "run",
    "out",
    "name",
    "trials",
    "final_data",
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


def prepare_folder(search: SearchRun, inputs: SearchInputs) -> SearchRun:
    """Create the search's folder, or check that an existing one is the same search.

    Returns what is searched: no fewer trials than are done. Raises UserError that says what
    differs; nothing is overwritten then.
    """
    check_folder(search, inputs)
    folder = search.folder
    search = with_own_prompt(search)
    search = search.model_copy(update={"trials": max(search.trials, trials_done(folder))})
    tell_edits_of_search(folder, search.model_dump(mode="json", by_alias=True))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_settings(folder, dump_run(search), file=SEARCH_YAML)
        if not (folder / SEARCH_FILE).is_file():
            write_record(search, inputs, {})
        elif search.trials > read_record(folder)["config"]["trials"]:
            _reopen(search)
    except OSError as fault:
        raise UserError(f"cannot write to {folder}: {fault}") from fault
    return search


def with_own_prompt(search: SearchRun) -> SearchRun:
    """`search` with a prompt: the one asked for, else that of the search in its folder, else both.

    Searches of earlier versions were on boxes alone, by default; they go on so.
    """
    prompt = search.protocol.prompt
    if prompt is None and (search.folder / SEARCH_YAML).is_file():
        prompt = load_run(SearchRun, search.folder / SEARCH_YAML).protocol.prompt
    protocol = search.protocol.model_copy(update={"prompt": prompt or "both"})
    return search.model_copy(update={"protocol": protocol})


def trials_done(folder: Path) -> int:
    """Proposals that a search of this folder has evaluated; 0 where none began."""
    if not (folder / JOURNAL_FILE).is_file():
        return 0
    written = sum(trial.stage == "search" for trial in read_journal(folder / JOURNAL_FILE))
    # its own count has proposals, too, that were fixed subnets already
    return max(written, int(read_record(folder).get("num_trials", 0)))


def is_complete(search: SearchRun) -> bool:
    """Whether nothing is left to do for as many trials as are asked for."""
    if not (search.folder / SEARCH_FILE).is_file():
        return False
    record = read_record(search.folder)
    ended = bool(record.get("finished", False))
    measured = (record.get("final") or {}).get("folders", [])
    is_measured = not search.final_data or measured == [str(path) for path in search.final_data]
    return ended and is_measured and trials_done(search.folder) >= search.trials


def _reopen(search: SearchRun) -> None:
    """A search that goes on to more trials is not finished, whatever it was before."""
    record = read_record(search.folder)
    record |= {"config": search.model_dump(mode="json", by_alias=True), "finished": False}
    write_json(search.folder / SEARCH_FILE, record)


def check_folder(search: SearchRun, inputs: SearchInputs) -> None:
    """Raise UserError where the folder holds another search, or something else. Writes nothing."""
    folder = search.folder
    if (folder / SEARCH_FILE).is_file():
        _require_same(with_own_prompt(search), inputs, folder)
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no search; choose another --out DIR")


def write_record(search: SearchRun, inputs: SearchInputs, results: dict[str, Any]) -> None:
    """Write `search.json`: what was asked, what it stands on, and results so far."""
    write_json(
        search.folder / SEARCH_FILE,
        {
            "format": folder_format(search.folder),
            "config": search.model_dump(mode="json", by_alias=True),
            "run": str(search.run),
            "checkpoint": {
                "path": None if inputs.source.path is None else inputs.source.path.name,
                "step": inputs.source.step,
                "sha256": inputs.weights,
            },
            "data": {
                "folders": [str(folder) for folder in inputs.selection.folders],
                "id": inputs.data,
                "seen_in_training": asdict(inputs.seen),
            },
            "final": None if inputs.final is None else _final(inputs, inputs.final),
            "space": {**inputs.space.to_dict(), "num_subnets": inputs.space.num_subnets()},
            "versions": {**versions(), "git": git_commit()},
            **results,
        },
    )


def _final(inputs: SearchInputs, final: ImageSet) -> dict[str, Any]:
    return {
        "folders": [str(folder) for folder in final.folders],
        "share": final.aside,
        "id": final.id(),
        "seen_in_training": None if inputs.final_seen is None else asdict(inputs.final_seen),
    }


def folder_format(folder: Path) -> int:
    """The format that the search of a folder began with; today's where none has begun."""
    if not (folder / SEARCH_FILE).is_file():
        return FORMAT
    return int(read_record(folder)["format"])


def read_record(folder: Path) -> dict[str, Any]:
    """`search.json` of a search's folder. Raises UserError where it is missing or damaged."""
    file = folder / SEARCH_FILE
    if not file.is_file():
        found = sorted(path.parent for path in (folder / RESULTS).glob(f"*/{SEARCH_FILE}"))
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


def _require_same(search: SearchRun, inputs: SearchInputs, folder: Path) -> None:
    record = read_record(folder)
    weights, data = record["checkpoint"]["sha256"], record["data"]["id"]
    if weights != inputs.weights:
        raise UserError(
            f"{folder} holds a search of another checkpoint (step {record['checkpoint']['step']} "
            f"of {record['run']}, content {weights}; now step {inputs.source.step} of "
            f"{search.run}, {inputs.weights}); name that one with --checkpoint, or "
            "choose another --out DIR"
        )
    if data != inputs.data:
        raise UserError(
            f"{folder} holds a search on other evaluation data ({record['data']['folders']}, "
            f"content {data}; now {inputs.data}); choose another --out DIR"
        )
    # The last start's: an edit by hand of what a trial means would be another search, too.
    started = folder / STARTED_FILE
    before = _fixed(load_run(SearchRun, started if started.is_file() else folder / SEARCH_YAML))
    now = _fixed(search)
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


def _fixed(search: SearchRun) -> dict[str, Any]:
    values = search.model_dump(mode="json", by_alias=True)
    fixed: dict[str, Any] = {}
    if search.measured:
        fixed |= {name: values[name] for name in _MEASURED_WITH}
        fixed["evaluators_per_node"] = search.cluster.evaluators_per_node
    for name, value in values.items():
        if name in (*_CHANGEABLE, *_CHANGEABLE_SECTIONS, "data", "checkpoint"):
            continue
        parts = value if isinstance(value, dict) else {"": value}
        fixed |= {f"{name}.{part}".rstrip("."): each for part, each in parts.items()}
    return fixed
