"""Random subnets spread over the sizes of a space, which uniform choices of genes are not."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from supersam.space.cost import subnet_cost
from supersam.space.space import SearchSpace
from supersam.space.spec import SubnetSpec

Rng = np.random.Generator
SizeMetric = Literal["params_m", "flops_g"]
"""What size is: parameters of the whole model, or FLOPs of one image with one prompt."""
_STEEPEST = 60.0
"""A tilt at which every gene is at an end: e^-60 is below any draw of a float64."""
_HALVINGS = 16


def sample_by_size(space: SearchSpace, rng: Rng, *, metric: SizeMetric = "params_m") -> SubnetSpec:
    """A random subnet whose size is uniform between those of the smallest and the widest choices.

    `space.sample` chooses each gene by itself, so that the sum of many hardly leaves the middle: in
    the published space of ViT-B no draw is in the top quarter of sizes. Here a size is drawn first,
    and a resolution at which there are subnets of that size. Then all genes, layers and widths
    alike, are drawn from the space's distribution tilted toward small or large choices as far as
    that size needs.
    """
    draws = rng.random((space.shape.depth, 3))
    dim_draw, share = rng.random(2)

    def tilted(resolution: int | None, tilt: float) -> tuple[SubnetSpec, float]:
        spec = _tilted(space, draws, dim_draw, tilt, resolution)
        return spec, float(getattr(subnet_cost(spec, space.shape), metric))

    ends = {px: (tilted(px, -_STEEPEST)[1], tilted(px, _STEEPEST)[1])
            for px in space.resolution_genes}  # fmt: skip
    least, most = min(low for low, _ in ends.values()), max(high for _, high in ends.values())
    target = least + share * (most - least)
    resolution = _reaching(target, ends, rng)
    low, high = -_STEEPEST, _STEEPEST
    for _ in range(_HALVINGS):  # the size never falls with the tilt: each gene moves one way
        middle = (low + high) / 2
        if tilted(resolution, middle)[1] < target:
            low = middle
        else:
            high = middle
    either = [tilted(resolution, tilt) for tilt in (low, high)]
    return min(either, key=lambda found: abs(found[1] - target))[0]


def _reaching(
    target: float, ends: Mapping[int | None, tuple[float, float]], rng: Rng
) -> int | None:
    """Draw one of the resolutions whose sizes, from `ends`, span `target`; or else the nearest."""
    if len(ends) == 1:
        return next(iter(ends))
    reaching = [px for px, (low, high) in ends.items() if low <= target <= high]
    if reaching:
        return reaching[int(rng.integers(len(reaching)))]
    return min(ends, key=lambda px: min(abs(size - target) for size in ends[px]))


def _tilted(
    space: SearchSpace,
    draws: NDArray[np.float64],
    dim_draw: float,
    tilt: float,
    resolution: int | None,
) -> SubnetSpec:
    """The subnet of fixed draws in [0, 1), one for each gene; larger for a larger tilt."""
    layers = [
        layer
        for layer, removal in enumerate(space.removal)
        if removal == 0 or draws[layer, 0] >= _tilted_removal(removal, tilt)
    ]
    return SubnetSpec(
        layers=tuple(layers),
        mlp_widths=tuple(_choose(space.mlp_widths[i], draws[i, 1], tilt) for i in layers),
        heads=tuple(_choose(space.heads[i], draws[i, 2], tilt) for i in layers),
        embed_dim=_choose(space.embed_dims, dim_draw, tilt),
        resolution=resolution,
    )


def _tilted_removal(removal: float, tilt: float) -> float:
    return removal / (removal + (1 - removal) * math.exp(tilt))


def _choose(choices: Sequence[int], draw: float, tilt: float) -> int:
    """The choice at `draw` of the distribution whose odds grow by e^tilt from first to last."""
    return choices[bisect_right(_bounds(len(choices), tilt), draw)]


@lru_cache(maxsize=64)
def _bounds(count: int, tilt: float) -> tuple[float, ...]:
    """Where each of `count` choices ends in [0, 1), but the last."""
    first = -max(0.0, tilt)  # so that the largest power is 0
    odds = [math.exp(first + tilt * place / max(1, count - 1)) for place in range(count)]
    whole = sum(odds)
    return tuple(accumulate(odd / whole for odd in odds[:-1]))
