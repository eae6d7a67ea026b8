"""The supernet's state: which subnet is active, and that its weights are never copied."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from supersam.config import SpaceConfig
from supersam.model import SamSupernet, load_sam
from supersam.space import EncoderShape, build_space
from tests.model.scenes import random_scene

LAYERS = (F.linear, F.conv2d, F.layer_norm)


class WeightsUsed(TorchFunctionMode):
    """Storage addresses of the weights given to layers."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in LAYERS:
            weight = (kwargs or {}).get("weight")
            weight = args[1] if weight is None else weight
            self.storages.add(weight.untyped_storage().data_ptr())
        return func(*args, **(kwargs or {}))


class LargestAllocation(TorchDispatchMode):
    """Bytes of the largest new storage that an operation made."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.known:
                    self.bytes = max(self.bytes, storage.nbytes())
        return made


def storages(supernet: SamSupernet) -> set[int]:
    return {p.untyped_storage().data_ptr() for p in supernet.parameters()}


def test_weights_of_every_subnet_are_views_of_the_supernets(make_supernet, tiny_space):
    supernet = make_supernet()
    scene = random_scene(tiny_space.shape.image_size)
    for spec in (tiny_space.largest(), tiny_space.medium(), tiny_space.smallest()):
        with torch.no_grad(), supernet.activated(spec), WeightsUsed() as used:
            supernet(*scene.inputs())
        assert len(used.storages) > 20
        assert used.storages <= storages(supernet)


def test_encoding_by_a_subnet_copies_no_weights():
    """Wide layers and a 2 x 2 grid: activations are small, any copy of a weight would show."""
    shape = EncoderShape(768, 1, 12, (), image_size=32, window_size=2)
    config = SpaceConfig(
        removable=(), elastic_heads=True, elastic_embed=True, embed_fractions=(0.5,)
    )
    space = build_space(config, shape)
    supernet = SamSupernet(load_sam(shape), space)
    scene = random_scene(32, images=1, prompts=1)
    smallest_matrix = 4 * 384 * 192  # bytes of the smallest of its sliced matrices
    with supernet.activated(space.smallest()), LargestAllocation(storages(supernet)) as largest:
        supernet.encode(scene.images, scene.sizes)
    assert 0 < largest.bytes < smallest_matrix / 2


def test_activating_restores_the_former_subnet_even_on_errors(make_supernet, tiny_space):
    supernet = make_supernet()
    small, medium = tiny_space.smallest(), tiny_space.medium()
    assert supernet.active_subnet == tiny_space.largest()
    supernet.set_active_subnet(medium)
    with supernet.activated(small):
        assert supernet.active_subnet == small
        with supernet.activated(tiny_space.largest()):
            pass
        assert supernet.active_subnet == small
    assert supernet.active_subnet == medium
    with pytest.raises(RuntimeError, match="mid-way"), supernet.activated(small):
        raise RuntimeError("mid-way")
    assert supernet.active_subnet == medium


def test_what_is_no_slice_of_the_encoder_is_refused_and_changes_nothing(make_supernet, tiny_space):
    supernet = make_supernet()
    wrong = dataclasses.replace(tiny_space.smallest(), heads=(4,))
    with pytest.raises(ValueError, match="heads: 4 is outside 1 to 3"):
        supernet.set_active_subnet(wrong)
    with pytest.raises(ValueError, match="not a subnet"), supernet.activated(wrong):
        pass
    assert supernet.active_subnet == tiny_space.largest()


def test_a_slice_outside_the_space_still_runs(make_supernet, tiny_space):
    """Pruning studies look at subnets that the search space does not hold."""
    supernet = make_supernet()
    odd = dataclasses.replace(tiny_space.smallest(), layers=(2,), mlp_widths=(37,), embed_dim=41)
    assert not tiny_space.contains(odd)
    scene = random_scene(tiny_space.shape.image_size)
    with torch.no_grad(), supernet.activated(odd):
        assert supernet(*scene.inputs()).masks.isfinite().all()


def test_bf16_autocast_stays_close_and_returns_float32(make_supernet, tiny_space):
    supernet = make_supernet(attention="sdpa")
    scene = random_scene(tiny_space.shape.image_size)
    with torch.no_grad():
        exact = supernet(*scene.inputs())
        with torch.autocast("cpu", torch.bfloat16):
            rounded = supernet(*scene.inputs())
    assert rounded.masks.dtype == rounded.ious.dtype == torch.float32
    assert (rounded.masks - exact.masks).norm() < 0.1 * exact.masks.norm()


def test_weights_change_hands_as_a_state_dict(make_supernet, tiny_space):
    first, second = make_supernet(seed=1), make_supernet(seed=2)
    scene = random_scene(tiny_space.shape.image_size)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert torch.equal(first(*scene.inputs()).masks, second(*scene.inputs()).masks)
