"""A search's front as it was written, and the subnets on it that people ask for."""

from __future__ import annotations

import json
from pathlib import Path

from supersam.config import UserError
from supersam.runs.subnet_reference import Place, place_on_front
from supersam.search.journal import Trial
from supersam.search.pareto import FRONT_JSON


def read_front(path: Path) -> list[Trial]:
    """The trials of a `pareto.json`, or of the one in a search's folder, in their order.

    Raises UserError where there is none, or none on it yet.
    """
    file = path / FRONT_JSON if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file} is not there; name the folder of a search that found something")
    try:
        front = [Trial.from_dict(values) for values in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise UserError(f"{file} is not a front written by launch/search.py: {fault}") from None
    if not front:
        raise UserError(f"{file} holds no subnet yet")
    return front


def best(front: list[Trial]) -> Trial:
    """The subnet of the highest mIoU."""
    return _at("best", front)


def knee(front: list[Trial]) -> Trial:
    """The subnet farthest above the line between the ends of the front; see `place_on_front`."""
    return _at("knee", front)


def cheapest(front: list[Trial]) -> Trial:
    """The subnet of the fewest FLOPs."""
    return _at("cheapest", front)


def _at(place: Place, front: list[Trial]) -> Trial:
    return front[place_on_front(place, [trial.metrics for trial in front])]
