from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from supersam.config import ModelConfig
from supersam.space import (
    SizeMetric,
    published_space,
    resolve_shape,
    sample_by_size,
    subnet_cost,
    wide_space,
)

VIT_B = resolve_shape(ModelConfig(name="vit_b"))
SPACES = {"published": published_space(VIT_B), "wide": wide_space(VIT_B)}


def quarters(space, specs, metric):
    """Share of the subnets in each quarter of the sizes that the space's choices reach."""
    ends = space.smallest(), widest(space)
    low, high = (getattr(subnet_cost(spec, space.shape), metric) for spec in ends)
    sizes = np.array([getattr(subnet_cost(spec, space.shape), metric) for spec in specs])
    return np.histogram((sizes - low) / (high - low), [0, 0.25, 0.5, 0.75, 1 + 1e-9])[0] / len(
        specs
    )


def widest(space):
    """All layers, each at the widest of its choices."""
    largest = space.largest()
    return type(largest)(
        largest.layers,
        tuple(choices[-1] for choices in space.mlp_widths),
        tuple(choices[-1] for choices in space.heads),
        space.embed_dims[-1],
    )


@pytest.mark.parametrize("metric", get_args(SizeMetric))
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_sizes_spread_over_the_whole_space(space, metric):
    rng = np.random.default_rng(0)
    specs = [sample_by_size(space, rng, metric=metric) for _ in range(200)]
    assert all(map(space.contains, specs))
    assert quarters(space, specs, metric).min() > 0.15
    assert quarters(space, [space.sample(rng) for _ in range(200)], metric).min() < 0.06


def test_subnets_of_one_size_differ_in_every_gene():
    space, rng = SPACES["wide"], np.random.default_rng(1)
    specs = [sample_by_size(space, rng) for _ in range(300)]
    half = [s for s in specs if 0.4 < subnet_cost(s, VIT_B).params_m / 93.7 < 0.6]
    assert len({s.layers for s in half}) > 10
    assert len({s.embed_dim for s in half}) > 1
    assert len({s.mlp_widths[0] for s in half}) > 1
    assert len({s.heads[0] for s in half}) > 1


def test_resolutions_go_with_flops_and_not_with_parameters():
    space = replace(SPACES["published"], resolutions=(512, 768, 1024))
    rng = np.random.default_rng(2)
    for metric, expected in (("flops_g", True), ("params_m", False)):
        specs = [sample_by_size(space, rng, metric=metric) for _ in range(200)]
        sizes = [getattr(subnet_cost(spec, VIT_B), metric) for spec in specs]
        smaller = np.array([space.input_px(spec) for spec in specs]) == 512
        order = np.argsort(sizes)
        low, high = smaller[order[:60]].mean(), smaller[order[-60:]].mean()
        assert (low > high + 0.5) == expected
        assert quarters(space, specs, metric).min() > 0.1


def test_a_draw_is_a_function_of_its_generator():
    first, again = (sample_by_size(SPACES["wide"], np.random.default_rng(7)) for _ in range(2))
    assert first == again
    assert sample_by_size(SPACES["wide"], np.random.default_rng(8)) != first


def test_the_wide_space_reaches_70_percent_below_the_whole_model():
    smallest, largest = SPACES["wide"].smallest(), SPACES["wide"].largest()
    assert subnet_cost(smallest, VIT_B).params < 0.3 * subnet_cost(largest, VIT_B).params
    sizes = [
        subnet_cost(sample_by_size(SPACES["wide"], np.random.default_rng(i)), VIT_B).params_m
        for i in range(60)
    ]
    assert min(sizes) < 0.3 * 93.7
    assert max(sizes) > 0.75 * 93.7
