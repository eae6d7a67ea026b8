"""Subnets of several resolutions in one supernet, against models that have that size."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from supersam.data.sample import LABEL_FOREGROUND, LABEL_PAD, Batch
from supersam.evaluation import SamModelPredictor, SubnetPredictor
from supersam.model import SamSupernet, extract_subnet
from supersam.model.input_size import fit_positions, resize_batch, resize_images, scale_points
from supersam.model.sam import build_sam
from supersam.space import SubnetSpec, subnet_cost
from tests.model.scenes import random_scene


@pytest.fixture(scope="module")
def supernet(make_supernet, tiny_resolutions):
    return make_supernet(tiny_resolutions)


def subnets(space):
    random = np.random.default_rng(3)
    drawn = [space.sample(random) for _ in range(6)]
    at_all = [replace(space.largest(), resolution=px) for px in space.resolution_genes]
    return [space.smallest(), space.medium(), *at_all, *drawn]


def test_a_subnet_says_bit_for_bit_what_its_extracted_model_says(supernet):
    space = supernet.space
    for spec in subnets(space):
        side = space.input_px(spec)
        sam, scene = extract_subnet(supernet, spec), random_scene(side)
        assert sam.image_encoder.img_size == side
        assert sum(p.numel() for p in sam.parameters()) == subnet_cost(spec, space.shape).params
        mine = SubnetPredictor(supernet, spec).predict(*scene.inputs())
        theirs = SamModelPredictor(sam).predict(*scene.inputs())
        assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("resolution", [48, 64])
def test_the_whole_encoder_is_the_model_whose_weights_are_fitted_to_that_size(
    make_supernet, supernet, resolution
):
    """As `--model.image-size` fits them."""
    shape, own = supernet.space.shape.at(resolution), supernet.space.largest()
    smaller = make_supernet(replace(supernet.space, shape=shape, resolutions=()))
    smaller.load_state_dict(fit_positions(supernet.state_dict(), shape, None))
    scene = random_scene(resolution)
    with torch.no_grad(), supernet.activated(replace(own, resolution=resolution)):
        mine, theirs = supernet(*scene.inputs()), smaller(*scene.inputs())
    assert torch.equal(mine.masks, theirs.masks)
    assert torch.equal(mine.embedding, theirs.embedding)


def test_at_the_models_own_size_nothing_changes(make_supernet, supernet, tiny_space):
    plain, scene = make_supernet(tiny_space), random_scene(80)
    for spec in (tiny_space.largest(), tiny_space.smallest()):
        with torch.no_grad(), supernet.activated(spec), plain.activated(spec):
            assert torch.equal(supernet(*scene.inputs()).masks, plain(*scene.inputs()).masks)


def test_segment_anythings_predictor_says_the_same(supernet):
    """It scales points and pads by itself."""
    side = 48
    image = np.random.default_rng(0).integers(0, 256, (36, side, 3), np.uint8)
    spec = replace(supernet.space.medium(), resolution=side)
    predictor = SamPredictor(extract_subnet(supernet, spec))
    predictor.set_image(image)
    logits = predictor.predict(np.array([[12.0, 30.0]]), np.array([1]))[2]
    padded = torch.nn.functional.pad(torch.from_numpy(image).permute(2, 0, 1), (0, 0, 0, 12))
    points = torch.tensor([[[[12.0, 30.0], [0.0, 0.0]]]])
    labels = torch.tensor([[[LABEL_FOREGROUND, LABEL_PAD]]])
    mine, _ = SubnetPredictor(supernet, spec).predict(
        padded[None], torch.tensor([[36, side]]), points, labels
    )
    np.testing.assert_allclose(mine[0, 0, 1:].numpy(), logits, rtol=1e-5, atol=1e-5)


def test_larger_images_are_scaled_and_their_prompts_with_them(supernet):
    spec, scene = supernet.space.smallest(), random_scene(80)
    predictor = SubnetPredictor(supernet, spec)
    images, sizes = resize_images(scene.images, scene.sizes, 48)
    points = scale_points(scene.points, 80, 48)
    assert images.dtype == torch.uint8
    assert torch.equal(points, scene.points * 0.6)
    found = predictor.predict(*scene.inputs())[0]
    assert found.shape[-1] == 12
    assert torch.equal(found, predictor.predict(images, sizes, points, scene.labels)[0])


def test_images_of_another_size_than_the_subnets_are_refused(supernet):
    spec, scene = supernet.space.smallest(), random_scene(80)
    with supernet.activated(spec), pytest.raises(ValueError, match="80 px for a subnet of 48 px"):
        supernet(*scene.inputs())


def test_the_shared_positions_learn_from_every_resolution(make_supernet, tiny_resolutions):
    for resolution in (48, 64):
        supernet = make_supernet(tiny_resolutions)
        whole = replace(tiny_resolutions.largest(), resolution=resolution)
        with supernet.activated(whole):
            supernet(*random_scene(resolution).inputs()).masks.square().mean().backward()
        gradient = supernet.image_encoder.pos_embed.grad
        assert (gradient.abs().amax(-1) > 0).all()  # each place of the larger grid
        for layer in tiny_resolutions.shape.global_layers:
            table = supernet.image_encoder.blocks[layer].attn.rel_pos_h
            assert (table.grad.abs().amax(-1) > 0).float().mean() > 0.7


@pytest.mark.parametrize("attention", ["sdpa", "reference"])
def test_every_way_to_attend_knows_the_grid(make_supernet, supernet, tiny_resolutions, attention):
    other = make_supernet(tiny_resolutions, attention=attention)
    for resolution in (48, 64):
        spec, scene = replace(other.space.medium(), resolution=resolution), random_scene(resolution)
        one, two = (
            SubnetPredictor(each, spec).predict(*scene.inputs()) for each in (supernet, other)
        )
        torch.testing.assert_close(one[0], two[0], rtol=1e-4, atol=1e-4)


def test_a_batch_is_scaled_as_if_it_had_been_loaded_so(supernet):
    """A square object, half of the image: its share of the cells and its prompts stay."""
    images = torch.zeros(1, 3, 80, 80, dtype=torch.uint8)
    images[..., :40] = 200
    masks = torch.zeros(1, 1, 20, 20, dtype=torch.uint8)
    masks[..., :10] = 255
    batch = Batch(
        images=images,
        sizes=torch.tensor([[60, 80]]),
        points=torch.tensor([[[[20.0, 40.0], [0.0, 0.0]]]]),
        labels=torch.tensor([[[LABEL_FOREGROUND, LABEL_PAD]]]),
        masks=masks,
        valid=torch.tensor([[True]]),
        sample_ids=torch.tensor([5]),
    )
    assert resize_batch(batch, 80) is batch
    small = resize_batch(batch, 48)
    assert small.images.shape == (1, 3, 48, 48)
    assert (small.images[..., :20] == 200).all()
    assert (small.images[..., 28:] == 0).all()
    assert small.sizes.tolist() == [[36, 48]]
    assert small.points[0, 0, 0].tolist() == [12.0, 24.0]
    assert small.masks.shape == (1, 1, 12, 12)
    assert small.masks.float().mean() == masks.float().mean()
    assert small.valid is batch.valid


def test_a_prediction_is_brought_to_the_grid_of_another(supernet):
    scene = random_scene(80)
    with torch.no_grad():
        whole = supernet(*scene.inputs())
    assert whole.at_grid(5) is whole
    smaller = whole.at_grid(3)
    assert smaller.masks.shape == (2, 3, 4, 12, 12)
    assert smaller.embedding.shape == (2, 256, 3, 3)
    assert smaller.ious is whole.ious
    np.testing.assert_allclose(smaller.masks.mean(), whole.masks.mean(), atol=0.05)


def test_a_real_size_has_its_grid(tiny_shape):
    """Shapes alone: ViT-B at 512 px."""
    from supersam.space import SHAPES, published_space

    space = replace(published_space(SHAPES["vit_b"]), resolutions=(512, 1024))
    with torch.device("meta"):
        supernet = SamSupernet(build_sam(space.shape), space)
        spec = replace(SubnetSpec.full(space.shape), resolution=512)
        embedding = supernet.image_encoder(torch.empty(1, 3, 512, 512), spec)
    assert embedding.shape == (1, 256, 32, 32)
