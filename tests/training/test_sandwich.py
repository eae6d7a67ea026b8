"""Draws of the sandwich rule: pure in (seed, step), so the same on every rank and restart."""

import numpy as np
import pytest
import torch

from supersam.space import SHAPES, published_space, subnet_cost
from supersam.training.sandwich import SandwichSampler


def sampler(space, **changes) -> SandwichSampler:
    return SandwichSampler(**{"space": space, "seed": 3, "random_subnets": 2} | changes)


def test_a_step_trains_the_largest_first_the_smallest_last_and_k_others(tiny_space):
    for k in range(4):
        draws = sampler(tiny_space, random_subnets=k)
        for step in range(5):
            subnets = draws.draw(step)
            assert len(subnets) == len(draws.slots(step)) == k + 2
            assert (subnets[0], subnets[-1]) == (tiny_space.largest(), tiny_space.smallest())
            assert all(tiny_space.contains(spec) for spec in subnets)
            assert (draws.slots(step)[0], draws.slots(step)[-1]) == ("largest", "smallest")


def test_draws_depend_on_seed_and_step_alone(tiny_space):
    steps = [0, 1, 2, 1000, 10**7]
    first = [sampler(tiny_space).draw(step) for step in steps]
    np.random.seed(9)  # noqa: NPY002 - the global state must not matter
    torch.manual_seed(9)
    used = sampler(tiny_space)
    again = [used.draw(step) for step in reversed(steps)]
    assert again[::-1] == first
    assert [sampler(tiny_space, seed=4).draw(step) for step in steps] != first


def test_steps_and_seeds_draw_independently(tiny_space):
    drawn = [sampler(tiny_space).draw(step)[1].key() for step in range(60)]
    assert len(set(drawn)) > 50
    shifted = [sampler(tiny_space, seed=4).draw(step)[1].key() for step in range(60)]
    assert sum(a == b for a, b in zip(drawn[1:], shifted, strict=False)) < 5


def test_every_choice_is_trained_within_a_few_hundred_steps(tiny_space):
    subnets = [spec for step in range(300) for spec in sampler(tiny_space).draw(step)[1:-1]]
    assert {s.embed_dim for s in subnets} == set(tiny_space.embed_dims)
    widths = {(i, w) for s in subnets for i, w in zip(s.layers, s.mlp_widths, strict=True)}
    assert widths == {(i, w) for i in range(4) for w in tiny_space.mlp_widths[i]}


def test_the_first_steps_may_train_the_largest_alone(tiny_space):
    draws = sampler(tiny_space, largest_only_steps=3)
    assert [len(draws.draw(step)) for step in range(5)] == [1, 1, 1, 4, 4]
    assert draws.slots(2) == ("largest",)
    assert draws.draw(2) == (tiny_space.largest(),)
    assert draws.draw(3) == sampler(tiny_space).draw(3)


def test_a_growing_space_opens_from_its_widest_subnets_to_all(tiny_space):
    draws = sampler(tiny_space, largest_only_steps=3, growing_steps=20)
    smallest = [draws.draw(step)[-1] for step in range(3, 30)]
    params = [subnet_cost(spec, tiny_space.shape).params for spec in smallest]
    assert params == sorted(params, reverse=True)
    assert len(set(params)) > 3
    assert smallest[0].layers == tiny_space.largest().layers
    assert smallest[0].embed_dim == tiny_space.embed_dims[-1]
    assert set(smallest[20:]) == {tiny_space.smallest()}
    for step in range(3, 30):
        subnets = draws.draw(step)
        least = subnet_cost(subnets[-1], tiny_space.shape).params
        assert all(tiny_space.contains(spec) for spec in subnets)
        assert all(subnet_cost(spec, tiny_space.shape).params >= least for spec in subnets)
    assert draws.draw(23) == sampler(tiny_space).draw(23)


@pytest.mark.parametrize("seed", [0, 2**31, 2**63])
def test_any_seed_works(tiny_space, seed):
    assert len(sampler(tiny_space, seed=seed).draw(0)) == 4


def test_a_run_of_one_subnet_draws_it_alone(tiny_space):
    spec = tiny_space.medium()
    alone = sampler(tiny_space, only=spec, largest_only_steps=5)
    for step in (0, 7):
        assert alone.draw(step) == (spec,)
        assert alone.slots(step) == ("subnet",)
    assert alone.fixed() == {"subnet": spec}


@pytest.mark.parametrize(("by_size", "spread"), [(True, True), (False, False)])
def test_random_subnets_reach_all_sizes_if_drawn_by_size_alone(by_size, spread):
    space = published_space(SHAPES["vit_b"])
    ends = [subnet_cost(s, space.shape).params_m for s in (space.smallest(), space.largest())]
    draws = sampler(space, random_subnets=1, by_size=by_size)
    sizes = [subnet_cost(draws.draw(step)[1], space.shape).params_m for step in range(200)]
    shares = [(size - ends[0]) / (ends[1] - ends[0]) for size in sizes]
    assert (min(shares) < 0.05) == spread
    # The widest choices of the published space are narrower than the largest subnet.
    assert (max(shares) > 0.65) == spread
