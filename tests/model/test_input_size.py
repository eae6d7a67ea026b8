"""Weights of one input size in a model of another."""

import logging
from dataclasses import replace

import pytest
import torch
from segment_anything.modeling.image_encoder import get_rel_pos

from supersam.config import UserError
from supersam.model import load_sam
from supersam.model.input_size import fit_positions
from supersam.model.sam import build_sam, require_fitting
from supersam.space import SHAPES

POS = "image_encoder.pos_embed"
GLOBAL_TABLE = "image_encoder.blocks.1.attn.rel_pos_h"


@pytest.fixture
def saved(tiny_shape, tmp_path):
    """A file of a model of 80 px with positions that are not zero."""
    path = tmp_path / "tiny.pth"
    state = load_sam(tiny_shape, seed=5).state_dict()
    generator = torch.Generator().manual_seed(0)
    for name in state:
        if "rel_pos" in name:
            state[name] = torch.randn(state[name].shape, generator=generator)
    torch.save(state, path)
    return path


def test_at_its_own_size_every_tensor_stays_what_it_was(tiny_shape, saved):
    state = torch.load(saved)
    fitted = fit_positions(state, tiny_shape, saved)
    assert all(fitted[name] is state[name] for name in state)
    loaded = load_sam(tiny_shape, saved).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("size", [48, 112, 160])
def test_relative_positions_are_those_of_segment_anythings_own_interpolation(
    tiny_shape, saved, size
):
    shape = replace(tiny_shape, image_size=size)
    before, after = torch.load(saved), load_sam(shape, saved).state_dict()
    for layer in shape.global_layers:
        for axis in "hw":
            name = f"image_encoder.blocks.{layer}.attn.rel_pos_{axis}"
            assert len(after[name]) == 2 * shape.grid - 1
            theirs = get_rel_pos(shape.grid, shape.grid, before[name])
            assert torch.equal(get_rel_pos(shape.grid, shape.grid, after[name]), theirs)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    tables = {n for n in before if "rel_pos" in n and int(n.split(".")[2]) in shape.global_layers}
    assert changed == tables | {POS}  # windows and all other weights are as they were


def test_a_position_embedding_keeps_its_form(tiny_shape):
    """A slope stays a slope, from edge to edge; its values belong to the middle of each patch."""
    state = {POS: torch.arange(16.0).add(0.5).div(16).expand(1, 16, 16).unsqueeze(-1).clone()}
    for grid in (8, 40):
        shape = replace(tiny_shape, image_size=16 * grid)
        found = fit_positions(state, shape, None)[POS][0, :, :, 0]
        expected = torch.arange(grid).add(0.5).div(grid)
        assert torch.allclose(found, found[:1].expand_as(found))
        inside = slice(grid // 8, -(grid // 8))  # at the edges there is nothing to go on from
        torch.testing.assert_close(found[0, inside], expected[inside], rtol=0, atol=0.01)


@pytest.mark.parametrize("size", [256, 512])
def test_an_official_checkpoint_fits_smaller_inputs(size):
    with torch.device("meta"):
        official = build_sam(SHAPES["vit_b"]).state_dict()
        wanted = build_sam(replace(SHAPES["vit_b"], image_size=size)).state_dict()
    fitted = fit_positions(official, replace(SHAPES["vit_b"], image_size=size), None)
    assert official[POS].shape == (1, 64, 64, 768)
    assert {n: t.shape for n, t in fitted.items()} == {n: t.shape for n, t in wanted.items()}


def test_one_line_says_what_was_interpolated(tiny_shape, saved, caplog):
    with caplog.at_level(logging.INFO, logger="supersam"):
        load_sam(tiny_shape, saved)
        assert caplog.messages == []
        require_fitting(replace(tiny_shape, image_size=112), saved)  # as a dry run does
    (line,) = caplog.messages
    assert line == (
        f"{saved}: made for images of 80 px; at 112 px the position embedding (5 x 5 to 7 x 7, "
        "bicubic) and the relative positions of the global layers 1, 3 (linear) are interpolated"
    )


def test_another_model_is_refused_at_any_size(tiny_shape, saved):
    other = replace(tiny_shape, image_size=112, global_layers=(3,))
    with pytest.raises(UserError, match=r"does not fit this model: 2 of another shape.*blocks\.1"):
        load_sam(other, saved)
    wider = replace(tiny_shape, image_size=112, window_size=4)
    with pytest.raises(UserError, match=r"4 of another shape: image_encoder\.blocks\.0.*rel_pos"):
        load_sam(wider, saved)


def test_half_precision_weights_are_interpolated_too(tiny_shape):
    state = load_sam(tiny_shape).half().state_dict()
    fitted = fit_positions(state, replace(tiny_shape, image_size=48), None)
    assert fitted[POS].dtype == fitted[GLOBAL_TABLE].dtype == torch.float16
    assert fitted[POS].shape == (1, 3, 3, 96)


def test_the_model_predicts_at_the_new_size(tiny_shape, saved):
    sam = load_sam(replace(tiny_shape, image_size=112), saved)
    with torch.no_grad():
        embedding = sam.image_encoder(torch.randn(1, 3, 112, 112))
    assert embedding.shape == (1, 256, 7, 7)
    assert embedding.isfinite().all()
