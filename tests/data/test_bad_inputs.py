"""Inputs that cannot be used: named and refused, or skipped, counted and listed. Never a crash."""

import gzip
import json
import re

import numpy as np
import pytest
import tifffile
from PIL import Image

from supersam.config.data import SourceConfig
from supersam.data.convert import convert
from supersam.data.manifest import read_manifest
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


JSON_FAULTS = {
    "broken": (lambda path: path.write_text('{"annotations": ['), "is not a JSON file"),
    "a list": (
        lambda path: path.write_text("[1]"),
        "is not an SA-1B JSON: it holds .1., not an object",
    ),
    "binary": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "is not a JSON file"),
    "no annotations": (lambda path: path.write_text("{}"), "has no annotations"),
    "no mask and no size": (
        lambda path: path.write_text('{"annotations": []}'),
        "states no size of the image and has no mask",
    ),
    "all masks of another size": (
        lambda path: path.write_text(
            json.dumps(sa1b_record([rectangle(1, 1, 9, 9, (9, 9))], (9, 9)))
        ),
        "the image has 40 x 56 px, its annotation 9 x 9",
    ),
}
ANNOTATION_FAULTS = {
    "mask of another size": (
        compressed(rectangle(1, 1, 9, 9, (30, 30))),
        "its mask has 30 x 30 px, the image 40 x 56",
    ),
    "run lengths too short": (
        {"size": [40, 56], "counts": [5, 9]},
        "cover 14 px, the image has 40 x 56 px",
    ),
    "compressed run lengths too short": ({"size": [40, 56], "counts": "52"}, "cover 7 px"),
    "no run lengths": ({"size": [40, 56], "counts": None}, "its counts are null"),
    "not text": (
        {"size": [40, 56], "counts": "\u00fc\u00ff"},
        "not text in COCO's compressed form",
    ),
    "bytes": ({"size": [40, 56], "counts": "b'52'"}, "Python's print of bytes"),
    "a lone surrogate": ({"size": [40, 56], "counts": "\ud800"}, "not text in COCO's compressed"),
    "true and false": ({"size": [40, 56], "counts": [True] * 9}, "a run length is true"),
    "negative": ({"size": [40, 56], "counts": [-1, 2241]}, "a run length is negative"),
    "a number too long": ({"size": [40, 56], "counts": "o" * 20 + "0"}, "more than 32 bits"),
    "no size": ({"counts": "52"}, "its size is null; .height, width. is needed"),
    "three sizes": ({"size": [40, 56, 1], "counts": "52"}, "its size is .40, 56, 1."),
    "negative size": ({"size": [-40, -56], "counts": "52"}, "sides start at 1"),
    "short polygon": ([[1, 2, 3, 4]], "a polygon has 4 numbers; 3 or more x, y pairs"),
    "odd polygon": ([[1, 2, 3, 4, 5, 6, 7]], "a polygon has 7 numbers"),
    "words": ([["a"] * 6], "a polygon's coordinate is .a.; a number is needed"),
    "null": ([[10.0, 10.0, None, 10.0, 40.0, 40.0]], "a polygon's coordinate is null"),
    "NaN": ([[10.0, 10.0, float("nan"), 10.0, 40.0, 40.0]], "is NaN; a finite number"),
    "no float64 when clipped": (
        [[0, 0, 1e308, 0, 1e308, 1e308, -1e308, 1e308]],
        "lies in no image",
    ),
    "infinity": ([[10.0, 10.0, float("inf"), 10.0, 40.0, 40.0]], "is Infinity; a finite number"),
    "a huge number": ([[10**400, 10, 20, 10, 40, 40]], "a finite number is needed"),
    "text": ("mask.png", "its segmentation is .mask.png.; polygons or run lengths are needed"),
}
VALUE_FAULTS = [
    ({"category_id": "cat"}, "category_id is .cat.; a number is needed"),
    ({"category_id": 1.5}, "category_id is 1.5; a whole number is needed"),
    ({"category_id": 10**30}, "category_id is 1000000.*; at most 63 bits"),
    ({"category_id": -(2**63) - 1}, "at most 63 bits"),
    ({"category_id": float("nan")}, "category_id is NaN"),
]
SA1B_FAULTS = [
    ({"predicted_iou": float("nan")}, "predicted_iou is NaN; a finite number is needed"),
    ({"stability_score": float("-inf")}, "stability_score is -Infinity"),
    ({"predicted_iou": [0.9]}, r"predicted_iou is \[0.9\]; a number"),
    ({"point_coords": [[float("nan"), 3.0]]}, "a point's x is NaN"),
    ({"point_coords": [[1.0]]}, r"point_coords is \[\[1.0\]\]; \[\[x, y\]\] is needed"),
    ({"point_coords": "here"}, "point_coords is .here."),
]
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
    assert re.search(reason, skipped.reason)
    reader = ShardReader(out)
    assert reader.num_images == 2
    assert not any(reader.read(i).name.startswith(name) for i in range(2))


