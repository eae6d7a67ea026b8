"""The search space: every subnet it makes is in it, it makes every one, and says why one is not."""

import dataclasses

import numpy as np
import pytest

from supersam.config import SpaceConfig, UserError
from supersam.space import (
    SHAPES,
    EncoderShape,
    SearchSpace,
    SubnetSpec,
    build_space,
    published_space,
    read_space,
    space_yaml,
)

VIT_B = SHAPES["vit_b"]


@pytest.fixture(scope="module", params=["tiny", "resolutions", "published_b", "published_l"])
def space(request, tiny_space, tiny_resolutions):
    named = {"published_b": VIT_B, "published_l": SHAPES["vit_l"]}
    if request.param in named:
        return published_space(named[request.param])
    return tiny_resolutions if request.param == "resolutions" else tiny_space


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def genes_of(specs: list[SubnetSpec]) -> set[tuple[str, int, int]]:
    """Every (dimension, layer, value) that occurs; layer -1 where it belongs to none."""
    found = set()
    for spec in specs:
        found |= {("embed", -1, spec.embed_dim), ("resolution", -1, spec.resolution or 0)}
        for layer, width, heads in zip(spec.layers, spec.mlp_widths, spec.heads, strict=True):
            found |= {("mlp", layer, width), ("heads", layer, heads), ("kept", layer, 1)}
        found |= {("kept", layer, 0) for layer in range(32) if layer not in spec.layers}
    return found


def all_genes(space: SearchSpace) -> set[tuple[str, int, int]]:
    depth = space.shape.depth
    return (
        {("embed", -1, dim) for dim in space.embed_dims}
        | {("resolution", -1, px or 0) for px in space.resolution_genes}
        | {("mlp", i, width) for i in range(depth) for width in space.mlp_widths[i]}
        | {("heads", i, heads) for i in range(depth) for heads in space.heads[i]}
        | {("kept", i, 1) for i in range(depth)}
        | {("kept", i, 0) for i in (*space.removable, *range(depth, 32))}
    )


def test_published_space_of_vit_b_has_the_published_size():
    space = published_space(VIT_B)
    assert space.num_subnets() == 5**5 * 4**6
    assert space.removable == (1, 2, 5, 6, 9)
    assert space.smallest().layers == (0, 3, 4, 7, 8, 10, 11)
    assert space.mlp_widths[0] == (3072,)
    assert set(space.mlp_widths[1:]) == {(768, 1020, 1536, 2304)}


def test_number_of_subnets_is_the_number_of_distinct_draws():
    shape = EncoderShape(64, 3, 2, ())
    config = SpaceConfig(removable=(0, 2), mlp_fractions=(0.5, 1.0), elastic_heads=True)
    space = build_space(config, shape)
    random = rng()
    drawn = {space.sample(random).key() for _ in range(4000)}
    assert len(drawn) == space.num_subnets() == 5 * 4 * 5
    space = dataclasses.replace(space, resolutions=(256, 1024))
    drawn = {space.sample(random).key() for _ in range(4000)}
    assert len(drawn) == space.num_subnets() == 5 * 4 * 5 * 2


def test_largest_medium_and_smallest_are_in_the_space_in_this_order(space):
    largest, medium, smallest = space.largest(), space.medium(), space.smallest()
    assert all(space.contains(spec) for spec in (largest, medium, smallest))
    assert largest == SubnetSpec.full(space.shape)
    assert set(smallest.layers) < set(medium.layers) < set(largest.layers)
    assert smallest.mlp_widths == tuple(min(space.mlp_widths[i]) for i in smallest.layers)
    assert smallest.embed_dim == min(space.embed_dims)
    assert space.input_px(smallest) == min(space.resolutions, default=space.shape.image_size)
    assert space.input_px(largest) == space.shape.image_size


def test_samples_mutants_and_children_stay_in_the_space(space):
    random = rng()
    parents = [space.largest(), space.smallest(), *(space.sample(random) for _ in range(20))]
    for _ in range(300):
        first, second = (parents[int(random.integers(len(parents)))] for _ in range(2))
        for spec in (
            space.sample(random),
            space.mutate(first, random, probability=0.3),
            space.crossover(first, second, random),
        ):
            assert space.misfit(spec) is None


def test_samples_and_mutants_reach_every_choice(space):
    random = rng()
    assert genes_of([space.sample(random) for _ in range(400)]) == all_genes(space)
    base = space.smallest()
    mutants = [space.mutate(base, random, probability=0.5) for _ in range(600)]
    assert genes_of(mutants) == all_genes(space)


