"""Which subnet is meant: a word, a file, or a place on a search's front."""

from __future__ import annotations

from pathlib import Path

from supersam.config import UserError
from supersam.runs.weights import choose_subnet
from supersam.search.front import best, cheapest, knee, read_front
from supersam.search.journal import Trial
from supersam.space import SearchSpace, SubnetSpec

_PICKS = {"best": best, "knee": knee, "cheapest": cheapest}


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


def _pick(front: list[Trial], place: str, name: str) -> Trial:
    if place in _PICKS:
        return _PICKS[place](front)
    if not place.isdigit():
        words = ", ".join(_PICKS)
        raise UserError(f"--subnet {name}: after # comes a number from 0, or one of {words}")
    if int(place) >= len(front):
        raise UserError(
            f"--subnet {name}: the front has {len(front)} subnets, 0 to {len(front) - 1}"
        )
    return front[int(place)]
