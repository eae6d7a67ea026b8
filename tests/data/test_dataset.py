"""Records become the samples they should, whatever the crop, and damage is replaced and counted."""

import dataclasses
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from segment_anything.utils.transforms import ResizeLongestSide

from supersam.config.data import AugmentConfig, DataConfig, SourceConfig
from supersam.data import dataset as dataset_module
from supersam.data.dataset import EvalDataset, ShardDataset, TooManyBadRecordsError
from supersam.data.sample import (
    LABEL_BOX_MAX,
    LABEL_BOX_MIN,
    LABEL_FOREGROUND,
    LABEL_PAD,
    MaskRecord,
    SegmentationSample,
)
from supersam.data.shards import ShardFolderError, ShardReader, ShardWriter, write_manifest
from supersam.data.sources import list_items, read_samples
from tests.data.samples import random_mask, random_sample, write_shards
from tests.paths import REAL_DATA, needs_real_data

SIDE = 64
AS_IT_IS = AugmentConfig(flip_horizontal=0)


def write_folder(folder, samples):
    folder.mkdir()
    writer = ShardWriter(folder / "shard-000000.h5")
    for sample in samples:
        writer.add(sample)
    write_manifest(folder, [writer.finish()])
    return ShardReader(folder)


def damage(folder, sample):
    """Flip a bit of a sample's image where it lies in the shard."""
    (path,) = folder.glob("shard-*.h5")
    data = bytearray(path.read_bytes())
    data[data.index(sample.image) + len(sample.image) // 2] ^= 1
    path.write_bytes(data)


def train_set(*readers, seed=0, **settings):
    config = DataConfig(**{"augment": AS_IT_IS, "prompts_per_image": 4, **settings})
    return Drawn(ShardDataset(readers, config, side=SIDE, seed=seed))


class Drawn:
    """Rows by their fields' names as attributes."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, key):
        return SimpleNamespace(**self.dataset[key])


def decoded(sample):
    """(M, H, W) bool, by pycocotools."""
    size = [sample.height, sample.width]
    return [coco.decode({"size": size, "counts": m.rle}).astype(bool) for m in sample.masks]


def pixels(sample):
    return np.asarray(Image.open(io.BytesIO(sample.image)).convert("RGB"))


def as_dict(sample):
    return {name: np.asarray(value).tolist() for name, value in vars(sample).items()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    return ShardReader(folder if write_shards(folder, (5, 1, 7)) else folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """One image of 200 x 120 pixels with 20 objects."""
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (120, 200, 3), np.uint8)).save(file, "PNG")
    masks = tuple(random_mask(rng, 120, 200) for _ in range(20))
    sample = SegmentationSample(7, "large.png", file.getvalue(), "png", 120, 200, masks)
    return write_folder(tmp_path_factory.mktemp("data") / "large", [sample])


def test_an_unaugmented_image_is_what_segment_anything_makes_of_it(written):
    for i in range(written.num_images):
        sample = train_set(written)[0, i, 0]
        expected = ResizeLongestSide(SIDE).apply_image(pixels(written.read(i)))
        height, width = sample.sizes
        assert (height, width) == expected.shape[:2]
        np.testing.assert_array_equal(
            np.moveaxis(sample.images[:, :height, :width], 0, 2), expected
        )
        assert sample.sample_ids == written.read(i).id


def test_prompts_lie_on_their_masks_whatever_the_crop(large):
    augment = AugmentConfig(crop_px=(40, 100), flip_horizontal=0.5, flip_vertical=0.5)
    samples = train_set(large, augment=augment, box_jitter=0.0)
    kinds = set()
    for turn in range(50):
        sample = samples[0, 0, turn]
        height, width = sample.sizes
        assert sample.valid.any()
        for k in np.flatnonzero(sample.valid):
            kinds.add(tuple(sample.labels[k].tolist()))
            covered = sample.masks[k] > 0
            if sample.labels[k, 0] == LABEL_FOREGROUND:
                x, y = (sample.points[k, 0] + 0.5) / 4
                assert covered[int(y), int(x)]
                continue
            (x0, y0), (x1, y1) = sample.points[k]
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
            rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
            assert (int(y0 / 4), int(x0 / 4)) == (rows[0], columns[0])
            assert (np.ceil(y1 / 4), np.ceil(x1 / 4)) == (rows[-1] + 1, columns[-1] + 1)
    assert kinds == {(LABEL_FOREGROUND, LABEL_PAD), (LABEL_BOX_MIN, LABEL_BOX_MAX)}


def test_a_mask_is_the_share_of_the_object_in_each_cell(large):
    annotated = decoded(large.read(0))
    scale = SIDE / 200
    areas = sorted(mask.sum() * scale**2 * 38 / 38.4 for mask in annotated)  # 120 px become 38
    sample = train_set(large, prompts_per_image=20)[0, 0, 0]
    assert sample.valid.all()
    shares = sorted(sample.masks.astype(float).sum(axis=(1, 2)) / 255 * 16)
    np.testing.assert_allclose(shares, areas, atol=1.0)


def test_a_key_fixes_the_sample_and_another_turn_changes_it(large):
    augment = AugmentConfig(crop_px=(40, 100), brightness=0.3)
    first = as_dict(train_set(large, augment=augment)[0, 0, 3])
    assert as_dict(train_set(large, augment=augment)[0, 0, 3]) == first
    others = (
        train_set(large, augment=augment)[0, 0, 4],
        train_set(large, augment=augment, seed=1)[0, 0, 3],
    )
    assert all(as_dict(other)["points"] != first["points"] for other in others)


def test_each_object_is_drawn_equally_often(large):
    samples = train_set(large, prompts_per_image=5, prompt="box", box_jitter=0.0)
    drawn = [tuple(p) for t in range(200) for p in samples[0, 0, t].points.reshape(5, 4).tolist()]
    counts = [drawn.count(box) for box in set(drawn)]
    assert len(counts) == 20  # of 20 different boxes
    assert min(counts) > 28
    assert max(counts) < 72  # 50 +- 3.5 standard deviations
    assert len(set(drawn[:5])) == 5  # without replacement


def test_an_image_with_fewer_objects_is_padded(written):
    for i in range(written.num_images):
        objects = len(written.read(i).masks)
        sample = train_set(written)[0, i, 0]
        used = min(4, objects)
        assert sample.valid.tolist() == [True] * used + [False] * (4 - used)
        assert sample.masks[:used].any(axis=(1, 2)).all()
        assert not sample.masks[used:].any()
        assert (sample.labels[used:] == LABEL_PAD).all()
        assert not sample.points[used:].any()


def test_a_crop_without_objects_is_drawn_again_and_in_the_end_not_at_all(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(file, "PNG")
    mask = np.zeros((100, 100), np.uint8, order="F")
    mask[90:95, 90:95] = 1
    corner = MaskRecord(coco.encode(mask)["counts"], 25, (90, 90, 5, 5), (92, 92))
    sample = SegmentationSample(1, "corner", file.getvalue(), "png", 100, 100, (corner,))
    samples = train_set(
        write_folder(tmp_path / "shards", [sample]),
        augment=AugmentConfig(crop_px=(30, 30), flip_horizontal=0),
        prompt="box",
        box_jitter=0.0,
    )
    drawn = [samples[0, 0, turn] for turn in range(60)]
    widths = np.array([sample.points[0, 1, 0] - sample.points[0, 0, 0] for sample in drawn])
    cropped = widths > 1.01 * 5 * SIDE / 100
    assert all(sample.valid[0] for sample in drawn)
    assert cropped.any()  # some draw hits the corner
    assert not cropped.all()  # some never do


def test_an_image_without_objects_has_no_valid_prompt(tmp_path):
    reader = write_folder(tmp_path / "shards", [random_sample(0, num_masks=0)])
    sample = train_set(reader, augment=AugmentConfig(crop_px=(4, 8)))[0, 0, 0]
    assert not sample.valid.any()
    assert sample.images.any()


def test_only_the_masks_asked_for_are_decoded(large, monkeypatch):
    calls = []
    decode = dataset_module.decode_runs
    monkeypatch.setattr(dataset_module, "decode_runs", lambda *a: calls.append(a) or decode(*a))
    assert train_set(large, prompts_per_image=3)[0, 0, 0].valid.all()
    assert len(calls) == 3


def test_brightness_changes_the_image_and_not_the_padding(large):
    plain = train_set(large)[0, 0, 0].images
    toned = train_set(large, augment=AS_IT_IS.model_copy(update={"brightness": 0.5}))[
        0, 0, 0
    ].images
    height = round(120 * SIDE / 200)
    assert (plain[:, :height] != toned[:, :height]).mean() > 0.5
    assert not toned[:, height:].any()


def test_a_damaged_record_is_replaced_by_its_neighbour(tmp_path, caplog):
    samples = [random_sample(i) for i in range(4)]
    reader = write_folder(tmp_path / "shards", samples)
    damage(tmp_path / "shards", samples[3])
    drawn = [train_set(reader)[0, i, 0] for i in range(4)]
    assert [s.sample_ids for s in drawn] == [samples[k].id for k in (0, 1, 2, 0)]
    assert [s.num_bad for s in drawn] == [0, 0, 0, 1]
    assert as_dict(drawn[3]) == {**as_dict(drawn[0]), "num_bad": 1}
    assert samples[3].name in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"image": b"no image"},
        {"height": 41},
        {"masks": (MaskRecord(b"03", 1, (0, 0, 1, 1), (0, 0)),)},
    ],
    ids=["image", "size", "mask"],
)
def test_a_record_that_was_wrong_from_the_start_is_replaced_too(tmp_path, change):
    samples = [dataclasses.replace(random_sample(0), **change), random_sample(1)]
    drawn = train_set(write_folder(tmp_path / "shards", samples))[0, 0, 0]
    assert (drawn.sample_ids, drawn.num_bad) == (samples[1].id, 1)


def test_a_folder_of_damage_is_given_up(tmp_path):
    samples = [dataclasses.replace(random_sample(i), image=b"no image") for i in range(20)]
    reader = write_folder(tmp_path / "shards", samples)
    with pytest.raises(
        TooManyBadRecordsError, match="16 records in a row are damaged in data set 0"
    ):
        train_set(reader)[0, 3, 0]


def test_a_side_that_is_no_grid_of_cells_is_refused(written):
    with pytest.raises(ValueError, match="side=70 px"):
        EvalDataset([written], side=70, prompt="box")


@pytest.mark.parametrize("prompt", ["point", "box"])
def test_an_evaluation_image_is_complete_and_unchanged(written, large, prompt):
    evaluation = EvalDataset([written, large], side=SIDE, prompt=prompt)
    assert len(evaluation) == 14
    for i in range(14):
        image = evaluation[i]
        sample = written.read(i) if i < 13 else large.read(0)
        expected = ResizeLongestSide(SIDE).apply_image(pixels(sample))
        height, width = image.size
        np.testing.assert_array_equal(image.image[:, :height, :width].permute(1, 2, 0), expected)
        assert image.sample_id == sample.id
        assert image.original_size == (sample.height, sample.width)
        assert image.masks[:].shape == (len(sample.masks), sample.height, sample.width)
        for mask, annotated in zip(image.masks, decoded(sample), strict=True):
            np.testing.assert_array_equal(mask, annotated)
        assert image.boxes.tolist() == [list(mask.bbox) for mask in sample.masks]
        scale = np.array((width / sample.width, height / sample.height))
        for k, mask in enumerate(sample.masks):
            x, y, box_width, box_height = mask.bbox
            corners = (
                [mask.point, (0, 0)]
                if prompt == "point"
                else [(x, y), (x + box_width, y + box_height)]
            )
            np.testing.assert_allclose(image.points[k], corners * scale, rtol=1e-6)


def test_an_evaluation_never_replaces_a_damaged_image(tmp_path):
    samples = [random_sample(i) for i in range(3)]
    reader = write_folder(tmp_path / "shards", samples)
    damage(tmp_path / "shards", samples[1])
    with pytest.raises(ShardFolderError, match=r"shards: .* record 1.*--verify"):
        EvalDataset([reader], side=SIDE, prompt="box")[1]


@needs_real_data
def test_real_nuclei_are_resized_and_masked_as_the_reference_does(tmp_path):
    source = SourceConfig(kind="sa1b", root=REAL_DATA / "nuclei_sa1b", split="val")
    items = list_items(source)[::30]
    samples = [sample for item in items for sample in read_samples(source, item).samples]
    reader = write_folder(tmp_path / "shards", samples)
    side = 256
    evaluation = EvalDataset([reader], side=side, prompt="point")
    training = Drawn(ShardDataset([reader], DataConfig(augment=AS_IT_IS), side=side, seed=0))
    for i, sample in enumerate(samples):
        image, drawn = evaluation[i], training[0, i, 0]
        expected = ResizeLongestSide(side).apply_image(pixels(sample))
        height, width = image.size
        np.testing.assert_array_equal(image.image[:, :height, :width].permute(1, 2, 0), expected)
        np.testing.assert_array_equal(drawn.images, image.image)
        for mask, annotated in zip(image.masks, decoded(sample), strict=True):
            np.testing.assert_array_equal(mask, annotated)
        scale = side / max(sample.height, sample.width)
        areas = {round(mask.area * scale**2) for mask in sample.masks}
        for share in drawn.masks[drawn.valid]:
            area = share.astype(int).sum() / 255 * 16
            assert min(abs(area - known) for known in areas) <= 0.02 * area + 1
