"""Baselines that never look at the image: what they learn, and what they score."""

import json

import numpy as np
import pytest
import torch

from supersam.config import SourceConfig
from supersam.data.convert import convert
from supersam.data.dataset import EvalDataset
from supersam.data.images import encode_png
from supersam.data.masks import ObjectMasks
from supersam.data.rle import mask_record, window_runs
from supersam.data.sample import LABEL_BOX_MAX, LABEL_BOX_MIN, SegmentationSample
from supersam.data.shards import ShardReader, ShardWriter, write_manifest
from supersam.data.transforms import MaskPatch
from supersam.evaluation import box_fill_iou, priors
from supersam.evaluation.priors import disc_ious, learn_priors, touched_sides
from tests.paths import REAL_DATA, needs_real_data


def disc(radius, *, size=40, centre=(20, 20)):
    y, x = np.mgrid[:size, :size]
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


def whole(mask):
    patch = ObjectMasks((window_runs(mask, *mask.shape),), mask.shape).patch(0)
    assert patch is not None
    return patch


@pytest.mark.parametrize("point", [(20, 20), (2, 37), (20.5, 11.25)])
def test_a_disc_is_scored_as_one_that_is_drawn(point):
    mask = disc(9, centre=(18, 22))
    y, x = np.mgrid[:40, :40]
    radii = np.array([1, 5, 9, 30, 100])
    drawn = [(x - point[0]) ** 2 + (y - point[1]) ** 2 <= r**2 for r in radii]
    expected = [(mask & d).sum() / (mask | d).sum() for d in drawn]
    np.testing.assert_allclose(disc_ious(whole(mask), point, (40, 40), radii=radii), expected)


def test_the_sides_that_an_object_touches():
    patch = MaskPatch(np.ones((10, 20), bool), 0, 30)
    assert touched_sides(patch, (40, 40)) == 1 + 8
    assert touched_sides(patch, (41, 20)) == 1 + 4


def write_discs(folder, radii, *, touching=0):
    """An image per radius with a disc; some at the left side, where half of it is missing."""
    writer = ShardWriter(folder / "shard-000000.h5")
    for number, radius in enumerate(radii):
        centre = (0, 20) if number < touching else (20, 20)
        record = mask_record(window_runs(disc(radius, centre=centre), 40, 40), point=centre)
        image = encode_png(np.full((40, 40, 3), number, np.uint8))
        writer.add(SegmentationSample(number, f"{number}.png", image, "png", 40, 40, (record,)))
    write_manifest(folder, [writer.finish()])
    return folder


def test_a_prior_knows_what_discs_look_like_whole_and_at_a_side(tmp_path):
    folder = write_discs(tmp_path, [9] * 70, touching=35)
    learned = learn_priors([folder])
    assert learned.num_objects >= 70
    assert abs(learned.radius_px - 9) <= 1
    for touching in (0, 40):  # a tile of the first 35 images, and of the last 35
        box = EvalDataset([ShardReader(folder)], side=64, prompt="box")[touching]
        point = EvalDataset([ShardReader(folder)], side=64, prompt="point")[touching]
        assert learned.ious(box)[0] > 0.97
        assert learned.ious(point)[0] > 0.8
        assert box_fill_iou(box.masks[:])[0] < 0.82


def test_sides_of_few_objects_take_the_mean_of_all(tmp_path):
    folder = write_discs(tmp_path, [9] * 40, touching=5)
    learned = learn_priors([folder])
    np.testing.assert_array_equal(learned.masks[1], learned.masks[15])
    assert not np.array_equal(learned.masks[0], learned.masks[1])


def test_what_was_learned_is_kept_beside_the_shards_until_they_change(tmp_path, monkeypatch):
    folder = write_discs(tmp_path, [9] * 35)
    first = learn_priors([folder])
    (kept,) = folder.glob("priors-*.json")

    def refuse(_):
        raise AssertionError("the shards were looked at again")

    monkeypatch.setattr(priors, "_add_up", refuse)
    again = learn_priors([folder])
    np.testing.assert_array_equal(first.masks, again.masks)
    assert first.radius_px == again.radius_px
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"fingerprint": "of others"}))
    with pytest.raises(AssertionError, match="looked at again"):
        learn_priors([folder])


def test_shards_that_cannot_be_written_to_serve_too(tmp_path):
    folder = write_discs(tmp_path, [9] * 35)
    (folder / "priors-v1.json").mkdir()
    assert learn_priors([folder]).num_objects >= 35


def test_there_is_no_prior_without_training_shards(tmp_path):
    assert learn_priors([]) is None
    assert learn_priors([tmp_path / "gone"]) is None


def test_an_object_of_no_pixel_is_not_learned_from(tmp_path):
    folder = write_discs(tmp_path, [9] * 31)
    image = EvalDataset([ShardReader(folder)], side=64, prompt="box")[0]
    empty = ObjectMasks.of(torch.zeros(1, 40, 40, dtype=torch.bool))
    learned = learn_priors([folder])
    assert image.labels.tolist() == [[LABEL_BOX_MIN, LABEL_BOX_MAX]]
    assert learned.ious(type(image)(**{**vars(image), "masks": empty})).tolist() == [0.0]


@needs_real_data
@pytest.mark.slow
def test_real_nuclei_are_answered_without_looking(tmp_path):
    """As measured independently: 0.815 on whole images where filling the box has 0.75."""
    for split in ("train", "val"):
        source = SourceConfig(kind="sa1b", root=REAL_DATA / "nuclei_sa1b", split=split)
        convert(source, tmp_path / split, workers=1)
    learned = learn_priors([tmp_path / "train"])
    dataset = EvalDataset([ShardReader(tmp_path / "val")], side=64, prompt="box")
    ious = np.concatenate([learned.ious(dataset[i]) for i in range(len(dataset))])
    assert ious.mean() == pytest.approx(0.815, abs=0.003)
