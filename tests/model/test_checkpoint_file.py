"""Checkpoints of other people's training scripts, and files that are none."""

import gzip
import logging
import os
import re
import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from supersam.config import UserError
from supersam.model import load_sam
from supersam.model.checkpoint_file import read_checkpoint


@pytest.fixture(scope="module")
def state(tiny_shape) -> dict[str, Tensor]:
    return load_sam(tiny_shape, seed=5).state_dict()


def to_hugging_face(name: str) -> str:
    """The name that transformers' conversion script gives a weight of segment-anything."""
    name = name.replace("iou_prediction_head.layers.0", "iou_prediction_head.proj_in")
    name = name.replace("iou_prediction_head.layers.1", "iou_prediction_head.layers.0")
    name = name.replace("iou_prediction_head.layers.2", "iou_prediction_head.proj_out")
    if hyper := re.match(r"(.*output_hypernetworks_mlps\.\d+)\.layers\.(\d)(.*)", name):
        layer = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}[hyper[2]]
        name = f"{hyper[1]}.{layer}{hyper[3]}"
    for ours, theirs in (
        ("mask_decoder.output_upscaling.0", "mask_decoder.upscale_conv1"),
        ("mask_decoder.output_upscaling.1", "mask_decoder.upscale_layer_norm"),
        ("mask_decoder.output_upscaling.3", "mask_decoder.upscale_conv2"),
        ("mask_downscaling.0", "mask_embed.conv1"),
        ("mask_downscaling.1", "mask_embed.layer_norm1"),
        ("mask_downscaling.3", "mask_embed.conv2"),
        ("mask_downscaling.4", "mask_embed.layer_norm2"),
        ("mask_downscaling.6", "mask_embed.conv3"),
        ("point_embeddings", "point_embed"),
        ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
        ("image_encoder", "vision_encoder"),
        ("neck.0", "neck.conv1"),
        ("neck.1", "neck.layer_norm1"),
        ("neck.2", "neck.conv2"),
        ("neck.3", "neck.layer_norm2"),
        ("patch_embed.proj", "patch_embed.projection"),
        (".norm", ".layer_norm"),
        ("blocks", "layers"),
    ):
        name = name.replace(ours, theirs)
    return name