def test_a_childs_genes_are_its_parents(space):
    random = rng()
    for _ in range(50):
        first, second = space.sample(random), space.sample(random)
        child = space.crossover(first, second, random)
        assert genes_of([child]) <= genes_of([first, second])
        assert space.crossover(first, first, random) == first


def test_mutation_probability_is_how_much_changes(tiny_space):
    random = rng()
    base = tiny_space.sample(random)
    assert all(tiny_space.mutate(base, random, probability=0.0) == base for _ in range(20))
    changed = [tiny_space.mutate(base, random, probability=0.1) != base for _ in range(200)]
    always = [tiny_space.mutate(base, random, probability=1.0) != base for _ in range(200)]
    assert 0 < sum(changed) < sum(always)


def test_draws_depend_on_the_generator_alone(space):
    def draws(random: np.random.Generator) -> list[SubnetSpec]:
        first, second = space.sample(random), space.sample(random)
        return [first, space.mutate(first, random), space.crossover(first, second, random)]

    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    once = draws(rng(7))
    np.random.seed(2)  # noqa: NPY002 - as above
    assert draws(rng(7)) == once
    assert draws(rng(8)) != once


def test_layers_are_removed_as_often_as_asked(tiny_space):
    space = dataclasses.replace(tiny_space, removal=(0.9, 0.5, 0.1, 0.0))
    random = rng()
    kept = np.zeros(4)
    for _ in range(2000):
        kept[list(space.sample(random).layers)] += 1
    np.testing.assert_allclose(1 - kept / 2000, space.removal, atol=0.04)


def test_layer_0_may_be_removed(tiny_space):
    assert 0 in tiny_space.removable
    assert tiny_space.smallest().layers == (3,)
    random = rng()
    assert any(0 not in tiny_space.sample(random).layers for _ in range(20))


@pytest.mark.parametrize("depth", [1, 5, 24])
def test_any_depth_makes_a_space(depth):
    shape = EncoderShape(128, depth, 2, (depth - 1,))
    removable = tuple(range(0, depth - 1, 2))
    for space in (build_space(SpaceConfig(removable=removable), shape), published_space(shape)):
        random = rng()
        for spec in (space.largest(), space.smallest(), space.medium(), space.sample(random)):
            assert space.contains(spec)
        assert space.largest().layers == tuple(range(depth))
        assert all(layer < depth for layer in space.removable)


def test_every_dimension_can_be_switched_off():
    off = {f"elastic_{name}": False for name in ("depth", "mlp", "heads", "embed")}
    assert build_space(SpaceConfig(**off), VIT_B).num_subnets() == 1
    for name in off:
        space = build_space(SpaceConfig(**{**off, name: True}), VIT_B)
        assert space.num_subnets() > 1
        varied = {
            "elastic_depth": len(space.removable) > 0,
            "elastic_mlp": len(space.mlp_widths[0]) > 1,
            "elastic_heads": len(space.heads[0]) > 1,
            "elastic_embed": len(space.embed_dims) > 1,
        }
        assert [key for key, value in varied.items() if value] == [name]


def test_widths_are_multiples_of_64_by_default():
    space = build_space(SpaceConfig(elastic_embed=True, mlp_fractions=(0.3, 0.7)), VIT_B)
    widths = {width for choices in space.mlp_widths for width in choices}
    assert all(value % 64 == 0 for value in widths | set(space.embed_dims))


def test_misfits_name_the_dimension_the_value_and_what_is_allowed(tiny_space):
    base = tiny_space.smallest()
    wrong = {
        r"layers: \[3\] must be kept; removable are \[0, 1, 2\]": {"layers": (2,)},
        r"layers: 4 is outside 0 to 3": {"layers": (4,)},
        r"mlp_widths: 100 of layer 3 is not in \[96, 192, 288, 384\]": {"mlp_widths": (100,)},
        r"mlp_widths: 385 is outside 1 to 384": {"mlp_widths": (385,)},
        r"heads: 0 is outside 1 to 3": {"heads": (0,)},
        r"embed_dim: 48 is not in \[32, 64, 96\]": {"embed_dim": 48},
        r"resolution: 64 is not in \[80\]": {"resolution": 64},
        r"resolution: 80 is the model's own; leave the field out": {"resolution": 80},
        r"resolution: 60 is not a multiple of 16": {"resolution": 60},
    }
    for message, change in wrong.items():
        spec = dataclasses.replace(base, **change)
        assert not tiny_space.contains(spec)
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(tiny_space.misfit(spec))


