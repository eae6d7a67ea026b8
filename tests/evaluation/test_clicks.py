"""Simulated clicks against segment-anything's own predictor and brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from supersam.data.sample import LABEL_BACKGROUND, LABEL_FOREGROUND
from supersam.evaluation import SamModelPredictor
from supersam.evaluation.clicks import (
    GOAL,
    ClickScorer,
    ClickTable,
    click_image,
    next_click,
    subtract_clicks,
    summarize_clicks,
)
from tests.evaluation.scenes import eval_image, tiny_sam

CLICKS = 5
GEOMETRIES = {7: ((64, 48), (60, 45)), 3: ((40, 64), (25, 40))}  # size in the square, original


def discs(height: int, width: int, count: int) -> torch.Tensor:
    """(count, height, width) bool, some of them cut by the frame."""
    rng = np.random.default_rng(count)
    rows, columns = np.mgrid[:height, :width]
    drawn = [
        (rows - rng.uniform(0, height)) ** 2 + (columns - rng.uniform(0, width)) ** 2
        < rng.uniform(3, 12) ** 2
        for _ in range(count)
    ]
    return torch.from_numpy(np.array(drawn))


@pytest.fixture(scope="module")
def sam():
    return tiny_sam(64)


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return [
        eval_image(discs(*original, 4 + key), side=64, size=size, sample_id=key)
        for key, (size, original) in GEOMETRIES.items()
    ]


def slow_click(predicted, truth, clicked):
    """The click by brute force: each wrong pixel's distance to the nearest that is not."""
    best = (0.0, None)
    for region, label in ((predicted & ~truth, 0), (truth & ~predicted, 1)):
        padded = np.pad(region, 1)
        outside = np.argwhere(~padded)
        for row, column in np.argwhere(region):
            if (row, column) in clicked:
                continue
            depth = np.sqrt(((outside - (row + 1, column + 1)) ** 2).sum(axis=1).min())
            if depth > best[0]:
                best = (depth, (int(row), int(column), label))
    return best[1]


def test_a_click_is_the_deepest_wrong_pixel_and_says_which_wrong():
    rng = np.random.default_rng(0)
    kinds = set()
    for trial in range(30):
        truth, predicted = (discs(20, 24, 40 + 2 * trial + i)[i].numpy() for i in range(2))
        clicked = [(int(r), int(c)) for r, c in rng.integers(0, 20, (30, 2))]
        found = next_click(predicted, truth, clicked)
        assert found == slow_click(predicted, truth, clicked)
        row, column, label = found
        assert truth[row, column] != predicted[row, column]
        assert label == (LABEL_FOREGROUND if truth[row, column] else LABEL_BACKGROUND)
        kinds.add(label)
    assert kinds == {LABEL_FOREGROUND, LABEL_BACKGROUND}


def test_a_right_mask_and_one_clicked_all_over_get_no_click():
    truth = discs(20, 24, 1)[0].numpy()
    assert next_click(truth, truth) is None
    assert next_click(np.zeros_like(truth), truth, map(tuple, np.argwhere(truth))) is None


def by_sam_predictor(sam, image, index):
    """IoUs after each click, by `SamPredictor` with all clicks so far and the former mask."""
    height, width = image.size
    predictor = SamPredictor(sam)
    predictor.set_torch_image(image.image[None, :, :height, :width], image.original_size)
    truth = image.masks[index : index + 1][0].numpy()
    mask, former, clicks, ious = np.zeros_like(truth), None, [], []
    while len(ious) < CLICKS:
        click = slow_click(mask, truth, {each[:2] for each in clicks})
        clicks.append(click)
        masks, estimates, logits = predictor.predict(
            point_coords=np.array([[column, row] for row, column, _ in clicks]),
            point_labels=np.array([label for *_, label in clicks]),
            mask_input=former,
            multimask_output=len(ious) == 0,
        )
        best = int(estimates.argmax())
        mask, former = masks[best], logits[best, None]
        ious.append((mask & truth).sum() / (mask | truth).sum())
    return ious


def test_clicks_score_what_sam_predictor_scores_with_the_same_points_and_masks(sam, images):
    for image in images:
        found = click_image(SamModelPredictor(sam, keep_embedding=True), image, clicks=CLICKS)
        expected = [by_sam_predictor(sam, image, i) for i in range(len(image.masks))]
        np.testing.assert_allclose(found.ious, expected, atol=1e-6)
        assert len(np.unique(found.ious)) > 5  # of masks that differ
    assert any((np.diff(row) != 0).any() for row in found.ious)


def test_the_result_does_not_depend_on_how_many_objects_are_asked_at_a_time(sam, images):
    results = []
    for at_once in (64, 3):
        scorer = ClickScorer(SamModelPredictor(sam), clicks=3, prompts_per_call=at_once)
        assert list(scorer.watch(images)) == images
        results.append(scorer.result())
    np.testing.assert_allclose(results[0].objects.ious, results[1].objects.ious, atol=1e-6)
    assert results[0].num_objects == sum(len(image.masks) for image in images)


class Answers:
    """Predicts given masks, logits by the number of the call, and keeps what it was asked."""

    def __init__(self, masks):
        self.logits = [
            torch.nn.functional.interpolate(m[None, None].float(), 16)[0, 0] for m in masks
        ]
        self.asked = []

    def predict(self, images, sizes, points, labels, masks=None):
        self.asked.append((points[0], labels[0], masks))
        logits = (self.logits[len(self.asked) - 1] * 2 - 1) * 9
        answers = torch.stack([-logits, logits, -logits, -logits])[None, None]
        if masks is not None:
            answers = -answers
        return answers, torch.tensor([[[0.1, 0.9, 0.2, 0.3]]])


def test_a_mask_that_is_right_stays_and_is_clicked_no_more():
    truth = torch.zeros(1, 64, 64, dtype=torch.bool)
    truth[0, :, :32] = True
    image = eval_image(truth, side=64, size=(64, 64), sample_id=1)
    nothing = torch.zeros(64, 64)
    predictor = Answers([nothing, truth[0], nothing])
    table = click_image(predictor, image, clicks=3)
    assert table.ious.tolist() == [[0, 1, 1]]
    points, labels, masks = predictor.asked[1]
    assert labels.tolist() == [[1, 1, -1]]
    assert masks.shape == (1, 1, 16, 16)
    assert truth[0][tuple(points[0, 0].long().flip(0))]


def test_clicks_are_counted_to_the_goal_and_those_that_never_reach_it_are_said():
    ious = np.array([[0.5, 0.85, 0.7], [0.1, 0.2, 0.3], [0.9, 0.9, 0.9], [0.2, 0.2, GOAL]])
    table = ClickTable(np.arange(4), np.arange(4), ious)
    assert table.clicks_to_goal.tolist() == [2, 3, 1, 3]
    result = summarize_clicks([table])
    assert result.miou == pytest.approx(ious.mean(axis=0))
    assert (result.clicks_to_goal, result.num_unreached) == (2.25, 1)
    assert result.gain.mean == pytest.approx((ious[:, 2] - ious[:, 0]).mean())
    low, high = result.miou_intervals[1]
    assert low < result.miou[1] < high
    worse = summarize_clicks([replace(table, ious=ious - 0.1)])
    less = subtract_clicks(result, worse)
    assert [d.mean for d in less.miou] == pytest.approx([0.1] * 3)
    assert less.clicks_to_goal.mean == pytest.approx(2.25 - worse.clicks_to_goal)
    other = summarize_clicks([replace(table, sample_id=np.arange(1, 5))])
    with pytest.raises(ValueError, match="not of the same objects"):
        subtract_clicks(result, other)
