"""Reordering units: the largest subnet's function stays, prefixes keep the best, once is enough."""

from __future__ import annotations

import typing

import pytest
import torch

from supersam.config.design import DIMENSIONS, ScoreName
from supersam.design import (
    FunctionProbe,
    UnitScores,
    permute_tensor,
    prioritize_parameters,
    rank_units,
    score_units,
)
from supersam.model import SamSupernet, load_sam
from supersam.space import SHAPES, SubnetSpec, published_space
from tests.design.calibration_sets import task_loss, tiny_calibration

SCORES = typing.get_args(ScoreName)


@pytest.fixture(scope="module")
def calibration(synthetic_shards):
    return tiny_calibration(synthetic_shards)


@pytest.mark.parametrize("score", SCORES)
def test_prioritization_keeps_the_function_of_the_largest_subnet(make_supernet, calibration, score):
    supernet = make_supernet()
    probe = FunctionProbe(supernet, calibration[0])
    weights = {name: p.clone() for name, p in supernet.named_parameters()}
    order = prioritize_parameters(
        supernet, score_units(supernet, calibration, score=score, loss=task_loss)
    )
    assert not order.is_identity
    assert any(not torch.equal(p, weights[name]) for name, p in supernet.named_parameters())
    change = probe.compare()
    assert change.embedding <= 1e-5
    assert change.masks <= 1e-5 * max(1.0, change.largest_logit)


@pytest.mark.parametrize("score", SCORES)
def test_prioritizing_twice_changes_nothing_the_second_time(make_supernet, calibration, score):
    supernet = make_supernet()
    for expected in (False, True):
        scores = score_units(supernet, calibration, score=score, loss=task_loss)
        order = prioritize_parameters(supernet, scores)
        if score != "movement" or not expected:
            assert order.is_identity == expected
    if score == "movement":  # its walk is chaotic: rounding moves it, so only nearly the same
        moved = (order.mlp != torch.arange(order.mlp.shape[1])).float().mean()
        assert moved < 0.2


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_one_dimension_alone_keeps_the_function_and_leaves_the_others(
    make_supernet, calibration, dimension
):
    supernet = make_supernet()
    probe = FunctionProbe(supernet, calibration[0])
    scores = score_units(supernet, calibration, score="random")
    order = prioritize_parameters(supernet, scores, dimensions=(dimension,))
    assert probe.compare().embedding <= 1e-5
    for other in DIMENSIONS:
        rows = getattr(order, other)
        stays = torch.equal(rows, torch.arange(rows.shape[-1]).expand_as(rows))
        assert stays == (other != dimension)


def test_a_prefix_of_the_reordered_weights_is_the_pick_of_the_best_units(make_supernet):
    """The subnet of k units == the supernet with all other units' columns at zero."""
    supernet, picked = make_supernet(), make_supernet()
    shape, space = supernet.space.shape, supernet.space
    scores = score_units(supernet, [], score="magnitude")
    order = prioritize_parameters(supernet, scores, dimensions=("mlp", "heads"))
    width, heads = 64, 2
    for layer, block in enumerate(picked.image_encoder.blocks):
        block.mlp.lin2.weight.data[:, order.mlp[layer, width:]] = 0.0
        columns = block.attn.proj.weight.data.view(-1, shape.num_heads, shape.head_dim)
        columns[:, order.heads[layer, heads:]] = 0.0
    spec = SubnetSpec(
        space.largest().layers, (width,) * shape.depth, (heads,) * shape.depth, shape.embed_dim
    )
    x = torch.randn(1, 3, shape.image_size, shape.image_size)
    with torch.no_grad():
        torch.testing.assert_close(
            supernet.image_encoder(x, spec),
            picked.image_encoder(x, space.largest()),
            rtol=1e-4,
            atol=1e-5,
        )


def test_every_weight_of_the_encoder_with_units_on_it_is_permuted(make_supernet):
    """Swapping names for indices: each element moves to where its units went."""
    supernet = make_supernet()
    shape = supernet.space.shape
    order = rank_units(score_units(supernet, [], score="random"))
    untouched = {
        name
        for name, p in supernet.named_parameters()
        if permute_tensor(name, p, order, shape) is p and name.startswith("image_encoder")
    }
    stay = {n for n in untouched if "rel_pos" in n}
    stay |= {n for n in untouched if n.startswith("image_encoder.neck.") and ".0." not in n}
    assert untouched == stay


def test_ranking_keeps_ties_and_rows_in_order_up_to_rounding():
    row = torch.tensor([3.0, 2.0, 2.00001, 1.0, 1.0])
    order = rank_units(UnitScores(row[None].double(), torch.ones(1, 3).double(), row.flip(0)))
    assert order.mlp.tolist() == [[0, 1, 2, 3, 4]]
    assert order.heads.tolist() == [[0, 1, 2]]
    assert order.embed.tolist() == [4, 2, 3, 0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_t", "vit_b"])
def test_function_is_kept_at_real_sizes(name):
    """ViT-B's widths, at a quarter of its input side: its tables of positions are cut."""
    shape = SHAPES[name]
    if name == "vit_b":
        shape = type(shape)(**{**vars(shape), "image_size": 256})
    supernet = SamSupernet(load_sam(shape, seed=1), published_space(shape))
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8, generator=generator)
    size = torch.tensor([[256, 256]])
    with torch.no_grad():
        before = supernet.encode(image, size)
        order = prioritize_parameters(supernet, score_units(supernet, [], score="random"))
        assert not order.is_identity
        assert float((supernet.encode(image, size) - before).abs().max()) <= 1e-5
