"""Where SAM weights come from: sizes, random weights, checkpoint files good and bad."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything.build_sam import build_sam_vit_b, build_sam_vit_h, build_sam_vit_l
from torch import nn

from supersam.config import ModelConfig, UserError
from supersam.model import load_sam
from supersam.model.sam import build_sam
from supersam.space import SHAPES, resolve_shape

OFFICIAL = {"vit_b": build_sam_vit_b, "vit_l": build_sam_vit_l, "vit_h": build_sam_vit_h}


@pytest.fixture(scope="module")
def official_file(tiny_shape, tmp_path_factory) -> Path:
    """A state dict saved as Meta saves its checkpoints."""
    path = tmp_path_factory.mktemp("weights") / "sam_tiny.pth"
    torch.save(load_sam(tiny_shape, seed=5).state_dict(), path)
    return path


@pytest.mark.parametrize("name", OFFICIAL)
def test_named_models_have_the_names_and_shapes_of_the_official_ones(name):
    with torch.device("meta"):
        official, mine = OFFICIAL[name]().state_dict(), build_sam(SHAPES[name]).state_dict()
    assert {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in official.items()}


def test_the_small_model_is_as_promised():
    shape = SHAPES["vit_t"]
    sizes = (shape.embed_dim, shape.depth, shape.num_heads, shape.image_size, shape.window_size)
    assert sizes == (192, 12, 3, 256, 8)


def test_an_official_checkpoint_gives_back_its_weights(tiny_shape, official_file):
    saved, loaded = torch.load(official_file), load_sam(tiny_shape, official_file).state_dict()
    assert list(loaded) == list(saved)
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_random_weights_follow_the_seed_and_leave_global_randomness_alone(tiny_shape):
    def weights(seed: int) -> torch.Tensor:
        parameters = load_sam(tiny_shape, seed=seed).parameters()
        return torch.cat([p.flatten() for p in parameters])

    torch.manual_seed(11)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002 - the global state
    first = weights(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002 - must not change
    torch.manual_seed(12)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


def test_random_weights_can_be_trained_from(tiny_shape):
    """Positions are told apart from the first step on; segment-anything leaves them at zero."""
    encoder = load_sam(tiny_shape).image_encoder
    assert 0.01 < encoder.pos_embed.std() < 0.03
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            assert 0.01 < module.weight.std() < 0.03


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match="'vit_x' is not one of vit_t, vit_s, vit_b, vit_l, vit_h"):
        load_sam("vit_x")


def test_a_file_of_another_model_names_keys_and_what_the_file_looks_like(tiny_shape, official_file):
    deeper = replace(tiny_shape, depth=5)
    with pytest.raises(UserError, match=r"14 missing: image_encoder\.blocks\.4\.norm1") as fault:
        load_sam(deeper, official_file)
    assert "looks like: embed_dim 96, depth 4, num_heads 3, image_size 80" in str(fault.value)
    wider = replace(tiny_shape, embed_dim=192, num_heads=6)
    with pytest.raises(UserError, match=r"pos_embed \(1, 5, 5, 96\) instead of \(1, 5, 5, 192\)"):
        load_sam(wider, official_file)
    shallower = replace(tiny_shape, depth=3, global_layers=(1,))
    with pytest.raises(UserError, match=r"14 unexpected: image_encoder\.blocks\.3.* and 8 more"):
        load_sam(shallower, official_file)
    with pytest.raises(UserError, match=r"sam_tiny\.pth does not fit this model"):
        load_sam("vit_t", official_file)


def test_a_file_of_a_named_model_is_recognised(tiny_shape, tmp_path):
    path = tmp_path / "other.pth"
    torch.save(load_sam(replace(SHAPES["vit_t"], image_size=64)).state_dict(), path)
    with pytest.raises(UserError, match="looks like: vit_t at image_size 64"):
        load_sam(tiny_shape, path)


def test_tensors_that_are_no_sam_are_said_to_be_none(tiny_shape, tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="not a segment-anything model"):
        load_sam(tiny_shape, path)


@pytest.mark.parametrize("content", [b"junk", b"", b"]]s.", b"K]}}jK]]"])
def test_a_file_of_anything_is_refused_in_a_word_on_what_it_is(tiny_shape, tmp_path, content):
    path = tmp_path / "junk.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"junk\.pth (cannot be read|is empty|is a text)"):
        load_sam(tiny_shape, path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_said_to_be_damaged(tiny_shape, official_file, tmp_path, share):
    path = tmp_path / "short.pth"
    data = official_file.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"short\.pth cannot be read .* damaged or cut short"):
        load_sam(tiny_shape, path)


@pytest.mark.parametrize("value", [[torch.zeros(3)], {"epoch": 3}, torch.zeros(3)])
def test_a_file_of_something_else_is_refused(tiny_shape, tmp_path, value):
    path = tmp_path / "odd.pth"
    torch.save(value, path)
    with pytest.raises(UserError, match="not a dictionary of tensors"):
        load_sam(tiny_shape, path)


@pytest.mark.parametrize("make", ["missing", "folder", "text"])
def test_what_is_no_checkpoint_is_refused_by_name(tiny_shape, tmp_path, make):
    path = tmp_path / "weights.pth"
    if make == "folder":
        path.mkdir()
    if make == "text":
        path.write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"checkpoint .*weights\.pth"):
        load_sam(tiny_shape, path)


class _Payload:
    """Runs a command when it is unpickled, as a hostile checkpoint would."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(tiny_shape, tmp_path, writer):
    path, target = tmp_path / "weights.pth", tmp_path / "owned"
    state = {"image_encoder.pos_embed": _Payload(target)}
    if writer == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state, protocol=2))
    with pytest.raises(UserError, match="needs code to be read is refused"):
        load_sam(tiny_shape, path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(name="mine"), "'mine' is not one of vit_t.* also give --model.embed-dim"),
        (ModelConfig(name="vit_t", num_heads=5), "model: embed_dim=192 is not a multiple"),
        (ModelConfig(name="vit_t", image_size=100), "image_size=100 is not a multiple of 16"),
        (ModelConfig(name="vit_t", depth=3), r"global_layers \[5, 8, 11\] do not exist"),
    ],
)
def test_impossible_sizes_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        resolve_shape(config)


def test_sizes_of_a_config_replace_those_of_the_name():
    config = ModelConfig(name="vit_t", depth=2, global_layers=(1,), image_size=128)
    expected = replace(SHAPES["vit_t"], depth=2, global_layers=(1,), image_size=128)
    assert resolve_shape(config) == expected
    own = ModelConfig(name="mine", embed_dim=64, depth=2, num_heads=2, global_layers=(0,))
    assert resolve_shape(own).embed_dim == 64
