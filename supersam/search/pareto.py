"""Which trials are best when several numbers count: fronts, crowding, hypervolume. Pure NumPy.

Costs are objectives to be minimised: mIoU enters with its sign changed. N trials, K objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from supersam.search.journal import Trial

Costs = NDArray[np.float64]

MAXIMIZED = frozenset({"miou"})
"""Metrics of which more is better; of all others, less."""
_BLOCK = 256
"""Rows that are compared with a front at a time."""


def cost_row(metrics: Mapping[str, float], objectives: Sequence[str]) -> Costs:
    """(K,) float64: the objectives as costs."""
    signed = [-metrics[name] if name in MAXIMIZED else metrics[name] for name in objectives]
    return np.array(signed, np.float64)


def cost_matrix(trials: Sequence[Trial], objectives: Sequence[str]) -> Costs:
    """(N, K) float64: the trials' objectives as costs."""
    rows = [cost_row(trial.metrics, objectives) for trial in trials]
    return np.array(rows, np.float64).reshape(len(trials), len(objectives))


def num_dominators(costs: Costs, among: Costs) -> NDArray[np.int64]:
    """(N,) how many rows of `among` are no worse in everything and better in something."""
    no_worse = (among[None] <= costs[:, None]).all(-1)
    better = (among[None] < costs[:, None]).any(-1)
    count: NDArray[np.int64] = (no_worse & better).sum(1)
    return count


def non_dominated(costs: Costs) -> NDArray[np.bool_]:
    """(N,) whether no other row is as good in everything and better in something.

    In lexicographic order a row is dominated only by earlier ones, and then also by one of the
    front so far: N rows cost N times the front, not N times N.
    """
    order = np.lexsort(costs.T[::-1])
    best = np.zeros(len(costs), bool)
    front = costs[:0]
    for first in range(0, len(order), _BLOCK):
        block = order[first : first + _BLOCK]
        block = block[num_dominators(costs[block], front) == 0]
        block = block[num_dominators(costs[block], costs[block]) == 0]
        best[block] = True
        front = np.concatenate((front, costs[block]))
    return best


def crowding_distance(costs: Costs) -> NDArray[np.float64]:
    """(N,) how far apart the neighbours of each row of one front are; infinite at its ends."""
    distance = np.zeros(len(costs))
    for column in costs.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]] if len(order) else 0.0
        distance[order[:1]] = distance[order[-1:]] = np.inf
        if span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance


def pareto_front(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """The complete trials that no other one dominates, ascending in the last objective.

    Of trials with equal objectives, the one with the smallest key stays.
    """
    complete = sorted((t for t in trials if t.status == "complete"), key=lambda t: t.key)
    costs = cost_matrix(complete, objectives)
    _, first_of_equals = np.unique(costs, axis=0, return_index=True)
    chosen = first_of_equals[non_dominated(costs[first_of_equals])]
    return sorted((complete[i] for i in chosen), key=lambda t: (t.metrics[objectives[-1]], t.key))


def hypervolume(costs: Costs, reference: NDArray[np.float64]) -> float:
    """Volume that the rows dominate, up to `reference` (K,); rows beyond it count nothing."""
    inside = costs[(costs < reference).all(1)]
    if len(inside) == 0:
        return 0.0
    return _volume(inside[non_dominated(inside)], reference)


def growing_volumes(costs: Costs, reference: NDArray[np.float64]) -> list[float]:
    """Hypervolume of the first row, of the first two, and so on."""
    volumes: list[float] = []
    front = costs[:0]
    for row in costs[:, None]:
        if (front <= row).all(1).any():  # it adds nothing
            volumes.append(volumes[-1])
            continue
        front = np.concatenate((front[num_dominators(front, row) == 0], row))
        volumes.append(hypervolume(front, reference))
    return volumes


def _volume(front: Costs, reference: NDArray[np.float64]) -> float:
    """Slices along the last objective, each of one dimension less."""
    if front.shape[1] == 1:
        return float(reference[0] - front.min())
    front = front[np.argsort(front[:, -1], kind="stable")]
    ends = np.append(front[1:, -1], reference[-1])
    return sum(
        float(end - row[-1]) * _volume(front[: index + 1, :-1], reference[:-1])
        for index, (row, end) in enumerate(zip(front, ends, strict=True))
        if end > row[-1]
    )
