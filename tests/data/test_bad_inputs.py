"""Inputs that cannot be used: named and refused, or skipped, counted and listed. Never a crash."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from supersam.config.data import SourceConfig
from supersam.data.convert import convert
from supersam.data.shards import ShardReader
from supersam.data.sources import BadInputError, SourceError
from tests.data.folders import (
    SIZE,
    compressed,
    make_coco,
    make_sa1b,
    noise,
    rectangle,
    sa1b_record,
    save,
)


def edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def set_segmentation(value):
    def change(record):
        record["annotations"][1]["segmentation"] = value

    return change


JSON_FAULTS = {
    "broken": (lambda path: path.write_text('{"annotations": ['), "is no SA-1B JSON"),
    "a list": (lambda path: path.write_text("[1]"), "is no SA-1B JSON"),
    "binary": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "is no SA-1B JSON"),
    "no annotations": (lambda path: path.write_text("{}"), "lacks 'annotations'"),
    "no mask and no size": (
        lambda path: path.write_text('{"annotations": []}'),
        "states no size of the image and has no mask",
    ),
    "annotation without mask": (
        lambda path: edit(path, lambda record: record["annotations"][0].pop("segmentation")),
        "annotation 0 of sa_0001.json is broken: KeyError: 'segmentation'",
    ),
    "mask of another size": (
        lambda path: edit(path, set_segmentation(compressed(rectangle(1, 1, 9, 9, (30, 30))))),
        "different sizes: .*30, 30.*40, 56",
    ),
    "all masks of another size": (
        lambda path: path.write_text(
            json.dumps(sa1b_record([rectangle(1, 1, 9, 9, (9, 9))], (9, 9)))
        ),
        "the image has 40 x 56 px, its annotation 9 x 9",
    ),
    "run lengths too short": (
        lambda path: edit(path, set_segmentation({"size": [40, 56], "counts": [5, 9]})),
        "annotation 1 .* cover 14 px, the image has 40 x 56 px",
    ),
    "compressed run lengths too short": (
        lambda path: edit(path, set_segmentation({"size": [40, 56], "counts": "52"})),
        "annotation 1 .* cover 7 px",
    ),
    "no run lengths": (
        lambda path: edit(path, set_segmentation({"size": [40, 56], "counts": None})),
        "annotation 1 .*TypeError",
    ),
    "not text": (
        lambda path: edit(path, set_segmentation({"size": [40, 56], "counts": "\u00fc\u00ff"})),
        "no text in COCO's compressed form",
    ),
}
IMAGE_FAULTS = {
    "empty": (lambda path: path.write_bytes(b""), "cannot be decoded"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-500]), "cannot be decoded"),
    "text": (lambda path: path.write_text("hello"), "cannot be decoded"),
    "another size": (
        lambda path: save(path, noise(0, (40, 57))),
        "the image has 40 x 57 px, its annotation 40 x 56",
    ),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "no image beside sa_0001.json"),
    "missing": (lambda path: path.unlink(), "no image beside sa_0001.json"),
}


@pytest.mark.parametrize("fault", [*JSON_FAULTS, *IMAGE_FAULTS, "no json"])
def test_a_bad_sa1b_input_is_named_or_skipped(tmp_path, fault):
    root = make_sa1b(tmp_path / "in", 3)
    stem = root / "train" / "sa_0001"
    if fault == "no json":
        stem.with_suffix(".json").unlink()
        reason = "no sa_0001.json beside the image"
    elif fault in JSON_FAULTS:
        damage, reason = JSON_FAULTS[fault]
        damage(stem.with_suffix(".json"))
    else:
        damage, reason = IMAGE_FAULTS[fault]
        damage(stem.with_suffix(".jpg"))
    config = SourceConfig(kind="sa1b", root=root)
    with pytest.raises(BadInputError, match=rf"train/sa_0001\.\w+: .*{reason}.*--on-bad skip"):
        convert(config, tmp_path / "error")
    check_skipped(config, tmp_path / "skip", "train/sa_0001", reason)


def check_skipped(config, out, name, reason):
    """With on_bad=skip, the others are converted and the bad one is in the manifest."""
    report = convert(config.model_copy(update={"on_bad": "skip"}), out)
    assert report.manifest is not None
    (skipped,) = report.manifest.skipped
    assert skipped.name.startswith(name)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(skipped.reason)
    reader = ShardReader(out)
    assert reader.num_images == 2
    assert not any(reader.read(i).name.startswith(name) for i in range(2))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"segmentation": [[1, 2, 3, 4]]}, "annotation id 1 .* 3 or more x, y pairs"),
        ({"segmentation": []}, "annotation id 1 .* no polygons"),
        ({"segmentation": [["a"] * 6]}, "annotation id 1 is broken"),
        (
            {"segmentation": compressed(rectangle(1, 1, 5, 5, (9, 9)))},
            "annotation id 1 .*size .9, 9., the image",
        ),
        ({"category_id": None}, "annotation id 1 is broken: TypeError"),
    ],
)
def test_a_bad_coco_annotation_is_named_or_skipped(tmp_path, change, reason):
    images = [
        {"id": k, "file_name": f"{k}.png", "height": SIZE[0], "width": SIZE[1]} for k in range(3)
    ]
    good = {"iscrowd": 0, "category_id": 1, "segmentation": compressed(rectangle(2, 2, 9, 9))}
    annotations = [{"id": k, "image_id": k, **good} for k in range(3)]
    annotations[1].update(change)
    config = SourceConfig(
        kind="coco", root=make_coco(tmp_path / "in", images, annotations), split="val"
    )
    with pytest.raises(BadInputError, match=rf"val/1.png: {reason}"):
        convert(config, tmp_path / "error")
    check_skipped(config, tmp_path / "skip", "val/1.png", reason)


def test_a_coco_id_used_twice_spoils_both_images(tmp_path):
    images = [
        {"id": id, "file_name": f"{k}.png", "height": SIZE[0], "width": SIZE[1]}
        for k, id in enumerate([5, 6, 5, 7])
    ]
    mask = compressed(rectangle(2, 2, 9, 9))
    annotations = [
        {"id": k, "image_id": id, "category_id": 1, "segmentation": mask}
        for k, id in enumerate([5, 6, 7])
    ]
    root = make_coco(tmp_path / "in", images, annotations)
    config = SourceConfig(kind="coco", root=root, split="val")
    with pytest.raises(BadInputError, match=r"2 of 4 .*0.png: image id 5 is used twice; val/2.png"):
        convert(config, tmp_path / "error")
    report = convert(config.model_copy(update={"on_bad": "skip"}), tmp_path / "skip")
    assert [skipped.name for skipped in report.manifest.skipped] == ["val/0.png", "val/2.png"]


def test_annotations_of_no_image_are_counted(tmp_path, caplog):
    image = {"id": 1, "file_name": "1.png", "height": SIZE[0], "width": SIZE[1]}
    mask = compressed(rectangle(2, 2, 9, 9))
    annotations = [
        {"id": k, "image_id": k, "category_id": 1, "segmentation": mask} for k in (1, 8, 9)
    ]
    root = make_coco(tmp_path / "in", [image], annotations)
    convert(SourceConfig(kind="coco", root=root, split="val"), tmp_path / "out")
    assert "2 annotations of" in caplog.text


def labelmap_root(root, count=3):
    labels = rectangle(5, 5, 20, 20).astype(np.uint8)
    for k in range(count):
        save(root / "images" / "train" / f"{k}.jpg", noise(k))
        save(root / "annotations" / "train" / f"{k}.png", labels)
    return root


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda root: (root / "annotations/train/1.png").unlink(),
            "no label map annotations/train",
        ),
        (lambda root: (root / "images/train/1.jpg").unlink(), "no image images/train/1"),
        (lambda root: save(root / "images/train/1.png", noise(1)), "2 images of the stem 1"),
        (
            lambda root: save(root / "annotations/train/1.png", noise(1)),
            "1.png has mode RGB; it takes one id a pixel",
        ),
        (
            lambda root: save(root / "annotations/train/1.png", np.ones((9, 9), np.uint8)),
            "the image has 40 x 56 px, its annotation 9 x 9",
        ),
        (
            lambda root: (root / "annotations/train/1.png").write_bytes(b"no"),
            "label map 1.png cannot be decoded",
        ),
        (
            lambda root: Image.fromarray(np.full(SIZE, 70000, np.int32)).save(
                root / "annotations/train/1.png", "TIFF"
            ),
            "ids from 70000 to 70000; it takes 0 to 65535",
        ),
    ],
)
def test_a_bad_labelmap_input_is_named_or_skipped(tmp_path, damage, reason):
    config = SourceConfig(kind="labelmap", root=labelmap_root(tmp_path / "in"))
    damage(config.root)
    with pytest.raises(BadInputError, match=rf"train/1\.\w+: .*{reason}"):
        convert(config, tmp_path / "error")
    skip = convert(config.model_copy(update={"on_bad": "skip"}), tmp_path / "skip")
    assert [skipped.name.split("/")[-1][:2] for skipped in skip.manifest.skipped] == ["1."]
    assert skip.manifest.num_images == 2


def test_a_stack_of_unusable_numbers_is_refused(tmp_path):
    masks = np.zeros((2, 20, 20), np.uint8)
    tifffile.imwrite(tmp_path / "train.tif", masks.astype(np.float32), photometric="minisblack")
    tifffile.imwrite(tmp_path / "train_groundtruth.tif", masks, photometric="minisblack")
    config = SourceConfig(kind="tiff", root=tmp_path)
    with pytest.raises(BadInputError, match=r"train.tif#0: page 0 has pixels .*float32"):
        convert(config, tmp_path / "out")


def test_a_stack_that_is_none_is_refused(tmp_path):
    (tmp_path / "train.tif").write_text("hello")
    (tmp_path / "train_groundtruth.tif").write_text("hello")
    with pytest.raises(SourceError, match=r"train.tif is no TIFF file"):
        convert(SourceConfig(kind="tiff", root=tmp_path), tmp_path / "out")


def test_a_damaged_page_of_a_16_bit_stack_spoils_only_itself(tmp_path):
    stack = np.random.default_rng(0).integers(0, 4000, (3, 40, 40), np.uint16)
    masks = np.array([rectangle(5, 5, 20, 20, (40, 40))] * 3, np.uint8)
    path = tmp_path / "train.tif"
    tifffile.imwrite(path, stack, photometric="minisblack", compression="zlib")
    tifffile.imwrite(tmp_path / "train_groundtruth.tif", masks, photometric="minisblack")
    with tifffile.TiffFile(path) as file:
        start = file.pages[1].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    check_skipped(
        SourceConfig(kind="tiff", root=tmp_path), tmp_path / "out", "train.tif#1", "page 1"
    )


def test_a_source_of_nothing_usable_is_refused(tmp_path):
    root = make_sa1b(tmp_path / "in", 2)
    config = SourceConfig(kind="sa1b", root=root, min_area_px=10_000)
    with pytest.raises(SourceError, match="none of 2 inputs has an object of 10000 px or more"):
        convert(config, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_images_without_objects_are_counted(tmp_path):
    root = make_sa1b(tmp_path / "in", 2)
    (root / "train" / "sa_0000.json").write_text(json.dumps(sa1b_record([])))
    report = convert(SourceConfig(kind="sa1b", root=root), tmp_path / "out")
    assert (report.manifest.empty_inputs, report.manifest.num_images) == (1, 1)
