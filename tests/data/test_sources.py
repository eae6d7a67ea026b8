"""Each layout, compared with what PIL and pycocotools make of the same files."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO
from scipy import ndimage

from supersam.config.data import SourceConfig
from supersam.data.images import decode_rgb
from supersam.data.sources import BadInputError, SourceError, list_items, read_samples
from tests.data.folders import (
    SIZE,
    add_sa1b,
    compressed,
    listed,
    make_coco,
    make_sa1b,
    noise,
    rectangle,
    save,
)
from tests.paths import REAL_DATA, needs_real_data


def read_all(config):
    return [s for item in list_items(config) for s in read_samples(config, item).samples]


def drawn(sample):
    """The sample's masks, drawn by pycocotools: (M, H, W) bool."""
    size = [sample.height, sample.width]
    masks = [coco.decode({"size": size, "counts": mask.rle}) for mask in sample.masks]
    return np.array(masks, bool).reshape(-1, *size)


def check_facts(sample):
    """Area, box and point of the first masks, from the drawn mask."""
    sample = replace(sample, masks=sample.masks[:20])
    for mask, pixels in zip(sample.masks, drawn(sample), strict=True):
        rows, columns = np.nonzero(pixels)
        top, left = rows.min(), columns.min()
        assert mask.area == len(rows)
        assert mask.bbox == (left, top, columns.max() - left + 1, rows.max() - top + 1)
        assert pixels[int(mask.point[1]), int(mask.point[0])]


def check_masks(sample, expected):
    """The same masks, in any order."""
    found = sorted(np.packbits(mask).tobytes() for mask in drawn(sample))
    assert found == sorted(np.packbits(mask).tobytes() for mask in expected)


@needs_real_data
def test_sa1b_files_are_taken_as_they_are():
    folder = REAL_DATA / "nuclei_sa1b" / "val"
    config = SourceConfig(kind="sa1b", root=folder.parent, split="val", min_area_px=1)
    items = list_items(config)
    assert [item.name for item in items] == sorted(f"val/{p.name}" for p in folder.glob("*.jpg"))
    for item in items[::15]:
        (sample,) = read_samples(config, item).samples
        path = folder.parent / item.name
        annotations = json.loads(path.with_suffix(".json").read_text())["annotations"]
        assert sample.image == path.read_bytes()
        assert [mask.rle.decode() for mask in sample.masks] == [
            a["segmentation"]["counts"] for a in annotations
        ]
        assert [list(mask.point) for mask in sample.masks] == [
            a["point_coords"][0] for a in annotations
        ]
        assert [mask.area for mask in sample.masks] == [a["area"] for a in annotations]
        assert [list(mask.bbox) for mask in sample.masks] == [a["bbox"] for a in annotations]
        check_facts(sample)


@needs_real_data
@pytest.mark.parametrize("crowds", [False, True])
def test_coco_masks_are_those_of_pycocotools(crowds):
    root = REAL_DATA / "nuclei_coco"
    config = SourceConfig(
        kind="coco", root=root, split="val2017", min_area_px=1, include_crowds=crowds
    )
    reference = COCO(root / "annotations" / "instances_val2017.json")
    items, images = list_items(config), reference.loadImgs(sorted(reference.imgs))
    assert len(items) == len(images)
    for image, item in zip(images[::4], items[::4], strict=True):
        (sample,) = read_samples(config, item).samples
        assert sample.name == f"val2017/{image['file_name']}"
        wanted = reference.getAnnIds(image["id"], iscrowd=None if crowds else False)
        annotations = reference.loadAnns(wanted)
        check_masks(sample, [reference.annToMask(a).astype(bool) for a in annotations])
        assert [mask.category for mask in sample.masks] == [a["category_id"] for a in annotations]
        check_facts(sample)


@needs_real_data
@pytest.mark.parametrize("instances", ["components", "classes"])
def test_labelmap_objects_fill_the_classes(instances):
    root = REAL_DATA / "streets_labelmap"
    config = SourceConfig(
        kind="labelmap",
        root=root,
        split="validation",
        instances=instances,
        ignore_id=(11,),
        min_area_px=1,
    )
    for item in list_items(config)[::12]:
        (sample,) = read_samples(config, item).samples
        stem = item.name.split("/")[-1].removesuffix(".jpg")
        labels = np.asarray(Image.open(root / "annotations" / "validation" / f"{stem}.png"))
        expected = []
        for label in sorted({*np.unique(labels)} - {0, 11}):
            parts, count = ndimage.label(labels == label)
            split = [parts == k for k in range(1, count + 1)]
            expected += split if instances == "components" else [labels == label]
        check_masks(sample, expected)
        check_facts(sample)


