"""What is known of a subnet without running it, and which limits it keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from supersam.config import Constraint, UserError
from supersam.config.search import MEASURED
from supersam.search.journal import Trial
from supersam.search.pareto import num_dominators
from supersam.space import SearchSpace, SubnetSpec, subnet_cost

_LOOKS = 200
"""Random subnets brought toward the limits, to find one that keeps all together."""
_STEPS = 60
"""Moves of a subnet toward the limits."""
_MOST_GENES, _FEWEST_GENES = 0.2, 0.02
"""Share of the genes that such a move takes from the smallest or the largest subnet."""
_NOISE = 1.2
"""Times that two measurements of one subnet may differ by."""
_FEWEST_SEEN = 8
"""Subnets a rung must have seen before it gives one up."""


def known_costs(spec: SubnetSpec, space: SearchSpace) -> dict[str, float]:
    """Metrics in closed form: `params_m` and `flops_g`."""
    cost = subnet_cost(spec, space.shape)
    return {"params_m": cost.params_m, "flops_g": cost.flops_g}


def keeps_limits(metrics: dict[str, float], limits: Iterable[Constraint]) -> bool:
    """Whether all limits on the metrics that are there are kept."""
    return all(limit.allows(metrics[limit.metric]) for limit in limits if limit.metric in metrics)


def require_feasible(space: SearchSpace, limits: Sequence[Constraint]) -> None:
    """Raise UserError with the nearest numbers where no subnet can keep the closed-form limits."""
    limits = [limit for limit in limits if limit.metric not in MEASURED]
    ends = {
        True: known_costs(space.smallest(), space),
        False: known_costs(space.largest(), space),
    }
    for limit in limits:
        nearest = ends[limit.is_upper][limit.metric]
        if not limit.allows(nearest):
            which = "smallest" if limit.is_upper else "largest"
            raise UserError(
                f"constraint {limit} is impossible: the {which} subnet has "
                f"{limit.metric}={nearest:.6g}; set the limit at or beyond it"
            )
    _require_together(space, limits)


def require_measured_feasible(
    limits: Iterable[Constraint], *, smallest: Trial, largest: Trial
) -> None:
    """Raise UserError where a measured limit is far beyond what the cheapest subnet has.

    A limit within the noise of a measurement is left to the search.
    """
    for limit in limits:
        name, trial = ("smallest", smallest) if limit.is_upper else ("largest", largest)
        found = trial.metrics.get(limit.metric)
        if limit.metric not in MEASURED or found is None:
            continue
        ratio = found / limit.limit
        if (ratio if limit.is_upper else 1 / ratio) > _NOISE:
            raise UserError(
                f"constraint {limit} is impossible on {trial.host}: the {name} subnet has "
                f"{limit.metric}={found:.6g}; set it beyond that, under another --name"
            )


def require_one_device(trials: Iterable[Trial], measured: Sequence[str]) -> None:
    """Raise UserError where trials were measured on different kinds of devices."""
    first: Trial | None = None
    for trial in trials:
        if not trial.device:
            continue
        first = first or trial
        if trial.device != first.device:
            raise UserError(
                f"{', '.join(measured)} on {trial.host} ({trial.device}) and on {first.host} "
                f"({first.device}) do not compare; ask for one kind of host, with --partition or "
                "--node-constraint, and as many cores as before: the same command then goes on"
            )


def _require_together(space: SearchSpace, limits: Sequence[Constraint]) -> None:
    rng = np.random.default_rng(0)
    nearest: tuple[float, dict[str, float]] | None = None
    for _ in range(_LOOKS):
        costs = known_costs(fit_limits(space.sample(rng), space, limits, rng), space)
        excess = sum(
            abs(costs[limit.metric] / limit.limit - 1)
            for limit in limits
            if not limit.allows(costs[limit.metric])
        )
        if excess == 0:
            return
        if nearest is None or excess < nearest[0]:
            nearest = excess, costs
    assert nearest is not None  # _LOOKS > 0
    numbers = ", ".join(f"{name}={value:.6g}" for name, value in nearest[1].items())
    together = ", ".join(map(str, limits))
    raise UserError(
        f"no subnet in {_LOOKS} draws, moved toward them, keeps all constraints ({together}); the "
        f"nearest has {numbers}; widen one of them"
    )


def fit_limits(
    spec: SubnetSpec, space: SearchSpace, limits: Sequence[Constraint], rng: np.random.Generator
) -> SubnetSpec:
    """`spec` with genes of the smallest or the largest subnet, a few at a time, within the limits.

    Under a tight limit almost no random subnet is feasible; this one soon is. Fewer genes move
    after each turn, so that it comes to rest between two limits. A measured limit is not looked
    at. Where the limits are not met together, whatever was reached last.
    """
    limits = [limit for limit in limits if limit.metric not in MEASURED]
    toward, share = None, _MOST_GENES
    for _ in range(_STEPS):
        costs = known_costs(spec, space)
        broken = [limit for limit in limits if not limit.allows(costs[limit.metric])]
        if not broken:
            return spec
        end = space.smallest() if broken[0].is_upper else space.largest()
        if toward not in (None, end):
            share = max(_FEWEST_GENES, share / 2)
        toward = end
        spec = space.crossover(spec, end, rng, share=share)
    # The largest need not be within reach of a crossover: its widths may be no choices.
    if toward is not None and keeps_limits(known_costs(toward, space), limits):
        return toward
    return spec


def is_hopeless(costs: np.ndarray, seen: np.ndarray, *, keep: float) -> bool:
    """Whether a subnet is not among the best `keep` of those seen at the same rung.

    Subnets are ordered by how many others dominate them, so a small subnet of low accuracy is
    judged against those as small.

    Args:
        costs: (K,) objectives of the subnet at this rung, as costs.
        seen: (H, K) those of earlier batches; with fewer than 8 nothing is hopeless.
        keep: the share that goes on.
    """
    if len(seen) < _FEWEST_SEEN:
        return False
    limit = np.quantile(num_dominators(seen, seen), keep)
    return bool(num_dominators(costs[None], seen)[0] > limit)
