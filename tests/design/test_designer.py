"""Evidence and limits to a space, without a model."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from supersam.config import DesignRun, UserError
from supersam.config.design import LimitsConfig, ScanConfig
from supersam.design import Sensitivity, UnitScores, design_space
from supersam.design.cache import RemovalEffect
from supersam.design.designer import (
    cumulative_importance,
    removal_probabilities,
    require_reachable,
    smallest_m,
)
from supersam.design.session import design
from supersam.space import SHAPES, published_space, subnet_cost, wide_space

VIT_B = SHAPES["vit_b"]


def flat_scores(shape) -> UnitScores:
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    return UnitScores(
        draw(shape.depth, shape.mlp_width),
        draw(shape.depth, shape.num_heads),
        draw(shape.embed_dim),
    )


def sensitivity(order=(9, 1, 6, 3, 7, 4), drop=0.03) -> Sensitivity:
    """Greedy removal in `order`; each layer costs `drop`."""

    def effect(layers):
        return RemovalEffect(tuple(sorted(layers)), 0.8 - drop * len(layers), 0.1 * len(layers))

    path = [effect(order[: k + 1]) for k in range(len(order))]
    return Sensitivity(effect(()), tuple(effect((i,)) for i in range(12)), tuple(path))


def test_the_presets_are_the_paper_space_and_a_wide_one_below_10_m():
    made = {
        name: design_space(VIT_B, flat_scores(VIT_B), sensitivity(), LimitsConfig(preset=name))
        for name in ("published", "wide")
    }
    assert made["published"] == published_space(VIT_B)
    assert made["published"].num_subnets() == 5**5 * 4**6
    assert made["wide"] == wide_space(VIT_B)
    assert smallest_m(made["wide"]) < 10


@pytest.mark.parametrize("name", ["vit_s", "vit_b", "vit_l", "vit_h"])
def test_the_wide_space_and_the_designer_reach_subnets_that_are_70_percent_smaller(name):
    shape = SHAPES[name]
    wide = wide_space(shape)
    wanted = 0.3 * subnet_cost(wide.largest(), shape).params_m
    assert smallest_m(wide) <= wanted
    assert float(re.search(r"([\d.]+) % smaller", wide.describe_ends()[1])[1]) >= 70
    limits = LimitsConfig(smallest_m=wanted, elastic_heads=True, elastic_embed=True)
    designed = design_space(shape, flat_scores(shape), sensitivity(), limits)
    assert smallest_m(designed) <= wanted


@pytest.mark.parametrize("name", ["vit_t", "vit_l", "vit_h"])
def test_the_published_rule_holds_for_other_depths(name):
    space = published_space(SHAPES[name])
    share = len(space.removable) / SHAPES[name].depth
    assert share == pytest.approx(5 / 12, abs=0.05)
    assert space.removal[0] == 0


def test_removable_layers_are_those_that_greedy_removal_took_within_the_drop():
    space = design_space(VIT_B, flat_scores(VIT_B), sensitivity(), LimitsConfig(max_miou_drop=0.1))
    assert space.removable == (1, 6, 9)
    assert space.removal[9] > space.removal[1] > space.removal[6]
    assert np.mean([p for p in space.removal if p > 0]) == pytest.approx(0.5)


def test_probabilities_stay_within_reason_for_any_mean():
    for mean in (0.1, 0.5, 0.9):
        found = removal_probabilities((3, 1, 2), 5, mean)
        assert all(0 <= p < 1 for p in found)
        assert found[3] > found[1] > found[2]
        assert found[0] == found[4] == 0
    assert removal_probabilities((2,), 3, 0.5) == (0.0, 0.0, 0.5)


def test_a_layer_of_concentrated_importance_becomes_narrower():
    scores = flat_scores(VIT_B)
    scores.mlp[4, 100:] = 1e-6
    space = design_space(VIT_B, scores, sensitivity())
    assert space.mlp_widths[4][0] < min(space.mlp_widths[i][0] for i in range(12) if i != 4)
    for widths in space.mlp_widths:
        assert len(widths) == 4
        assert widths[-1] == VIT_B.mlp_width
        assert all(width % 64 == 0 for width in widths)


def test_the_smallest_width_keeps_the_share_that_was_asked_for():
    scores, limits = flat_scores(VIT_B), LimitsConfig(keep_importance=0.5)
    space = design_space(VIT_B, scores, sensitivity(), limits)
    for row, widths in zip(scores.mlp, space.mlp_widths, strict=True):
        shares = cumulative_importance(row)
        assert shares[widths[0] - 1] >= 0.5
        assert shares[widths[0] - 65] < 0.5


@pytest.mark.parametrize("wanted", [60.0, 40.0, 9.5])
def test_the_size_wanted_is_reached(wanted):
    limits = LimitsConfig(smallest_m=wanted, elastic_heads=True, elastic_embed=True, widths=3)
    space = design_space(VIT_B, flat_scores(VIT_B), sensitivity(), limits)
    assert smallest_m(space) <= wanted
    assert subnet_cost(space.largest(), VIT_B).params_m == pytest.approx(93.7, abs=0.1)


def test_limits_that_no_space_meets_name_the_nearest_that_one_does():
    limits = LimitsConfig(smallest_m=9.0)
    with pytest.raises(UserError, match=r"smallest-m 9:.*--limits.smallest-m (\d+\.\d+)") as fault:
        design_space(VIT_B, flat_scores(VIT_B), sensitivity(), limits)
    assert "elastic-heads" in str(fault.value)
    import re

    nearest = float(re.search(r"--limits.smallest-m (\d+\.\d+)", str(fault.value))[1])
    met = design_space(VIT_B, flat_scores(VIT_B), sensitivity(), LimitsConfig(smallest_m=nearest))
    assert smallest_m(met) <= nearest


ALL_ELASTIC = {"elastic_heads": True, "elastic_embed": True}


@pytest.mark.parametrize("elastic", [{}, ALL_ELASTIC])
def test_limits_that_no_evidence_could_meet_are_refused_with_the_nearest_before_it(elastic):
    scan = ScanConfig()
    with pytest.raises(UserError, match=r"smallest-m 1:.*--limits.smallest-m (\d+\.\d+)") as fault:
        require_reachable(VIT_B, LimitsConfig(smallest_m=1.0, **elastic), scan)
    assert ("elastic-heads" in str(fault.value)) == (not elastic)
    nearest = float(re.search(r"--limits.smallest-m (\d+\.\d+)", str(fault.value))[1])
    require_reachable(VIT_B, LimitsConfig(smallest_m=nearest, **elastic), scan)
    with pytest.raises(UserError):
        require_reachable(VIT_B, LimitsConfig(smallest_m=nearest - 0.02, **elastic), scan)


@pytest.mark.parametrize("keep_global", [2, 4])
def test_what_the_best_evidence_gives_is_the_bound_before_it(keep_global):
    """All units but one are worthless, and six layers may go, of them as many global ones."""
    scan = ScanConfig(keep_global=keep_global)
    order = (*VIT_B.global_layers[: 4 - keep_global], 0, 1, 3, 4, 6, 7)[:6]
    best = flat_scores(VIT_B)
    for rows in (best.mlp, best.heads, best.embed):
        rows[..., 1:] = 0
    limits = LimitsConfig(smallest_m=1.0, **ALL_ELASTIC)
    with pytest.raises(UserError, match="whatever the design measures") as fault:
        require_reachable(VIT_B, limits, scan)
    bound = float(re.search(r"fewer than (\d+\.\d+) M", str(fault.value))[1])
    limits = LimitsConfig(smallest_m=bound, max_miou_drop=1.0, **ALL_ELASTIC)
    space = design_space(VIT_B, best, sensitivity(order), limits)
    assert smallest_m(space) == pytest.approx(bound, abs=0.01)


def test_limits_that_cannot_be_met_are_refused_before_anything_is_measured(
    trained, tmp_path, synthetic_shards
):
    limits = {"smallest_m": 0.01}
    asked = DesignRun(
        data=(synthetic_shards,),
        checkpoint=trained.folder,
        out=tmp_path / "space.yaml",
        limits=limits,
        calibration={"images": 2},
        device="cpu",
        threads=1,
    )
    with pytest.raises(UserError, match="whatever the design measures"):
        design(asked)
    assert not list(tmp_path.rglob("cache*"))


def test_limits_that_leave_one_subnet_are_refused():
    limits = LimitsConfig(elastic_depth=False, elastic_mlp=False)
    with pytest.raises(UserError, match="leave one subnet"):
        design_space(VIT_B, flat_scores(VIT_B), sensitivity(), limits)