@needs_real_data
@pytest.mark.parametrize("instances", ["components", "classes"])
def test_tiff_pages_and_masks_are_those_of_the_stack(instances):
    root = REAL_DATA / "membrane_tiff"
    config = SourceConfig(
        kind="tiff", root=root, split="testing", instances=instances, min_area_px=1
    )
    pages = tifffile.imread(root / "testing.tif")
    masks = tifffile.imread(root / "testing_groundtruth.tif") > 0
    items = list_items(config)
    assert len(items) == len(pages)
    for page in (0, len(pages) - 1):
        (sample,) = read_samples(config, items[page]).samples
        assert np.array_equal(decode_rgb(sample.image)[..., 0], pages[page])
        parts, count = ndimage.label(masks[page])
        split = [parts == k for k in range(1, count + 1)]
        check_masks(sample, split if instances == "components" else [masks[page]])
        check_facts(sample)


@needs_real_data
@pytest.mark.parametrize(
    ("kind", "folder", "split"),
    [
        ("sa1b", "nuclei_sa1b", "val"),
        ("coco", "nuclei_coco", "val2017"),
        ("labelmap", "streets_labelmap", "validation"),
        ("tiff", "membrane_tiff", "testing"),
    ],
)
def test_tiles_lie_side_by_side_as_the_whole(kind, folder, split):
    whole = SourceConfig(kind=kind, root=REAL_DATA / folder, split=split, min_area_px=1)
    tiled = whole.model_copy(update={"tile_px": 150})
    item = max(list_items(whole)[:4], key=lambda item: item.num_bytes)
    (image,) = read_samples(whole, item).samples
    expected_pixels, expected = decode_rgb(image.image), drawn(image).any(axis=0)
    pixels, masks = np.zeros_like(expected_pixels), np.zeros_like(expected)
    covered = np.zeros_like(expected)
    for tile in read_samples(tiled, item).samples:
        y, x = (int(part[1:]) for part in tile.name.rsplit("#", 1)[1].split(","))
        place = np.s_[y : y + tile.height, x : x + tile.width]
        assert max(tile.height, tile.width) <= 150
        assert not covered[place].any()
        pixels[place], masks[place], covered[place] = (
            decode_rgb(tile.image),
            drawn(tile).any(axis=0),
            True,
        )
        check_facts(tile)
    assert np.array_equal(masks, expected)
    assert np.array_equal(pixels[covered], expected_pixels[covered])


def test_a_tile_keeps_each_object_apart(tmp_path):
    size = (50, 90)
    masks = [rectangle(0, 0, 50, 40, size), rectangle(5, 25, 4, 40, size)]
    add_sa1b(tmp_path / "train", "a", masks, noise(0, size))
    config = SourceConfig(kind="sa1b", root=tmp_path, tile_px=30, min_area_px=60)
    found = read_samples(config, list_items(config)[0])
    tiles = {tile.name: drawn(tile) for tile in found.samples}
    assert set(tiles) == {f"train/a.jpg#y{y},x{x}" for y in (0, 25) for x in (0, 30)}
    assert len({tile.id for tile in found.samples}) == 4
    for name, masks_of_tile in tiles.items():
        y, x = (int(part[1:]) for part in name.split("#")[1].split(","))
        parts = [mask[y : y + 25, x : x + 30] for mask in masks]
        wanted = [part for part in parts if part.sum() >= 60]
        assert np.array_equal(masks_of_tile, wanted)
    assert found.counts.empty_inputs == 2  # the right third: only 5 x 4 px of the second object
    assert found.counts.small_objects == 2  # that, and 5 x 4 px in the left third