def check_annotation(config, tmp_path, which, reason):
    """One of two annotations of the second image is bad: named, or skipped without its image."""
    with pytest.raises(BadInputError, match=rf"{which}: .*{reason}.*--on-bad skip"):
        convert(config, tmp_path / "error")
    assert not list((tmp_path / "error").glob("shard-*"))
    report = convert(config.model_copy(update={"on_bad": "skip"}), tmp_path / "skip")
    assert report.manifest.skipped == ()
    (skipped,) = report.manifest.skipped_objects
    assert re.search(reason, skipped.reason)
    reader = ShardReader(tmp_path / "skip")
    assert [len(reader.read(i).masks) for i in range(3)] == [2, 1, 2]
    again = convert(config.model_copy(update={"on_bad": "skip"}), tmp_path / "skip")
    assert again.manifest.skipped_objects == (skipped,)


@pytest.mark.parametrize("fault", ANNOTATION_FAULTS)
def test_a_bad_sa1b_mask_costs_itself(tmp_path, fault):
    value, reason = ANNOTATION_FAULTS[fault]
    config = sa1b_with(tmp_path / "in", {"segmentation": value})
    check_annotation(config, tmp_path, "train/sa_0001.jpg: annotation 1 of sa_0001.json", reason)


@pytest.mark.parametrize(("change", "reason"), VALUE_FAULTS + SA1B_FAULTS)
def test_a_bad_sa1b_value_costs_its_annotation(tmp_path, change, reason):
    config = sa1b_with(tmp_path / "in", change)
    check_annotation(config, tmp_path, "train/sa_0001.jpg: annotation 1 of sa_0001.json", reason)


def sa1b_with(root, change):
    make_sa1b(root, 3)
    edit(root / "train" / "sa_0001.json", lambda record: record["annotations"][1].update(change))
    return SourceConfig(kind="sa1b", root=root)


@pytest.mark.parametrize("fault", ANNOTATION_FAULTS)
def test_a_bad_coco_mask_costs_itself(tmp_path, fault):
    value, reason = ANNOTATION_FAULTS[fault]
    config = coco_with(tmp_path / "in", {"segmentation": value})
    check_annotation(config, tmp_path, "val/1.png: annotation id 3", reason)


@pytest.mark.parametrize(
    ("change", "reason"), [*VALUE_FAULTS, ({"iscrowd": "yes"}, "iscrowd is .yes.; 0 or 1")]
)
def test_a_bad_coco_value_costs_its_annotation(tmp_path, change, reason):
    config = coco_with(tmp_path / "in", change)
    check_annotation(config, tmp_path, "val/1.png: annotation id 3", reason)


