"""Which subnet is meant: a word, a file, or a place on a search's front."""

from __future__ import annotations

from pathlib import Path

from supersam.config import UserError
from supersam.search.journal import Trial
from supersam.search.picks import best, knee, read_front
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


def _pick(front: list[Trial], place: str, name: str) -> Trial:
    if place == "best":
        return best(front)
    if place == "knee":
        return knee(front)
    if not place.isdigit():
        raise UserError(f"--subnet {name}: after # comes {_FORMS}")
    if int(place) >= len(front):
        raise UserError(
            f"--subnet {name}: the front has {len(front)} subnets, 0 to {len(front) - 1}"
        )
    return front[int(place)]