def test_small_and_empty_objects_are_left_out_and_counted(tmp_path):
    masks = [rectangle(0, 0, 4, 4), rectangle(10, 10, 3, 5), rectangle(20, 20, 9, 9)]
    add_sa1b(tmp_path / "train", "a", masks, noise(0))
    path = tmp_path / "train" / "a.json"
    record = json.loads(path.read_text())
    record["annotations"].append({"segmentation": compressed(np.zeros(SIZE, bool))})
    path.write_text(json.dumps(record))
    config = SourceConfig(kind="sa1b", root=tmp_path, min_area_px=16)
    found = read_samples(config, list_items(config)[0])
    assert [mask.area for mask in found.samples[0].masks] == [16, 81]
    assert (found.counts.empty_inputs, found.counts.small_objects) == (0, 2)


def test_sa1b_takes_lists_of_run_lengths_and_nested_folders(tmp_path):
    mask = rectangle(1, 2, 20, 30)
    add_sa1b(tmp_path / "train" / "sa_000001", "x", [mask], noise(0))
    path = tmp_path / "train" / "sa_000001" / "x.json"
    record = json.loads(path.read_text())
    record["annotations"][0]["segmentation"] = listed(mask)
    path.write_text(json.dumps(record))
    (sample,) = read_all(SourceConfig(kind="sa1b", root=tmp_path))
    assert sample.name == "train/sa_000001/x.jpg"
    assert np.array_equal(drawn(sample), [mask])


def test_sa1b_scores_and_points_are_kept(tmp_path):
    make_sa1b(tmp_path, 1)
    (sample,) = read_all(SourceConfig(kind="sa1b", root=tmp_path))
    assert [mask.predicted_iou for mask in sample.masks] == pytest.approx([0.9, 0.91])
    assert [mask.stability_score for mask in sample.masks] == pytest.approx([0.8, 0.81])
    assert [mask.point for mask in sample.masks] == [(3.0, 2.0), (10.0, 20.0)]


def test_all_forms_of_coco_masks(tmp_path):
    mask = rectangle(5, 6, 10, 12)
    polygon = [[6.0, 5.0, 18.0, 5.0, 18.0, 15.0, 6.0, 15.0]]
    image = {"id": 7, "file_name": "b.png", "height": SIZE[0], "width": SIZE[1]}
    forms = [polygon, compressed(mask), listed(mask)]
    annotations = [
        {"id": k, "image_id": 7, "category_id": k + 1, "iscrowd": 0, "segmentation": form}
        for k, form in enumerate(forms)
    ]
    make_coco(tmp_path, [image], annotations)
    (sample,) = read_all(SourceConfig(kind="coco", root=tmp_path, split="val"))
    assert np.array_equal(drawn(sample), [mask] * 3)
    assert [found.category for found in sample.masks] == [1, 2, 3]


@pytest.mark.parametrize("bits", [8, 16])
def test_labelmaps_of_instance_ids(tmp_path, bits):
    labels = np.zeros(SIZE, np.uint8 if bits == 8 else np.uint16)
    labels[:20, :20] = 200
    labels[20:, 30:] = 200 if bits == 8 else 60000
    labels[30:, :10] = 3
    save(tmp_path / "images" / "train" / "a.png", noise(0))
    save(tmp_path / "annotations" / "train" / "a.png", labels)
    config = SourceConfig(kind="labelmap", root=tmp_path, background_id=None, instances="classes")
    (sample,) = read_all(config)
    assert {mask.category for mask in sample.masks} == set(np.unique(labels).tolist())
    check_masks(sample, [labels == label for label in np.unique(labels)])


def test_a_palette_labelmap_gives_indices(tmp_path):
    labels = np.zeros(SIZE, np.uint8)
    labels[5:20, 5:20] = 2
    image = Image.fromarray(labels, "P")
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    save(tmp_path / "images" / "train" / "a.jpg", noise(0))
    (tmp_path / "annotations" / "train").mkdir(parents=True)
    image.save(tmp_path / "annotations" / "train" / "a.png")
    (sample,) = read_all(SourceConfig(kind="labelmap", root=tmp_path))
    assert [mask.category for mask in sample.masks] == [2]


