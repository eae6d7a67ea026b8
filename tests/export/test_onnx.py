"""ONNX files say what PyTorch says, for sizes and prompts other than the traced ones."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

WHY = "it comes with supersam[onnx]"
onnxruntime = pytest.importorskip("onnxruntime", reason=WHY)
pytest.importorskip("onnx", reason=WHY)

from segment_anything import SamPredictor  # noqa: E402 - skips come before imports of them
from segment_anything.utils.onnx import SamOnnxModel  # noqa: E402 - after the skips

from supersam.config import UserError  # noqa: E402 - after the skips
from supersam.export import onnx as door  # noqa: E402 - after the skips
from supersam.export.check import check_images  # noqa: E402 - after the skips
from supersam.model import extract_subnet  # noqa: E402 - after the skips
from supersam.standalone import DECODER_ONNX, ENCODER_ONNX  # noqa: E402 - after the skips


@pytest.fixture(scope="module")
def sam(make_supernet):
    supernet = make_supernet()
    return extract_subnet(supernet, supernet.space.medium())


@pytest.fixture(scope="module")
def images(sam):
    side = sam.image_encoder.img_size
    (image,) = check_images([], side)
    tall = replace(
        image,
        image=image.image.transpose(1, 2).contiguous(),
        size=image.size[::-1],
        original_size=(2 * side, 3 * side // 2),
        points=image.points[:3].flip(-1),
        labels=image.labels[:3],
    )
    return [image, tall]


@pytest.fixture(scope="module")
def folder(sam, images, tmp_path_factory):
    place = tmp_path_factory.mktemp("onnx")
    parity = door.export_onnx(sam, place, images)
    assert parity.min_mask_iou >= 0.999
    assert parity.masks == 4 * (4 + 3)
    assert parity.max_embedding_error < 1e-3
    return place


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_the_encoder_takes_any_number_of_images(sam, folder):
    encoder = session(folder / ENCODER_ONNX)
    for count in (1, 3):
        pixels = torch.randn(count, 3, sam.image_encoder.img_size, sam.image_encoder.img_size)
        (found,) = encoder.run(None, {"images": pixels.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(found), sam.image_encoder(pixels), rtol=1e-4, atol=1e-4
        )


def test_the_decoder_has_segment_anythings_own_interface(sam, folder):
    decoder = session(folder / DECODER_ONNX)
    names = SamOnnxModel.forward.__annotations__
    assert [each.name for each in decoder.get_inputs()] == list(names)
    outputs = [each.name for each in decoder.get_outputs()]
    assert outputs == ["masks", "iou_predictions", "low_res_masks"]


def test_other_runtimes_find_the_names_types_and_dimensions_that_they_feed(sam, folder):
    """Annotation tools built on samexporter's runtime classes feed and read exactly these."""
    side, grid = sam.image_encoder.img_size, sam.prompt_encoder.image_embedding_size[0]
    channels = sam.prompt_encoder.embed_dim
    found = {}
    for name in (ENCODER_ONNX, DECODER_ONNX):
        here = session(folder / name)
        for each in (*here.get_inputs(), *here.get_outputs()):
            found[each.name] = (name, each.type, tuple(each.shape))
    embedding = (channels, grid, grid)
    assert found.pop("images") == (ENCODER_ONNX, "tensor(float)", ("batch", 3, side, side))
    low, prompts = (4 * grid, 4 * grid), ("prompts", "points")
    shapes = {
        "point_coords": (*prompts, 2),
        "point_labels": prompts,
        "mask_input": (1, 1, *low),
        "has_mask_input": (1,),
        "orig_im_size": (2,),
        "masks": ("prompts", 4, "height", "width"),
        "iou_predictions": ("prompts", 4),
        "low_res_masks": ("prompts", 4, *low),
    }
    assert found.pop("image_embeddings") == (DECODER_ONNX, "tensor(float)", (1, *embedding))
    assert found == {name: (DECODER_ONNX, "tensor(float)", shape) for name, shape in shapes.items()}
    encoded = session(folder / ENCODER_ONNX).get_outputs()[0]
    assert (encoded.name, tuple(encoded.shape)) == ("image_embeddings", ("batch", *embedding))


@pytest.mark.parametrize("name", [ENCODER_ONNX, DECODER_ONNX])
def test_a_file_says_what_it_is_and_how_an_image_is_prepared(sam, folder, name):
    said = session(folder / name).get_modelmeta().custom_metadata_map
    assert said["model_type"] == "segment-anything"
    assert int(said["image_size"]) == sam.image_encoder.img_size
    assert json.loads(said["pixel_mean"]) == sam.pixel_mean.flatten().tolist()
    assert json.loads(said["pixel_std"]) == sam.pixel_std.flatten().tolist()
    assert float(said["mask_threshold"]) == sam.mask_threshold


@pytest.mark.parametrize("size", [(60, 80), (120, 90), (33, 50)])
def test_the_decoder_agrees_with_the_predictor_on_images_of_any_size(sam, folder, size):
    """As published notebooks call it: one prompt of several points, and a mask prompt after it."""
    decoder = session(folder / DECODER_ONNX)
    predictor = SamPredictor(sam)
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    points = np.array([[10.0, 20.0], [25.0, 5.0]], np.float32)
    labels = np.array([1, 0])
    low = np.random.default_rng(1).normal(size=(1, 20, 20)).astype(np.float32)
    for mask in (None, low):
        expected, ious, _ = predictor.predict(
            points, labels, mask_input=mask, multimask_output=True, return_logits=True
        )
        coords = predictor.transform.apply_coords(points, size)
        masks, estimates, _ = decoder.run(
            None,
            {
                "image_embeddings": predictor.get_image_embedding().numpy(),
                "point_coords": np.append(coords, [[0, 0]], axis=0)[None].astype(np.float32),
                "point_labels": np.append(labels, -1)[None].astype(np.float32),
                "mask_input": (low * 0 if mask is None else mask)[None],
                "has_mask_input": np.array([mask is not None], np.float32),
                "orig_im_size": np.array(size, np.float32),
            },
        )
        assert masks.shape == (1, 4, *size)
        np.testing.assert_allclose(masks[0, 1:], expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(estimates[0, 1:], ious, rtol=1e-3, atol=1e-3)


def test_files_of_another_model_are_found_out(sam, folder, images, monkeypatch, tmp_path):
    other = copy.deepcopy(sam)
    with torch.no_grad():
        for parameter in other.mask_decoder.parameters():
            parameter.mul_(1.5)
    assert door.compare(other, folder, images).max_iou_estimate_error > 1e-3
    monkeypatch.setattr(door, "MAX_IOU_ESTIMATE_ERROR", -1.0)
    with pytest.raises(door.ParityError, match="largest error of an IoU estimate"):
        door.export_onnx(sam, tmp_path, images)


@pytest.mark.parametrize("spoiled", [0, 1, 2], ids=["embedding", "masks", "estimates"])
def test_what_is_no_number_is_no_parity(sam, folder, images, monkeypatch, spoiled):
    def spoil(_sam, image, *sessions):
        found = run(_sam, image, *sessions)
        if image is images[1]:
            found[spoiled].view(-1)[-1] = float("nan")
        return found

    run = door._run
    monkeypatch.setattr(door, "_run", spoil)
    assert not door.compare(sam, folder, images).holds


def test_missing_libraries_are_named(monkeypatch):
    monkeypatch.setattr(door.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx and onnxruntime.*supersam\[onnx\]"):
        door.require_onnx()
