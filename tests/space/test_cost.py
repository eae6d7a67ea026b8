"""The closed form against counting, and against the published figures."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from supersam.model.extract import sizes_of
from supersam.model.sam import build_sam
from supersam.space import SHAPES, EncoderShape, SubnetSpec, published_space, subnet_cost
from supersam.standalone import build_encoder

WINDOW_LARGER_THAN_IMAGE = EncoderShape(64, 2, 2, (1,), image_size=64, window_size=14)


def counted_encoder(spec: SubnetSpec, shape: EncoderShape) -> tuple[int, int]:
    """Parameters and FLOPs of the plain segment-anything encoder; meta tensors compute nothing."""
    with torch.device("meta"):
        encoder = build_encoder(sizes_of(spec, shape))
        side = shape.at(spec.resolution).image_size
        image = torch.empty(1, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        encoder(image)
    return sum(p.numel() for p in encoder.parameters()), counter.get_total_flops()


def assert_counted(spec: SubnetSpec, shape: EncoderShape) -> None:
    cost = subnet_cost(spec, shape)
    assert (cost.encoder_params, cost.encoder_flops) == counted_encoder(spec, shape)


@pytest.mark.parametrize("name", ["tiny_space", "tiny_resolutions"])
def test_closed_form_equals_the_count_for_extremes_and_random_subnets(name, request):
    space, rng = request.getfixturevalue(name), np.random.default_rng(0)
    fixed = [space.largest(), space.medium(), space.smallest()]
    for spec in fixed + [space.sample(rng) for _ in range(12)]:
        assert_counted(spec, space.shape)


def test_closed_form_counts_the_padding_of_a_window_larger_than_the_image():
    assert_counted(SubnetSpec.full(WINDOW_LARGER_THAN_IMAGE), WINDOW_LARGER_THAN_IMAGE)


@pytest.mark.parametrize("name", SHAPES)
def test_closed_form_equals_the_count_for_named_models(name):
    space = published_space(SHAPES[name])
    for spec in (space.largest(), space.smallest(), space.sample(np.random.default_rng(0))):
        assert_counted(spec, space.shape)


def test_whole_model_parameters_and_prompt_flops_equal_the_count(tiny_shape):
    sam = build_sam(tiny_shape)
    cost = subnet_cost(SubnetSpec.full(tiny_shape), tiny_shape)
    assert cost.params == sum(p.numel() for p in sam.parameters())
    grid = (tiny_shape.grid, tiny_shape.grid)
    for prompts in (1, 3):
        with FlopCounterMode(display=False) as counter:
            sam.mask_decoder.predict_masks(
                image_embeddings=torch.zeros(1, 256, *grid),
                image_pe=torch.zeros(1, 256, *grid),
                sparse_prompt_embeddings=torch.zeros(prompts, 2, 256),
                dense_prompt_embeddings=torch.zeros(prompts, 256, *grid),
            )
        assert prompts * cost.prompt_flops == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "gflops", "params_m"),
    [("vit_b", 972.077, 89.67), ("vit_l", 2985.680, 308.28), ("vit_h", 5961.083, 637.03)],
)
def test_largest_subnets_cost_what_is_published(name, gflops, params_m):
    cost = subnet_cost(SubnetSpec.full(SHAPES[name]), SHAPES[name])
    assert round(cost.encoder_flops / 1e9, 3) == gflops
    assert round(cost.encoder_params / 1e6, 2) == params_m
    assert round(cost.prompt_flops / 1e9, 5) == 3.62260


@pytest.mark.parametrize(
    ("name", "gflops", "params_m"),
    [("vit_b", 382.7, 32.94), ("vit_l", 1057.6, 100.43), ("vit_h", 2069.4, 204.11)],
)
def test_smallest_published_subnets_cost_what_is_published(name, gflops, params_m):
    cost = subnet_cost(published_space(SHAPES[name]).smallest(), SHAPES[name])
    assert round(cost.encoder_flops / 1e9, 1) == gflops
    assert round(cost.encoder_params / 1e6, 2) == params_m


@pytest.mark.parametrize(
    ("name", "gflops", "params_m"), [("vit_l", 1351.6, 122.52), ("vit_h", 2703.8, 248.83)]
)
def test_the_layers_of_vit_b_removed_from_larger_models_cost_what_is_published(
    name, gflops, params_m
):
    shape = SHAPES[name]
    kept = tuple(layer for layer in range(shape.depth) if layer not in (1, 2, 5, 6, 9))
    spec = SubnetSpec(
        layers=kept,
        mlp_widths=(shape.mlp_width, *(768,) * (len(kept) - 1)),
        heads=(shape.num_heads,) * len(kept),
        embed_dim=shape.embed_dim,
    )
    cost = subnet_cost(spec, shape)
    assert round(cost.encoder_flops / 1e9, 1) == gflops
    assert round(cost.encoder_params / 1e6, 2) == params_m


def test_units_of_the_summary():
    cost = subnet_cost(published_space(SHAPES["vit_b"]).smallest(), SHAPES["vit_b"])
    assert round(cost.params_m, 1) == 37.0
    assert cost.flops_g == (cost.encoder_flops + cost.prompt_flops) / 1e9
