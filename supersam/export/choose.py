"""Which subnet is meant: a word, a file, or a place on a search's front."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from supersam.config import UserError
from supersam.search.journal import Trial
from supersam.space import SearchSpace, SubnetSpec
from supersam.training.trained import choose_subnet

_FORMS = "a number from 0, best or knee"


def choose(name: str, space: SearchSpace) -> SubnetSpec:
    """The subnet that `--subnet` means. Raises UserError where it means none of `space`."""
    path, mark, place = name.rpartition("#")
    if not mark or Path(name).is_file():
        return choose_subnet(name, space)
    trial = _pick(read_front(Path(path)), place, name)
    reason = space.misfit(trial.spec)
    if reason is not None:
        raise UserError(f"{name} is not in this run's search space: {reason}")
    return trial.spec


def read_front(path: Path) -> list[Trial]:
    """The trials of a `pareto.json`, or of the one in a search's folder, in their order."""
    file = path / "pareto.json" if path.is_dir() else path
    try:
        front = [Trial.from_dict(values) for values in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise UserError(f"{file} is not a front written by launch/search.py: {fault}") from None
    if not front:
        raise UserError(f"{file} holds no subnet yet")
    return front


def knee(front: list[Trial]) -> int:
    """Index of the subnet farthest above the line between the ends of the front.

    FLOPs and mIoU, each stretched to 0 to 1 over the front.
    """
    points = np.array([(t.metrics["flops_g"], t.metrics["miou"]) for t in front])
    span = np.ptp(points, axis=0)
    stretched = (points - points.min(axis=0)) / np.where(span > 0, span, 1.0)
    return int((stretched[:, 1] - stretched[:, 0]).argmax())


def _pick(front: list[Trial], place: str, name: str) -> Trial:
    if place == "best":
        return max(front, key=lambda trial: trial.metrics["miou"])
    if place == "knee":
        return front[knee(front)]
    if not place.isdigit():
        raise UserError(f"--subnet {name}: after # comes {_FORMS}")
    if int(place) >= len(front):
        raise UserError(
            f"--subnet {name}: the front has {len(front)} subnets, 0 to {len(front) - 1}"
        )
    return front[int(place)]