def coco_with(root, change):
    """Three images with two objects each; annotation 3, of the second image, is changed."""
    images = [
        {"id": k, "file_name": f"{k}.png", "height": SIZE[0], "width": SIZE[1]} for k in range(3)
    ]
    good = {"iscrowd": 0, "category_id": 1, "segmentation": compressed(rectangle(2, 2, 9, 9))}
    annotations = [{"id": k, "image_id": k // 2, **good} for k in range(6)]
    annotations[3].update(change)
    return SourceConfig(kind="coco", root=make_coco(root, images, annotations), split="val")


def test_an_annotation_that_is_null_costs_itself(tmp_path):
    config = sa1b_with(tmp_path / "in", {})
    edit(
        tmp_path / "in/train/sa_0001.json",
        lambda record: record["annotations"].__setitem__(1, None),
    )
    check_annotation(config, tmp_path, "annotation 1 of sa_0001.json", "it is null")


@pytest.mark.parametrize("segmentation", [[], [[]], None, {}])
def test_annotations_without_a_mask_are_counted(tmp_path, segmentation):
    for config in (
        coco_with(tmp_path / "coco", {"segmentation": segmentation}),
        sa1b_with(tmp_path / "sa1b", {"segmentation": segmentation}),
    ):
        out = tmp_path / f"out-{config.kind}"
        report = convert(config, out)
        assert (report.manifest.num_masks, report.manifest.counts.without_mask) == (5, 1)
        assert read_manifest(out).counts.without_mask == 1


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ({"height": None, "width": 9}, "no height and width"),
        ({"height": "high"}, "height is .high.; a number is needed"),
        ({"height": 40.5}, "height is 40.5; a whole number"),
        ({"height": float("nan")}, "height is NaN"),
        ({"height": 0}, "size is 0 x 56; it starts at 1 x 1"),
        ({"file_name": None}, "file_name is null; a name is needed"),
        ({"file_name": 7}, "file_name is 7; a name is needed"),
    ],
)
def test_a_bad_coco_image_costs_itself(tmp_path, image, reason):
    config = coco_with(tmp_path / "in", {"segmentation": [[1, 1, 9, 1, 9, 9]]})
    path = tmp_path / "in" / "annotations" / "instances_val.json"
    edit(path, lambda record: record["images"][1].update(image))
    edit(path, lambda record: record["annotations"][2].update(segmentation=[[1, 1, 9, 1, 9, 9]]))
    with pytest.raises(BadInputError, match=reason):
        convert(config, tmp_path / "error")
    report = convert(config.model_copy(update={"on_bad": "skip"}), tmp_path / "skip")
    assert re.search(reason, report.manifest.skipped[0].reason)
    assert report.manifest.num_images == 2


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([1], "holds .1.; images and annotations are needed"),
        (
            {"images": {"1": {}}, "annotations": []},
            "the list of images is an object; a list is",
        ),
        ({"images": [], "annotations": {"7": {}}}, "the list of annotations is an object"),
        ({"images": [None], "annotations": []}, "image 0 is null, not an object"),
        ({"images": [{"id": None}], "annotations": []}, "image 0 has no id"),
        ({"images": [], "annotations": [{"id": 1}]}, "annotation 0 has no image_id"),
        ({"images": [{"id": [1]}], "annotations": []}, "image 0 has no id"),
    ],
)
def test_a_coco_json_of_another_form_is_told_in_words(tmp_path, record, reason):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(record))
    with pytest.raises(SourceError, match=f"instances_val.json (is not a COCO JSON: )?{reason}"):
        convert(SourceConfig(kind="coco", root=tmp_path, split="val"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("entries", ["images", "annotations"])
@pytest.mark.parametrize("bad", [None, "oops", {"file_name": "b.png"}])
def test_a_bad_entry_of_a_coco_list_costs_itself(tmp_path, entries, bad):
    image = {"id": 1, "file_name": "1.png", "height": SIZE[0], "width": SIZE[1]}
    mask = compressed(rectangle(2, 2, 9, 9))
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": mask}]
    root = make_coco(tmp_path / "in", [image], annotations)
    path = root / "annotations" / "instances_val.json"
    edit(path, lambda record: record[entries].insert(0, bad))
    config = SourceConfig(kind="coco", root=root, split="val")
    with pytest.raises(BadInputError, match=rf"1 of 2 .* {entries[:-1]} 0 of instances_val.json"):
        convert(config, tmp_path / "error")
    manifest = convert(config.model_copy(update={"on_bad": "skip"}), tmp_path / "skip").manifest
    skipped, others = manifest.skipped, manifest.skipped_objects
    if entries == "annotations":
        skipped, others = others, skipped
    assert (len(skipped), len(others), manifest.num_images) == (1, 0, 1)


@pytest.mark.parametrize("size", [(10**30, SIZE[1]), (10**6, 10**6), SIZE[::-1]])
@pytest.mark.parametrize("kind", ["polygon", "run lengths"])
def test_a_size_that_the_image_has_not_is_refused_before_masks_are_drawn(tmp_path, kind, size):
    height, width = size
    mask = [[0, 0, width, 0, width, height, 0, height]]
    if kind == "run lengths":
        mask = {"size": size, "counts": [0, height * width]}
    image = {"id": 1, "file_name": "1.png", "height": SIZE[0], "width": SIZE[1]}
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": mask}]
    root = make_coco(tmp_path / "in", [image], annotations)
    path = root / "annotations" / "instances_val.json"
    edit(path, lambda record: record["images"][0].update(height=height, width=width))
    with pytest.raises(BadInputError, match=f"has 40 x 56 px, its annotation {height} x {width}"):
        convert(SourceConfig(kind="coco", root=root, split="val"), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\0" * 99, "it is filled with zeros"),
        (gzip.compress(b"{}", mtime=0), "it is compressed by gzip; unpack it with gunzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        (b"not what is meant", "Expecting value: line 1"),
        ('{"a": "\u00fc"}'.encode("latin-1"), "byte 7 is not UTF-8 text; save it as UTF-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "holds a number of more digits than can be read"),
    ],
)
def test_a_file_that_is_no_json_is_told_for_what_it_is(tmp_path, content, reason):
    root = make_sa1b(tmp_path / "in", 1)
    (root / "train" / "sa_0000.json").write_bytes(content)
    with pytest.raises(BadInputError, match=rf"sa_0000.json (is not a JSON file: )?{reason}"):
        convert(SourceConfig(kind="sa1b", root=root), tmp_path / "out")


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_json_in_other_codings_of_unicode_is_read(tmp_path, coding):
    root = make_sa1b(tmp_path / "in", 1)
    path = root / "train" / "sa_0000.json"
    path.write_bytes(path.read_text().encode(coding))
    assert convert(SourceConfig(kind="sa1b", root=root), tmp_path / "out").manifest.num_masks == 2


def test_a_failure_before_the_first_shard_leaves_the_folder_free(tmp_path):
    root = make_sa1b(tmp_path / "in", 2)
    (root / "train" / "sa_0001.json").write_text("{}")
    config = SourceConfig(kind="sa1b", root=root)
    with pytest.raises(BadInputError):
        convert(config, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    other = config.model_copy(update={"on_bad": "skip", "min_area_px": 5})
    assert convert(other, tmp_path / "out").manifest.num_images == 1


def test_lists_nested_without_end_are_told_in_words(tmp_path):
    root = make_sa1b(tmp_path / "in", 3)
    (root / "train" / "sa_0001.json").write_text("[" * 200_000)
    with pytest.raises(BadInputError, match="nested too deeply|not a JSON file"):
        convert(SourceConfig(kind="sa1b", root=root), tmp_path / "out")


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
            "1.png has colours .40 x 56 x 3., not ids; export it",
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
            "ids from 70000 to 70000; ids from 0 to 65535 can be read",
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
    stack = masks.astype(np.float32)
    stack[1, 3, 3] = np.nan
    tifffile.imwrite(tmp_path / "train.tif", stack, photometric="minisblack")
    tifffile.imwrite(tmp_path / "train_groundtruth.tif", masks, photometric="minisblack")
    config = SourceConfig(kind="tiff", root=tmp_path)
    with pytest.raises(BadInputError, match=r"train.tif#1: page 1 has pixels that are NaN"):
        convert(config, tmp_path / "out")


def test_a_stack_that_is_none_is_refused(tmp_path):
    (tmp_path / "train.tif").write_text("hello")
    (tmp_path / "train_groundtruth.tif").write_text("hello")
    with pytest.raises(SourceError, match=r"train.tif is a text"):
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
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("annotations", [[], None])
def test_a_source_without_an_annotation_is_refused_in_other_words(tmp_path, annotations):
    root = make_sa1b(tmp_path / "in", 2)
    for file in (root / "train").glob("*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": annotations}))
    with pytest.raises(SourceError, match="none of 2 inputs has an object of any size; check"):
        convert(SourceConfig(kind="sa1b", root=root), tmp_path / "out")


def test_images_without_objects_are_counted(tmp_path):
    root = make_sa1b(tmp_path / "in", 2)
    (root / "train" / "sa_0000.json").write_text(json.dumps(sa1b_record([])))
    report = convert(SourceConfig(kind="sa1b", root=root), tmp_path / "out")
    assert (report.manifest.counts.empty_inputs, report.manifest.num_images) == (1, 1)