PIXELS = {"pixel_mean": torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)}
FORMS = {
    "model": lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3},
    "state_dict": lambda state: {"epoch": 1, "state_dict": state},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.5},
    "another name": lambda state: {"epoch": 1, "weights": state},
    "in two": lambda state: {"checkpoint": {"epoch": 2, "state_dict": state}, "epoch": 1},
    "model_ema": lambda state: {"model_ema": state, "optimizer": {"state": {}}},
    "bfloat16 pixels": lambda state: state | {n: v.bfloat16() for n, v in PIXELS.items()},
    "module.": lambda state: {f"module.{name}": value for name, value in state.items()},
    "module.sam.": lambda state: {"model": {f"module.sam.{n}": v for n, v in state.items()}},
    "beside a head": lambda state: (
        {f"sam.{n}": v for n, v in state.items()} | {"head.weight": torch.zeros(2)}
    ),
    "pixels": lambda state: state | PIXELS,
    "half": lambda state: {name: value.half() for name, value in state.items()},
    "SamModel": lambda state: {to_hugging_face(name): value for name, value in state.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_in_another_form_gives_the_same_weights(form, state, tmp_path, caplog):
    path = tmp_path / "tuned.pth"
    torch.save(FORMS[form](state), path)
    with caplog.at_level(logging.INFO, logger="supersam"):
        found = read_checkpoint(path)
    assert set(found) == set(state)
    for name, value in state.items():
        assert torch.equal(found[name].to(torch.float16), value.half()), name
    assert len(caplog.records) == {
        **{"pixels": 0, "bfloat16 pixels": 0, "half": 0, "module.sam.": 2}
    }.get(form, 1)


def test_a_sam_model_of_safetensors_with_its_shared_embedding_is_read(state, tmp_path):
    theirs = {to_hugging_face(name): value.contiguous() for name, value in state.items()}
    shared = theirs.pop("prompt_encoder.shared_embedding.positional_embedding")
    save_file(theirs | {"shared_image_embedding.positional_embedding": shared}, tmp_path / "model")
    found = read_checkpoint(tmp_path / "model")
    assert set(found) == set(state)
    assert all(torch.equal(found[name], value) for name, value in state.items())


@pytest.mark.parametrize("name", ["weights.SAFETENSORS", "weights.pth"])
def test_safetensors_are_known_by_their_content(state, tmp_path, name):
    save_file(dict(state), tmp_path / name)
    assert set(read_checkpoint(tmp_path / name)) == set(state)


def flip_a_bit(path, entry, *, at):
    """In byte `at` of an entry of a ZIP archive, counted from its end if negative."""
    with zipfile.ZipFile(path) as archive:
        whole = archive.read(entry)
    data = bytearray(path.read_bytes())
    data[data.index(whole) + at % len(whole)] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("at", [0, 7, -1])
def test_a_changed_bit_of_a_weight_is_told_with_its_entry(state, tmp_path, at):
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    flip_a_bit(path, "weights/data/1", at=at)
    torch.load(path, weights_only=True)  # PyTorch does not notice
    with pytest.raises(UserError, match="its entry weights/data/1 is not what was saved"):
        read_checkpoint(path)


def test_an_archive_without_checksums_is_read(state, tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "weights.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert set(read_checkpoint(tmp_path / "weights.pth")) == set(state)


def test_another_normalisation_is_told(state, tmp_path, caplog):
    torch.save(state | {"pixel_mean": torch.zeros(3, 1, 1)}, tmp_path / "zero.pth")
    read_checkpoint(tmp_path / "zero.pth")
    assert "was trained with pixel_mean [0.0, 0.0, 0.0]" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(state, tmp_path, value):
    name = "image_encoder.blocks.1.mlp.lin1.weight"
    bad = state[name].clone()
    bad[0, 0] = value
    torch.save(state | {name: bad}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=rf"bad\.pth: 1 of [\d,]+ values of {re.escape(name)} are"):
        read_checkpoint(tmp_path / "bad.pth")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value.to(torch.int8), "is int8, where floating point"),
        (lambda value: value.to(torch.float8_e4m3fn), "is float8_e4m3fn"),
        (lambda value: value.to_sparse(), "is sparse"),
        (lambda value: value.to("meta"), "is without values"),
    ],
)
def test_quantised_pruned_and_absent_weights_are_refused(state, tmp_path, change, said):
    torch.save({n: change(v) for n, v in state.items()}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=said):
        read_checkpoint(tmp_path / "odd.pth")


class RunsCode:
    """An object whose reading would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_an_object_in_a_checkpoint_is_named_and_not_built(state, tmp_path):
    torch.save({"model": dict(state), "args": RunsCode(tmp_path / "ran")}, tmp_path / "a.pth")
    with pytest.raises(
        UserError, match=r"it holds posix\.mkdir, and a file that needs code"
    ) as found:
        read_checkpoint(tmp_path / "a.pth")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_without_weights_names_what_it_holds(tmp_path):
    torch.save({"optimizer": {"state": {}}, "step": 4}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"its entries \(optimizer, step\)"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_program_of_torchscript_is_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(UserError, match="is a TorchScript program; save its state_dict"):
        read_checkpoint(tmp_path / "a.pt")


def test_an_archive_of_something_else_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("sam.pth", b"x")
    with tarfile.open(tmp_path / "b.pth", "w") as archive:
        archive.add(tmp_path / "a.pth", "sam.pth")
    for name, said in (
        ("a.pth", "is a ZIP archive of sam.pth; unpack"),
        ("b.pth", "a TAR archive"),
    ):
        with pytest.raises(UserError, match=said):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:a\n", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>403</html>", "is a web page"),
        (b"<HTML>", "is a web page"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error/>", "is a web page"),
        (b"/annex/objects/SHA256E-s3--abc.pth\n", "is a git-annex pointer"),
        (b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', "is JSON, such as an index"),
        (b"Not found\r\n", "is a text"),
        (gzip.compress(b"weights", mtime=0), "is compressed by gzip; unpack"),
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(600), "is not a file of weights"),
        (bytes(600), "is filled with zeros"),
        (b"PK\x03\x04" + bytes(600), "cannot be read .* damaged or cut short"),
        (None, "is a folder; name the file"),
    ],
)
def test_what_is_in_its_place_is_named(tmp_path, content, said):
    path = tmp_path / "weights.pth"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_checkpoint(path)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_not_called_damaged(state, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    path.chmod(0)
    with pytest.raises(UserError, match="cannot be opened: Permission denied"):
        read_checkpoint(path)