def test_16_bit_stacks_are_mapped_alike_on_every_page(tmp_path):
    rng = np.random.default_rng(0)
    stack = rng.integers(1000, 5000, (3, *SIZE), np.uint16)
    stack[0, 0, 0] = 65535  # a hot pixel must not darken the rest
    masks = np.array([rectangle(3, 3, 20, 20)] * 3, np.uint8) * 255
    tifffile.imwrite(tmp_path / "train.tif", stack, photometric="minisblack")
    tifffile.imwrite(tmp_path / "train_groundtruth.tif", masks, photometric="minisblack")
    samples = read_all(SourceConfig(kind="tiff", root=tmp_path))
    pixels = np.array([decode_rgb(sample.image)[..., 0] for sample in samples])
    low, high = np.percentile(stack, [0.1, 99.9], method="inverted_cdf").astype(float)
    expected = np.clip((stack - low) * 255 / (high - low), 0, 255)
    assert np.abs(pixels - expected).max() <= 0.5
    assert pixels.max() == 255
    assert pixels.min() == 0


@pytest.mark.parametrize(
    ("kind", "split", "splits"),
    [
        ("sa1b", "test", "train, val"),
        ("coco", "test", "train, val"),
        ("labelmap", "test", "train"),
        ("tiff", "test", "train"),
    ],
)
def test_a_missing_split_names_those_that_exist(tmp_path, kind, split, splits):
    if kind == "sa1b":
        make_sa1b(tmp_path, 1, split="train")
        make_sa1b(tmp_path, 1, split="val")
    if kind == "coco":
        make_coco(tmp_path, [], [], split="train")
        make_coco(tmp_path, [], [], split="val")
    if kind == "labelmap":
        save(tmp_path / "images" / "train" / "a.jpg", noise(0))
    if kind == "tiff":
        for name in ("train", "train_groundtruth", "other"):
            tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros((2, 20, 20), np.uint8))
    with pytest.raises(SourceError, match=f"no split 'test' .*one of: {splits}$"):
        list_items(SourceConfig(kind=kind, root=tmp_path, split=split))


def test_images_right_in_the_root_are_the_split_dot(tmp_path):
    make_sa1b(tmp_path, 2, split=".")
    with pytest.raises(SourceError, match=r"one of: \.$"):
        list_items(SourceConfig(kind="sa1b", root=tmp_path))
    samples = read_all(SourceConfig(kind="sa1b", root=tmp_path, split="."))
    assert [sample.name for sample in samples] == ["sa_0000.jpg", "sa_0001.jpg"]


def test_an_empty_folder_and_no_folder_are_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(SourceError, match="no images of kind 'sa1b'"):
        list_items(SourceConfig(kind="sa1b", root=tmp_path))
    with pytest.raises(SourceError, match="give --root DIR"):
        list_items(SourceConfig(kind="coco"))
    with pytest.raises(SourceError, match="gone is not a folder"):
        list_items(SourceConfig(kind="coco", root=tmp_path / "gone"))


def test_stacks_of_different_lengths_are_refused(tmp_path):
    for name, pages in (("train", 5), ("train_groundtruth", 2)):
        stack = np.zeros((pages, 20, 20), np.uint8)
        tifffile.imwrite(tmp_path / f"{name}.tif", stack, photometric="minisblack")
    with pytest.raises(SourceError, match=r"train.tif has 5 pages, train_groundtruth.tif 2"):
        list_items(SourceConfig(kind="tiff", root=tmp_path))


def test_a_coco_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / "instances_train.json"
    config = SourceConfig(kind="coco", root=tmp_path)
    for text, reason in (("{", "is not a JSON file"), ('{"images": []}', "has no annotations")):
        path.write_text(text)
        with pytest.raises(SourceError, match=reason):
            list_items(config)


def test_listing_does_not_depend_on_the_order_of_the_file_system(tmp_path, monkeypatch):
    make_sa1b(tmp_path, 8)
    config = SourceConfig(kind="sa1b", root=tmp_path)
    before = list_items(config)
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *a, **k: ((p, d, f[::-1]) for p, d, f in walk(*a, **k)))
    assert list_items(config) == before


def test_a_bad_item_is_named(tmp_path):
    make_sa1b(tmp_path, 1)
    (tmp_path / "train" / "sa_0000.json").write_text("{}")
    config = SourceConfig(kind="sa1b", root=tmp_path)
    with pytest.raises(
        BadInputError, match=r"^train/sa_0000.jpg: sa_0000.json .*has no annotations$"
    ):
        read_samples(config, list_items(config)[0])
