"""The encoder in eight bits: its file, its numbers, and what is refused."""

import json

import pytest
import torch

from supersam.config import UserError
from supersam.data.shards import ShardReader
from supersam.evaluation import SamModelPredictor
from supersam.evaluation.evaluator import score_prompts
from supersam.evaluation.result import subtract
from supersam.export import load_subnet
from supersam.export.check import check_images
from supersam.export.command import run_export
from supersam.export.onnx_predictor import OnnxPredictor, open_session
from supersam.standalone import ENCODER_INT8_ONNX, ENCODER_ONNX
from tests.export.runs import export_of

WHY = "it comes with supersam[onnx]"
pytest.importorskip("onnxruntime", reason=WHY)
onnx = pytest.importorskip("onnx", reason=WHY)

EIGHT_BITS = {"onnx": True, "int8": True, "int8_images": 4, "int8_max_loss": 1.0}


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "int8"
    assert run_export(export_of(trained, out, subnet="largest", **EIGHT_BITS)) == 0
    return out


def card_of(folder):
    return json.loads((folder / "card.json").read_text())


def test_eight_bits_are_close_and_small_and_take_any_number_of_images(exported):
    whole, small = (open_session(exported / name) for name in (ENCODER_ONNX, ENCODER_INT8_ONNX))
    for count in (1, 3):
        pixels = {"images": torch.randn(count, 3, 80, 80).numpy()}
        expected, found = (
            torch.from_numpy(each.run(["image_embeddings"], pixels)[0]) for each in (whole, small)
        )
        assert found.shape == expected.shape
        assert 0 < (found - expected).norm() / expected.norm() < 0.1
    sizes = card_of(exported)["int8"]["bytes"]
    assert sizes[ENCODER_INT8_ONNX] == (exported / ENCODER_INT8_ONNX).stat().st_size
    assert sizes[ENCODER_INT8_ONNX] < 0.9 * sizes[ENCODER_ONNX]


def test_every_product_with_weights_is_quantised_and_nothing_else(exported):
    layers = len(card_of(exported)["spec"]["layers"])
    assert card_of(exported)["int8"]["operators"] == {"MatMul": 4 * layers}
    graph = onnx.load(exported / ENCODER_INT8_ONNX).graph
    scaled = {
        name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    readers = [node for node in graph.node if scaled & set(node.input)]
    types = [node.op_type for node in readers]
    assert types.count("MatMul") == 4 * layers
    assert set(types) == {"MatMul", "Shape"}


def test_the_card_and_the_configuration_say_what_it_loses_and_gains(
    exported, held_out_shards, synthetic_shards
):
    int8 = card_of(exported)["int8"]
    sam = load_subnet(exported)
    predictors = [SamModelPredictor(sam), OnnxPredictor(exported, ENCODER_INT8_ONNX)]
    readers = [ShardReader(held_out_shards)]
    limits = {"side": 80, "limit": None, "workers": 0, "priors": None}
    for prompt, (before, after) in score_prompts(
        predictors, readers, ["point", "box"], **limits
    ).items():
        assert int8["miou"][prompt] == after.miou
        found = subtract(after, before)
        assert int8["less_fp32"][prompt]["mean"] == found.mean
        assert tuple(int8["less_fp32"][prompt]["interval"]) == found.interval
    assert int8["settings"]["data"] == [str(synthetic_shards)]
    latency = int8["latency"]
    assert all(latency[f"{name}_ms"] > 0 for name in ("pytorch", "fp32", "int8"))
    config = json.loads((exported / "config.json").read_text())["int8"]
    assert config["file"] == ENCODER_INT8_ONNX
    assert config["less_fp32"] == int8["less_fp32"]
    text = (exported / "README.md").read_text()
    assert f"| point | {card_of(exported)['metrics']['point']['miou']:.4f} | " in text
    assert "## Eight bits" in text


def test_onnx_files_predict_what_the_model_predicts(exported):
    (image,) = check_images([], 80)
    prompts = (torch.tensor([image.size]), image.points[None], image.labels[None])
    sam = load_subnet(exported)
    expected = SamModelPredictor(sam).predict(image.image[None], *prompts)
    found = OnnxPredictor(exported, ENCODER_ONNX).predict(image.image[None], *prompts)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_same_export_again_changes_nothing_and_other_ranges_are_another(trained, exported):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    largest = {"subnet": "largest", **EIGHT_BITS}
    assert run_export(export_of(trained, exported, **largest)) == 0
    assert run_export(export_of(trained, exported, subnet="largest")) == 0  # less than there is
    for changes in ({"int8_images": 3}, {"int8_max_loss": 0.5}):
        with pytest.raises(UserError, match=r"(?s)another export.*int8: \{"):
            run_export(export_of(trained, exported, **{**largest, **changes}))
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before


def test_a_loss_above_the_limit_leaves_nothing(trained, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"loses .* with a point, .* with a box of its mIoU.*0;"):
        run_export(export_of(trained, out, **{**EIGHT_BITS, "int8_max_loss": 0.0}))
    assert list(tmp_path.iterdir()) == []


def test_images_that_are_evaluated_do_not_set_the_ranges(
    trained, held_out_shards, synthetic_shards, tmp_path
):
    out = tmp_path / "out"
    for changes in ({"int8_data": [held_out_shards]}, {"data": [synthetic_shards]}):
        with pytest.raises(UserError, match=r"of the images to evaluate are, by content, also in"):
            run_export(export_of(trained, out, **EIGHT_BITS, **changes))
    assert not out.exists()


def test_what_cannot_be_measured_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("supersam.export.plan.validation_folders", lambda run: [])
    with pytest.raises(UserError, match="no held-out images; name some: --data DIR"):
        run_export(export_of(trained, tmp_path / "out", **EIGHT_BITS))


def test_flags_that_need_another_are_refused(trained, tmp_path):
    with pytest.raises(ValueError, match="add --onnx"):
        export_of(trained, tmp_path, int8=True)
    with pytest.raises(ValueError, match="add --int8"):
        export_of(trained, tmp_path, onnx=True, int8_data=[tmp_path])
