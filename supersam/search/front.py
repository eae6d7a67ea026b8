"""A search's front as it was written, and the subnets on it that people ask for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from supersam.config import UserError
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
    return max(front, key=lambda trial: trial.metrics["miou"])


def knee(front: list[Trial]) -> Trial:
    """The subnet farthest above the line between the ends of the front.

    FLOPs and mIoU, each stretched to 0 to 1 over the front.
    """
    points = np.array([(t.metrics["flops_g"], t.metrics["miou"]) for t in front])
    span = np.ptp(points, axis=0)
    stretched = (points - points.min(axis=0)) / np.where(span > 0, span, 1.0)
    return front[int((stretched[:, 1] - stretched[:, 0]).argmax())]


def cheapest(front: list[Trial]) -> Trial:
    """The subnet of the fewest FLOPs."""
    return min(front, key=lambda trial: trial.metrics["flops_g"])
