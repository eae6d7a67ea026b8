"""What is known of a subnet without running it, and which limits it keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from supersam.config import Constraint, UserError
from supersam.config.search import MEASURED
from supersam.search.journal import Trial
from supersam.search.pareto import num_dominators
from supersam.space import SearchSpace, SubnetSpec, subnet_cost

_LOOKS = 2000
"""Random subnets looked at for one that keeps all limits together."""
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


def _require_together(space: SearchSpace, limits: Sequence[Constraint]) -> None:
    rng = np.random.default_rng(0)
    nearest: tuple[float, dict[str, float]] | None = None
    for _ in range(_LOOKS):
        costs = known_costs(shrink_to_fit(space.sample(rng), space, limits, rng), space)
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
        f"no subnet in {_LOOKS} draws keeps all constraints ({together}); the nearest has "
        f"{numbers}; widen one of them"
    )


def shrink_to_fit(
    spec: SubnetSpec, space: SearchSpace, limits: Sequence[Constraint], rng: np.random.Generator
) -> SubnetSpec:
    """`spec` with genes of the smallest subnet, few at a time, until the upper limits are kept.

    Under a tight limit almost no random subnet is feasible; this one soon is. A measured limit is
    not looked at.
    """
    upper = [limit for limit in limits if limit.is_upper and limit.metric not in MEASURED]
    smallest = space.smallest()
    for _ in range(200):
        if keeps_limits(known_costs(spec, space), upper):
            return spec
        spec = _toward(spec, smallest, space, rng)
    return smallest


def _toward(
    spec: SubnetSpec, smallest: SubnetSpec, space: SearchSpace, rng: np.random.Generator
) -> SubnetSpec:
    """`spec` with one random gene in five taken from `smallest`."""
    gone = set(space.removable)
    narrow = dict(
        zip(smallest.layers, zip(smallest.mlp_widths, smallest.heads, strict=True), strict=True)
    )
    kept = []
    for layer, width, heads in zip(spec.layers, spec.mlp_widths, spec.heads, strict=True):
        remove, thin, behead = rng.random(3) < 0.2
        if remove and layer in gone:
            continue
        least = narrow.get(layer, (space.mlp_widths[layer][0], space.heads[layer][0]))
        kept.append((layer, least[0] if thin else width, least[1] if behead else heads))
    layers, widths, heads_of = zip(*kept, strict=True)
    dim = smallest.embed_dim if rng.random() < 0.2 else spec.embed_dim
    return SubnetSpec(layers, widths, heads_of, dim)


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
