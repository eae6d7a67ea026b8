"""ONNX files say what PyTorch says, for sizes and prompts other than the traced ones."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

WHY = "it comes with supersam[onnx]"
onnxruntime = pytest.importorskip("onnxruntime", reason=WHY)
pytest.importorskip("onnx", reason=WHY)

from segment_anything import SamPredictor  # noqa: E402  skips come before imports of them
from segment_anything.utils.onnx import SamOnnxModel  # noqa: E402  after the skips

from supersam.config import UserError  # noqa: E402  after the skips
from supersam.export import onnx as door  # noqa: E402  after the skips
from supersam.export.check import check_images  # noqa: E402  after the skips
from supersam.export.checkpoint import DECODER_ONNX, ENCODER_ONNX  # noqa: E402  after the skips
from supersam.model import extract_subnet  # noqa: E402  after the skips


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
