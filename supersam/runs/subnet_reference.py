"""Which subnet is meant: a word, a file, or a place on a search's front. The same in every command.

A front is read as plain JSON: no search is imported.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from supersam.config import UserError
from supersam.config.files import PARETO_JSON, SEARCH_FILE
from supersam.space import SearchSpace, SubnetSpec

Place = Literal["best", "knee", "cheapest"]
"""A subnet of a front by what it is good at."""
PLACES: tuple[Place, ...] = get_args(Place)

Metrics = Mapping[str, float]


def find_subnet(
    reference: str, space: SearchSpace, *, run: Path | None = None, option: str = "--subnet"
) -> SubnetSpec:
    """The subnet that a reference names.

    Args:
        reference: largest, medium or smallest; a JSON file of a subnet or of an entry of a front;
            or SEARCH#PLACE, where SEARCH is a search's folder or its pareto.json and PLACE is best,
            knee, cheapest or a number from 0.
        space: where the subnet must lie.
        run: folder of the run whose subnet is meant; fronts of other runs are refused. None takes
            any front.
        option: what the user typed before the reference, for messages.

    Raises UserError where it names no subnet of `space`.
    """
    words = {"largest": space.largest, "medium": space.medium, "smallest": space.smallest}
    if reference in words:
        return words[reference]()
    path, mark, place = reference.rpartition("#")
    if Path(reference).is_file():
        spec = _read_file(Path(reference), option)
    elif mark:
        spec = _read_place(Path(path), place, run, f"{option} {reference}")
    else:
        close = difflib.get_close_matches(reference, words, n=1)
        raise UserError(
            f"{option} {reference}: not one of {', '.join(words)}, and no such file; "
            f"{f'did you mean {close[0]}? ' if close else ''}a subnet of a search's front is "
            f"SEARCH#{'|'.join(PLACES)}|N"
        )
    reason = space.misfit(spec)
    if reason is not None:
        raise UserError(f"{reference} is not in this run's search space: {reason}")
    return spec


@dataclass(frozen=True)
class Selection:
    """The images that a subnet of a search's front was selected on."""

    folders: tuple[Path, ...]
    """Shards of the images that proposals were judged on."""
    final_folders: tuple[Path, ...]
    """Other shards on which the search measured its front; empty where it has none."""


def selection_of(reference: str) -> Selection | None:
    """Return what the subnet of a reference was selected on; None where no search selected it."""
    path, mark, _ = reference.rpartition("#")
    search = Path(path) if Path(path).is_dir() else Path(path).parent
    if not mark or Path(reference).is_file() or not (search / SEARCH_FILE).is_file():
        return None
    record = _read_json(search / SEARCH_FILE, "a search's record")
    final = record.get("final") or {}
    aside = final.get("share") is not None  # a share of the same folders has none of its own
    return Selection(
        tuple(map(Path, record["data"]["folders"])),
        () if aside else tuple(map(Path, final.get("folders", ()))),
    )


def place_on_front(place: Place, front: Sequence[Metrics]) -> int:
    """Index of a subnet by the metrics of a front, of which there is at least one.

    best: highest mIoU. cheapest: fewest FLOPs. knee: farthest above the line between the ends of
    the front, FLOPs and mIoU each stretched to 0 to 1 over it.
    """
    points = np.array([(metrics["flops_g"], metrics["miou"]) for metrics in front])
    if place == "best":
        return int(points[:, 1].argmax())
    if place == "cheapest":
        return int(points[:, 0].argmin())
    span = np.ptp(points, axis=0)
    stretched = (points - points.min(axis=0)) / np.where(span > 0, span, 1.0)
    return int((stretched[:, 1] - stretched[:, 0]).argmax())


def _read_file(path: Path, option: str) -> SubnetSpec:
    """A subnet's own file; or an entry of a front or a line of a journal, which hold one."""
    values = _read_json(path, "a subnet")
    if isinstance(values, list):
        raise UserError(
            f"{option} {path}: this is a front of {len(values)} subnets; name one: "
            f"{path}#{'|'.join(PLACES)}|N"
        )
    if isinstance(values, dict):
        values = values.get("trial", values)
    if isinstance(values, dict):
        values = values.get("spec", values)
    return _parse_subnet(values, path)


def _read_place(path: Path, place: str, run: Path | None, named: str) -> SubnetSpec:
    file = path / PARETO_JSON if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file} is not there; name the folder of a search that found something")
    entries = _read_json(file, "a front written by launch/search.py")
    try:
        metrics = [{name: float(e["metrics"][name]) for name in _NEEDED} for e in entries]
    except (KeyError, TypeError, ValueError) as fault:
        raise UserError(f"{file} is not a front written by launch/search.py: {fault!r}") from None
    if not metrics:
        raise UserError(f"{file} holds no subnet yet")
    if run is not None:
        _require_run(file.parent, run, named)
    return _parse_subnet(entries[_index(place, metrics, named)].get("spec"), file)


_NEEDED = ("flops_g", "miou")


def _index(place: str, metrics: Sequence[Metrics], named: str) -> int:
    for known in PLACES:
        if place == known:
            return place_on_front(known, metrics)
    if not (place.isascii() and place.isdigit()):
        raise UserError(f"{named}: after # comes a number from 0, or one of {', '.join(PLACES)}")
    if int(place) >= len(metrics):
        raise UserError(f"{named}: the front has {len(metrics)} subnets, 0 to {len(metrics) - 1}")
    return int(place)


def _require_run(search: Path, run: Path, named: str) -> None:
    """Refuse the front of another run: its subnets were chosen for other weights."""
    if not (search / SEARCH_FILE).is_file():  # a front that was copied alone says nothing of a run
        return
    if search.resolve().is_relative_to(run.resolve()):
        return
    record = _read_json(search / SEARCH_FILE, "a search's record")
    other = record.get("run") if isinstance(record, dict) else None
    if isinstance(other, str) and Path(other).resolve() == run.resolve():
        return
    raise UserError(
        f"{named}: that search is of the run {other}, not of {run}; name a search of this run, or "
        "save the subnet alone as a JSON file and name that"
    )


def _parse_subnet(values: Any, path: Path) -> SubnetSpec:
    try:
        return SubnetSpec.from_dict(values)
    except ValueError as fault:
        raise UserError(f"{path} is not a subnet: {fault}") from fault


def _read_json(path: Path, expected: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise UserError(f"{path} is not {expected}: {fault}") from None
