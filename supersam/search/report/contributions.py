"""What each dimension of the space contributes to mIoU, by the model fitted on all trials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from supersam.search.journal import Trial
from supersam.search.predictor import Floats, GenePredictor
from supersam.space import SearchSpace, SubnetSpec, subnet_cost

_DRAWS = 100
_SEED = 0


@dataclass(frozen=True)
class Contribution:
    """One dimension of the largest subnet brought to its smallest choice, all else as it is."""

    dimension: str
    """What is changed, such as `MLP of layer 3`."""
    change: str
    """How, such as `768 to 192`."""
    miou: float
    """Predicted change of mIoU."""
    interval: tuple[float, float]
    """95 % of the spread of models fitted on resampled trials, around `miou`."""
    is_resolved: bool
    """Whether there are trials enough to tell, and the interval does not reach zero."""
    params_m: float
    """Weights that go, millions."""
    flops_g: float
    """FLOPs that go, in units of 1e9."""


def contributions(space: SearchSpace, trials: Sequence[Trial]) -> list[Contribution]:
    """Every elastic dimension, the one that matters most first. trials: complete ones."""
    changes = list(_changes(space))
    specs = [trial.spec for trial in trials]
    miou = np.array([trial.metrics["miou"] for trial in trials])
    rng = np.random.default_rng(_SEED)
    effects = _effects(space, specs, miou, changes)
    draws = [
        _effects(space, [specs[i] for i in some], miou[some], changes)
        for some in rng.integers(len(specs), size=(_DRAWS, len(specs)))
    ]
    # A fit on resampled trials has fewer distinct ones and shrinks more: its spread is right, its
    # centre is not, and the estimate could lie outside of the plain percentiles.
    low, high = effects + np.quantile(draws, (0.025, 0.975), axis=0) - np.mean(draws, axis=0)
    enough = len(trials) >= fewest_trials(space)
    whole = subnet_cost(space.largest(), space.shape)
    found = []
    for i, (dimension, change, spec) in enumerate(changes):
        cost = subnet_cost(spec, space.shape)
        found.append(
            Contribution(
                dimension=dimension,
                change=change,
                miou=float(effects[i]),
                interval=(float(low[i]), float(high[i])),
                is_resolved=bool(enough and not low[i] <= 0 <= high[i]),
                params_m=whole.params_m - cost.params_m,
                flops_g=whole.flops_g - cost.flops_g,
            )
        )
    return sorted(found, key=lambda each: each.miou)


def fewest_trials(space: SearchSpace) -> int:
    """Trials below which contributions are not resolved: three for each elastic dimension."""
    return 3 * len(list(_changes(space)))


def _effects(
    space: SearchSpace,
    specs: list[SubnetSpec],
    miou: Floats,
    changes: list[tuple[str, str, SubnetSpec]],
) -> Floats:
    model = GenePredictor(space, specs, miou)
    predicted = model.predict([space.largest(), *(spec for _, _, spec in changes)])
    effects: Floats = predicted[1:] - predicted[0]
    return effects


def _changes(space: SearchSpace) -> Iterator[tuple[str, str, SubnetSpec]]:
    """(dimension, change, the largest subnet with that change)."""
    whole = space.largest()
    for layer in space.removable:
        yield f"layer {layer}", "removed", whole.without(layer)
    for layer, choices in enumerate(space.mlp_widths):
        if choices[0] < whole.mlp_widths[layer]:
            change = f"{whole.mlp_widths[layer]} to {choices[0]}"
            yield f"MLP of layer {layer}", change, whole.with_width(layer, choices[0])
    for layer, choices in enumerate(space.heads):
        if choices[0] < whole.heads[layer]:
            change = f"{whole.heads[layer]} to {choices[0]}"
            yield f"heads of layer {layer}", change, whole.with_heads(layer, choices[0])
    if space.embed_dims[0] < whole.embed_dim:
        change = f"{whole.embed_dim} to {space.embed_dims[0]}"
        yield "residual width", change, replace(whole, embed_dim=space.embed_dims[0])
    if space.resolution_genes[0] is not None:
        change = f"{space.shape.image_size} to {space.resolution_genes[0]} px"
        yield "resolution", change, replace(whole, resolution=space.resolution_genes[0])
