"""An extracted subnet is a Sam that segment-anything's own tools accept."""

import dataclasses

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam

from supersam.data.sample import LABEL_FOREGROUND, LABEL_PAD
from supersam.model import extract_subnet
from supersam.space import subnet_cost


@pytest.fixture(scope="module")
def supernet(make_supernet):
    return make_supernet()


@pytest.fixture(scope="module")
def image(tiny_shape):
    side = tiny_shape.image_size
    return np.random.default_rng(0).integers(0, 256, (side - 20, side, 3), np.uint8)


def test_it_is_a_plain_sam_with_small_weights_of_its_own(supernet):
    space = supernet.space
    shared = {p.data_ptr() for p in supernet.parameters()}
    for spec in (space.largest(), space.medium(), space.smallest()):
        sam = extract_subnet(supernet, spec)
        assert type(sam) is Sam
        assert not sam.training
        parameters = list(sam.parameters())
        assert sum(p.numel() for p in parameters) == subnet_cost(spec, space.shape).params
        assert not any(p.requires_grad or p.data_ptr() in shared for p in parameters)


def test_changing_it_leaves_the_supernet_alone(supernet):
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    sam = extract_subnet(supernet, supernet.space.smallest())
    with torch.no_grad():
        for parameter in sam.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(supernet.state_dict()[name], before[name]) for name in before)


def test_the_predictor_says_what_the_supernet_says(supernet, image):
    height, width = image.shape[:2]
    for spec in (supernet.space.medium(), supernet.space.smallest()):
        predictor = SamPredictor(extract_subnet(supernet, spec))
        predictor.set_image(image)
        point = np.array([[12.0, 30.0]])
        masks, ious, logits = predictor.predict(point, np.array([1]), multimask_output=True)
        assert masks.shape == (3, height, width)
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        padded = torch.nn.functional.pad(pixels, (0, 0, 0, width - height))
        points = torch.tensor([[[[12.0, 30.0], [0.0, 0.0]]]])
        labels = torch.tensor([[[LABEL_FOREGROUND, LABEL_PAD]]])
        with torch.no_grad(), supernet.activated(spec):
            mine = supernet(padded[None], torch.tensor([[height, width]]), points, labels)
        np.testing.assert_allclose(mine.masks[0, 0, 1:].numpy(), logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(mine.ious[0, 0, 1:].numpy(), ious, rtol=1e-5, atol=1e-5)


def test_the_automatic_mask_generator_runs_on_it(supernet, image):
    sam = extract_subnet(supernet, supernet.space.smallest())
    generator = SamAutomaticMaskGenerator(
        sam,
        points_per_side=2,
        pred_iou_thresh=-1e9,
        stability_score_thresh=-1.0,
        box_nms_thresh=1.1,
    )
    masks = generator.generate(image)
    assert len(masks) > 0
    assert all(mask["segmentation"].shape == image.shape[:2] for mask in masks)


def test_what_is_no_slice_is_refused(supernet):
    wrong = dataclasses.replace(supernet.space.smallest(), embed_dim=97)
    with pytest.raises(ValueError, match="embed_dim: 97 is outside 1 to 96"):
        extract_subnet(supernet, wrong)
