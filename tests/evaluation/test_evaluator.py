"""The evaluator against segment-anything itself, and against predictors whose score is known."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from supersam.config import UserError
from supersam.data.sample import LABEL_BOX_MAX, LABEL_BOX_MIN, EvalImage
from supersam.evaluation import (
    EvalResult,
    ObjectTable,
    bootstrap_interval,
    evaluate,
    evaluate_all,
    mask_iou,
    single_mask_ious,
)
from supersam.evaluation.result import subtract
from tests.evaluation.scenes import (
    Replay,
    SamPrompts,
    eval_image,
    sam_postprocess,
    smooth_logits,
    tiny_sam,
)

GEOMETRIES = {  # sample id: side, size in the square, original size
    7: {"side": 64, "size": (64, 48), "original_size": (120, 90)},
    3: {"side": 64, "size": (40, 64), "original_size": (25, 40)},
    5: {"side": 64, "size": (64, 64), "original_size": (64, 64)},
}


@pytest.fixture(scope="module")
def logits() -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: smooth_logits(n, cells=16, generator=generator)
        for key, n in zip(GEOMETRIES, (9, 5, 1), strict=True)
    }


def images_of(masks: dict[int, torch.Tensor]) -> list[EvalImage]:
    return [
        eval_image(m, side=64, size=GEOMETRIES[key]["size"], sample_id=key)
        for key, m in masks.items()
    ]


def masks_of(logits: dict[int, torch.Tensor], *, token: int) -> dict[int, torch.Tensor]:
    return {k: sam_postprocess(v, **GEOMETRIES[k])[:, token] > 0 for k, v in logits.items()}


@pytest.fixture(scope="module")
def images(logits) -> list[EvalImage]:
    """Annotated with what another predictor would say, so that no score is trivial."""
    other = smooth_logits(15, cells=16, generator=torch.Generator().manual_seed(1)).split((9, 5, 1))
    return images_of(masks_of(dict(zip(logits, other, strict=True)), token=0))


def assert_same_tables(first: ObjectTable, second: ObjectTable) -> None:
    for f in fields(ObjectTable):
        np.testing.assert_array_equal(getattr(first, f.name), getattr(second, f.name), f.name)


def test_the_truth_scores_one(logits):
    same = {key: value[:, :1].expand(-1, 4, -1, -1) for key, value in logits.items()}
    result = evaluate(Replay(same), images_of(masks_of(same, token=0)))
    assert result.miou == result.miou_predicted_best == result.miou_oracle == 1
    assert result.image_miou == result.boundary_miou == 1
    assert result.miou_interval == (1, 1)
    assert result.iou_estimate_mae == 0  # Replay estimates 1


def test_an_empty_prediction_scores_zero():
    square = torch.zeros(1, 64, 64, dtype=torch.bool)
    square[:, 10:30, 20:40] = True
    result = evaluate(Replay({5: torch.full((1, 4, 16, 16), -1.0)}), images_of({5: square}))
    assert result.miou == result.miou_oracle == result.boundary_miou == 0
    assert result.box_fill_miou == 1


def test_a_predictor_that_fills_boxes_scores_the_box_fill():
    fine = smooth_logits(8, cells=64, generator=torch.Generator().manual_seed(2))
    masks = fine[:, 0] > 0
    boxes = torch.full_like(fine, -1)
    for box, mask in zip(boxes, masks, strict=True):
        if mask.any():
            ys, xs = mask.nonzero(as_tuple=True)
            box[:, ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = 1
    result = evaluate(Replay({5: boxes}), images_of({5: masks}))
    assert 0 < result.box_fill_miou < 1
    np.testing.assert_array_equal(result.objects.iou_single, result.objects.box_fill_iou)


def test_every_column_is_what_full_frames_give(logits, images):
    generator = torch.Generator().manual_seed(3)
    estimates = {key: torch.rand(len(v), 4, generator=generator) for key, v in logits.items()}
    table = evaluate(Replay(logits, estimates), images).objects
    row = 0
    for image in sorted(images, key=lambda image: image.sample_id):
        key = image.sample_id
        pred = sam_postprocess(logits[key], **GEOMETRIES[key]) > 0
        iou = mask_iou(pred, image.masks[:][:, None])
        best = estimates[key][:, 1:].argmax(1) + 1
        rows = slice(row, row := row + len(iou))
        assert (table.sample_id[rows] == key).all()
        np.testing.assert_array_equal(table.area[rows], image.masks[:].sum((1, 2)))
        np.testing.assert_array_equal(table.iou_single[rows], iou[:, 0])
        np.testing.assert_array_equal(table.iou_predicted_best[rows], iou[range(len(iou)), best])
        np.testing.assert_array_equal(table.iou_oracle[rows], iou[:, 1:].amax(1))
        np.testing.assert_array_equal(table.predicted_iou[rows], estimates[key][:, 0])
    assert row == len(table.area) == 15


def test_means_are_over_objects_and_over_images(logits, images):
    result = evaluate(Replay(logits), images)
    ious = result.objects.iou_single
    assert result.miou == pytest.approx(ious.mean())
    groups = [ious[result.objects.sample_id == key] for key in GEOMETRIES]
    assert [len(group) for group in groups] == [9, 5, 1]
    assert result.image_miou == pytest.approx(np.mean([group.mean() for group in groups]))
    assert result.image_miou != pytest.approx(result.miou)
    assert result.iou_estimate_mae == pytest.approx((1 - ious).mean())
    assert result.miou_interval[0] < result.miou < result.miou_interval[1]
    assert (result.num_objects, result.num_images) == (15, 3)


def test_no_user_beats_the_oracle(logits, images):
    table = evaluate(Replay(logits), images).objects
    assert (table.iou_oracle >= table.iou_predicted_best).all()
    assert (table.iou_oracle > table.iou_predicted_best).any()


def test_size_buckets_hold_each_object_once(logits, images):
    result = evaluate(Replay(logits), images)
    areas, ious = result.objects.area, result.objects.iou_single
    small, medium, large = result.sizes
    assert small.num_objects == (areas < 1024).sum() > 0
    assert medium.num_objects == ((areas >= 1024) & (areas < 9216)).sum() > 0
    assert (large.num_objects, large.miou) == (0, None)
    assert medium.miou == pytest.approx(ious[areas >= 1024].mean())


@pytest.mark.parametrize("prompt", ["point", "box"])
def test_sam_scores_as_through_its_own_predictor(prompt):
    sam, generator = tiny_sam(), torch.Generator().manual_seed(4)
    masks = masks_of({7: smooth_logits(6, cells=16, generator=generator)}, token=0)
    (image,) = images_of(masks)
    if prompt == "box":
        image.labels[:] = torch.tensor([LABEL_BOX_MIN, LABEL_BOX_MAX])
        image.points[:, 1] = image.points[:, 0] + 20
    table = evaluate(SamPrompts(sam), [image], prompts_per_call=4).objects

    predictor = SamPredictor(sam)
    height, width = image.size
    predictor.set_torch_image(image.image[None, :, :height, :width], image.original_size)
    boxes = image.points.flatten(1) if prompt == "box" else None
    points = None if prompt == "box" else image.points[:, :1]
    labels = None if prompt == "box" else image.labels[:, :1]
    single, estimate, _ = predictor.predict_torch(points, labels, boxes, multimask_output=False)
    three, estimates, _ = predictor.predict_torch(points, labels, boxes, multimask_output=True)
    ious = mask_iou(three, image.masks[:][:, None])
    assert 0.05 < single.float().mean() < 0.95
    np.testing.assert_allclose(table.iou_single, mask_iou(single[:, 0], image.masks[:]), atol=1e-6)
    np.testing.assert_allclose(table.iou_oracle, ious.amax(1), atol=1e-6)
    preferred = ious[range(6), estimates.argmax(1)]
    np.testing.assert_allclose(table.iou_predicted_best, preferred, atol=1e-6)
    np.testing.assert_allclose(table.predicted_iou, estimate[:, 0], atol=1e-5)


def test_result_does_not_depend_on_how_prompts_are_chunked(logits, images):
    whole, chunked = Replay(logits), Replay(logits)
    expected = evaluate(whole, images)
    assert_same_tables(evaluate(chunked, images, prompts_per_call=4).objects, expected.objects)
    assert whole.prompts_of_calls == [9, 5, 1]
    assert chunked.prompts_of_calls == [4, 4, 1, 4, 1, 1]


@pytest.mark.parametrize("together", [1, 4])
def test_the_single_mask_alone_scores_the_same(logits, images, monkeypatch, together):
    whole = evaluate(Replay(logits), images).objects
    monkeypatch.setattr("supersam.evaluation.evaluator.objects_at_a_time", lambda *_: together)
    for image in images:
        alone = single_mask_ious(logits[image.sample_id][:, 0], image)
        expected = whole.iou_single[whole.sample_id == image.sample_id]
        np.testing.assert_array_equal(alone.double().numpy(), expected)
    with pytest.raises(FloatingPointError, match="NaN or infinity for image 7"):
        single_mask_ious(torch.full((9, 16, 16), torch.nan), images[0])


def test_objects_scored_in_a_shared_window_score_the_same(logits, images, monkeypatch):
    alone = evaluate(Replay(logits), images)
    monkeypatch.setattr("supersam.evaluation.evaluator.objects_at_a_time", lambda *_: 4)
    assert_same_tables(evaluate(Replay(logits), images).objects, alone.objects)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_scores_as_the_cpu(logits, images):
    estimates = {key: torch.rand(len(value), 4) for key, value in logits.items()}
    on_gpu = Replay(*({k: v.cuda() for k, v in table.items()} for table in (logits, estimates)))
    assert_same_tables(
        evaluate(on_gpu, images).objects, evaluate(Replay(logits, estimates), images).objects
    )


def test_result_does_not_depend_on_the_order_of_images(logits, images):
    result = evaluate(Replay(logits), images)
    backwards = evaluate(Replay(logits), images[::-1])
    assert backwards == result
    assert_same_tables(backwards.objects, result.objects)


def test_images_without_objects_count_for_nothing(logits, images):
    bare = eval_image(torch.zeros(0, 30, 30, dtype=torch.bool), side=64, size=(64, 64), sample_id=9)
    assert evaluate(Replay(logits), [bare, *images]) == evaluate(Replay(logits), images)


def test_the_cheap_path_leaves_the_boundary_out_and_nothing_else(logits, images):
    full, cheap = evaluate(Replay(logits), images), evaluate(Replay(logits), images, boundary=False)
    assert cheap.boundary_miou is None
    assert cheap.objects.boundary_iou is None
    assert full.as_dict() | {"boundary_miou": None} == cheap.as_dict()


def test_one_image_has_a_mean_but_no_interval(logits, images):
    assert evaluate(Replay(logits), images[:1]).miou_interval is None


def test_nothing_to_evaluate_is_an_error(logits):
    with pytest.raises(UserError, match="no image has an annotated object"):
        evaluate(Replay(logits), [])


def test_an_image_that_is_given_twice_is_an_error(logits, images):
    with pytest.raises(ValueError, match="image 3 was evaluated twice"):
        evaluate(Replay(logits), [*images, images[1]])


def test_an_impossible_chunk_is_an_error(logits, images):
    with pytest.raises(ValueError, match="prompts_per_call=0"):
        evaluate(Replay(logits), images, prompts_per_call=0)


def test_a_predictor_without_the_single_mask_is_an_error(logits, images):
    three = {key: value[:, 1:] for key, value in logits.items()}
    with pytest.raises(ValueError, match=r"need \(1, 9, 4, 's', 's'\)"):
        evaluate(Replay(three), images)


@pytest.mark.parametrize("broken", ["logits", "estimates"])
def test_a_diverged_predictor_is_a_users_error_that_names_the_image(logits, images, broken):
    predictor = Replay({k: v.clone() for k, v in logits.items()})
    getattr(predictor, broken)[3][2, 1] = float("nan")
    with pytest.raises(UserError, match="NaN or infinity for image 3.*earlier checkpoint"):
        evaluate(predictor, images)


def test_json_holds_every_number(logits, images):
    result = evaluate(Replay(logits), images)
    loaded = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert set(loaded) == {f.name for f in fields(EvalResult)} - {"objects"}
    assert loaded["miou"] == result.miou
    assert loaded["miou_interval"] == list(result.miou_interval)
    assert loaded["sizes"][2] == {"bucket": "large", "miou": None, "num_objects": 0}


def test_two_results_are_compared_object_by_object(logits, images):
    shifted = {key: value - 0.2 for key, value in logits.items()}
    ((first, second),) = evaluate_all([Replay(logits), Replay(shifted)], images, boundary=False)
    alone = evaluate(Replay(shifted), images, boundary=False)
    assert_same_tables(second.objects, replace(alone.objects, boundary_iou=None))
    found = subtract(first, second)
    assert found.mean == pytest.approx(first.miou - second.miou)
    low, high = found.interval
    assert low < found.mean < high
    assert high - low < first.miou_interval[1] - first.miou_interval[0]


def test_tiles_of_one_source_are_resampled_together(logits, images):
    """The interval is that of the sources, and no interval where there is but one."""
    together = [replace(image, group=1) for image in images]
    result = evaluate(Replay(logits), together)
    assert (result.num_groups, result.miou_interval) == (1, None)
    pairs = [replace(image, group=int(image.sample_id == 7)) for image in images]
    result = evaluate(Replay(logits), pairs)
    table = result.objects
    groups = (table.sample_id == 7).astype(np.int64)
    expected = bootstrap_interval(table.iou_single, groups, rng=np.random.default_rng(0))
    assert (result.num_groups, result.miou_interval) == (2, expected)
    assert result.miou_interval != evaluate(Replay(logits), images).miou_interval