def test_a_resolution_that_is_no_choice_is_named(tiny_space):
    space = dataclasses.replace(tiny_space, resolutions=(48, 64))
    assert space.contains(space.largest())  # the whole model always is
    at_own_size = dataclasses.replace(space.smallest(), resolution=None)
    assert space.misfit(at_own_size) == "resolution: 80 is not in [48, 64]"
    children = [space.crossover(space.largest(), space.smallest(), rng(i)) for i in range(20)]
    assert all(map(space.contains, children))
    assert {child.resolution for child in children if child != space.largest()} == {48, 64}


@pytest.mark.parametrize(
    ("resolutions", "message"),
    [
        ((250,), "250 is not a multiple of 16, the pixels of a patch"),
        ((64, 96), r"96 is larger than the model's own 80 px.*set --model.image-size 96"),
        ((32, 80), r"32 is smaller than an attention window of 3 patches.*the least is 48"),
        ((64, 48), r"\[64, 48\] must ascend: \[48, 64\]"),
        ((64, 64), r"must ascend: \[64\]"),
        ((64.0,), r"64\.0 is not a multiple of 16"),
    ],
)
def test_impossible_resolutions_are_refused_with_a_remedy(tiny_space, resolutions, message):
    with pytest.raises(ValueError, match=f"resolutions.*{message}"):
        dataclasses.replace(tiny_space, resolutions=resolutions)


def test_without_resolutions_draws_and_files_are_what_they_were(tiny_space, tiny_resolutions):
    """One resolution alone draws the same subnets: the new gene comes last and asks for nothing."""
    assert "resolutions" not in space_yaml(tiny_space)
    assert all("resolution" not in tiny_space.sample(rng(i)).to_dict() for i in range(9))
    for seed in range(20):
        plain, more = (each.sample(rng(seed)) for each in (tiny_space, tiny_resolutions))
        assert dataclasses.replace(more, resolution=None) == plain


def test_a_setting_gives_any_space_resolutions(tmp_path, tiny_shape):
    path = tmp_path / "space.yaml"
    path.write_text(space_yaml(published_space(tiny_shape)))
    for config in (SpaceConfig(preset="published"), SpaceConfig(file=path)):
        chosen = config.model_copy(update={"resolutions": (48, 80)})
        plain = build_space(config, tiny_shape)
        assert build_space(chosen, tiny_shape) == dataclasses.replace(plain, resolutions=(48, 80))


def test_a_space_survives_its_file(space, tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(space_yaml(space))
    assert read_space(path, space.shape) == space


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("removal: [0]", "has the fields"),
        ("[1, 2]", "must be a mapping"),
        ("{removal: 0, mlp_widths: [[1]], heads: [[1]], embed_dims: [1]}", "not a list"),
        ("{removal: [0, 0], mlp_widths: [[1]], heads: [[1]], embed_dims: [32]}", "2 entries"),
        ("{removal: [1], mlp_widths: [[1]], heads: [[1]], embed_dims: [32]}", "below 1"),
        ("{removal: [.nan], mlp_widths: [[1]], heads: [[1]], embed_dims: [32]}", "below 1"),
        ("{removal: [0.5], mlp_widths: [[1]], heads: [[1]], embed_dims: [32]}", "every layer"),
        ("{removal: [0], mlp_widths: [[2, 1]], heads: [[1]], embed_dims: [32]}", "must ascend"),
        ("{removal: [0], mlp_widths: [[1.5]], heads: [[1]], embed_dims: [32]}", "whole numbers"),
        ("{removal: [0], mlp_widths: [[]], heads: [[1]], embed_dims: [32]}", "whole numbers"),
        ("{removal: [0], mlp_widths: [[1]], heads: [[3]], embed_dims: [32]}", "within 1 to 2"),
        ("{removal: [0], mlp_widths: [[1]], heads: [[1]], embed_dims: [33]}", "within 1 to 32"),
    ],
)
def test_a_nonsense_space_file_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as fault:
        read_space(path, EncoderShape(32, 1, 2, ()))
    assert str(path) in str(fault.value)


def test_removable_layers_outside_the_encoder_are_refused():
    with pytest.raises(ValueError, match=r"5 6 9 do not exist.* 0 to 3"):
        build_space(SpaceConfig(), EncoderShape(32, 4, 2, ()))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_heads": 5}, "embed_dim=32 is not a multiple of num_heads=5"),
        ({"image_size": 100}, "image_size=100 is not a multiple of 16; try 96"),
        ({"global_layers": (2,)}, r"global_layers \[2\] do not exist in a depth of 2"),
    ],
)
def test_an_impossible_encoder_is_refused(sizes, message):
    good = {"embed_dim": 32, "depth": 2, "num_heads": 2, "global_layers": ()}
    with pytest.raises(ValueError, match=message):
        EncoderShape(**(good | sizes))
