"""The stand-in of the published way really trains: a comparison with a broken one is worthless."""

import copy

import numpy as np
import pytest
import torch

from supersam.config import SpaceConfig
from supersam.model import SamSupernet, extract_subnet, load_sam
from supersam.space import EncoderShape, SearchSpace, SubnetSpec, build_space

SMALL = EncoderShape(96, 4, 3, (1, 3), image_size=80, window_size=3)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return build_space(SpaceConfig(removable=(1, 2), width_multiple=32), SMALL)


def published_after(space: SearchSpace, spec: SubnetSpec, images, direction):
    from benchmarks.published import PublishedStep

    sam = load_sam(space.shape)
    PublishedStep(sam, space.shape).train_encoder([spec], images, direction)
    return sam


@pytest.mark.parametrize("which", ["largest", "smallest", "random"])
def test_the_published_step_of_one_subnet_is_one_adamw_step_of_its_slices(space, which):
    from benchmarks.published import LR

    spec = space.sample(np.random.default_rng(1)) if which == "random" else getattr(space, which)()
    torch.manual_seed(0)
    images, direction = torch.randn(1, 3, 80, 80), torch.randn(1, 256, 5, 5)
    supernet = SamSupernet(load_sam(space.shape), space)
    (supernet.image_encoder(images, spec) * direction).sum().backward()
    expected = copy.deepcopy(supernet)
    for mine, theirs in zip(expected.parameters(), supernet.parameters(), strict=True):
        mine.grad = theirs.grad
    torch.optim.AdamW(expected.parameters(), lr=LR, weight_decay=0.0).step()
    trained = published_after(space, spec, images, direction)
    start = extract_subnet(supernet, space.largest()).image_encoder.state_dict()
    wanted = extract_subnet(expected, space.largest()).image_encoder.state_dict()
    for name, tensor in trained.image_encoder.state_dict().items():
        moved = (tensor - start[name]).abs()
        assert moved.max() <= 1.1 * LR
        if "bias" in name and "qkv" in name:
            continue  # a bias of keys has no gradient but rounding
        clear = (wanted[name] - start[name]).abs() > 0.9 * LR  # beyond rounding of the gradient
        agree = (tensor - wanted[name]).abs() < 0.1 * LR
        assert (agree | ~clear).float().mean() > 0.99, name
        if torch.equal(wanted[name], start[name]):  # a removed layer
            assert torch.equal(tensor, start[name])
