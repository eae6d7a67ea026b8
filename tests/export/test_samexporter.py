"""ONNX files of a 1024-px model in samexporter's runtime classes, which annotation tools use."""

import numpy as np
import pytest

WHY = "pip install 'supersam[onnx]' samexporter opencv-python-headless"
pytest.importorskip("onnxruntime", reason=WHY)
pytest.importorskip("onnx", reason=WHY)
runtime = pytest.importorskip("samexporter.sam_onnx", reason=WHY)

from segment_anything import SamPredictor  # noqa: E402 - after the skips

from supersam.export.check import check_images  # noqa: E402 - after the skips
from supersam.export.onnx import export_onnx  # noqa: E402 - after the skips
from supersam.model import load_sam  # noqa: E402 - after the skips
from supersam.space import EncoderShape  # noqa: E402 - after the skips
from supersam.standalone import DECODER_ONNX, ENCODER_ONNX  # noqa: E402 - after the skips

SHAPE = EncoderShape(64, 2, 2, (), image_size=1024)
"""The classes take 1024 pixels; the rest is as small as it can be."""


@pytest.fixture(scope="module")
def sam():
    return load_sam(SHAPE, seed=0).eval()


@pytest.fixture(scope="module")
def theirs(sam, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    export_onnx(sam, folder, check_images([], SHAPE.image_size))
    return runtime.SegmentAnythingONNX(
        str(folder / ENCODER_ONNX), str(folder / DECODER_ONNX), ["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("size", [(300, 451), (451, 300)])
def test_the_classes_open_the_files_and_find_the_predictors_masks(sam, theirs, size):
    rgb = np.random.default_rng(1).integers(0, 255, (*(each // 10 for each in size), 3), np.uint8)
    rgb = np.kron(rgb, np.ones((10, 10, 1), np.uint8))
    predictor = SamPredictor(sam)
    predictor.set_image(rgb)
    embedding = theirs.encode(np.ascontiguousarray(rgb[..., ::-1]))
    np.testing.assert_allclose(
        embedding["image_embedding"], predictor.features.numpy(), rtol=0, atol=1e-3
    )
    marks = [
        {"type": "point", "data": [120, 90], "label": 1},
        {"type": "point", "data": [30, 200], "label": 0},
    ]
    found = theirs.predict_masks(embedding, marks)[0]
    points, labels = np.array([[120.0, 90.0], [30.0, 200.0]]), np.array([1, 0])
    single, _, _ = predictor.predict(points, labels, multimask_output=False)
    several, _, _ = predictor.predict(points, labels, multimask_output=True)
    expected = np.concatenate([single, several])
    assert found.shape == expected.shape
    assert ((found > sam.mask_threshold) == expected).mean() > 0.999
    assert 0 < expected.mean() < 1
