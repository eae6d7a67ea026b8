"""Folders and names as tools and public sets have them; links, hidden and odd files."""

import json
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from supersam.config.data import SourceConfig
from supersam.data.convert import convert
from supersam.data.shards import ShardReader
from supersam.data.sources import BadInputError, SourceError, list_items, read_samples
from tests.data.folders import (
    SIZE,
    add_sa1b,
    compressed,
    make_sa1b,
    noise,
    rectangle,
    sa1b_record,
    save,
)

MASK = rectangle(5, 6, 10, 12)
LABELS = MASK.astype(np.uint8) * 26


def record(*images, **extra):
    """A COCO JSON: one object on each image."""
    size = {"height": SIZE[0], "width": SIZE[1]}
    annotations = [
        {"id": k, "image_id": image["id"], "category_id": 1, "segmentation": compressed(MASK)}
        for k, image in enumerate(images)
    ]
    listed = [{**size, **image} for image in images]
    return {"images": listed, "annotations": annotations, "categories": [], **extra}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def names(**config):
    """The names of what is read, each with the one mask."""
    source = SourceConfig(**config)
    samples = [s for item in list_items(source) for s in read_samples(source, item).samples]
    assert all(len(sample.masks) == 1 for sample in samples)
    assert {sample.masks[0].area for sample in samples} == {MASK.sum()}
    return [sample.name for sample in samples]


@pytest.mark.parametrize(
    ("image", "place", "split"),
    [
        ("train/a.png", "train/_annotations.coco.json", "train"),
        ("a.png", "_annotations.coco.json", "."),
        ("images/a.png", "annotations/instances_default.json", "default"),
        ("images/val/a.png", "annotations/instances_val.json", "val"),
        ("a.png", "annotations/instances_val.json", "val"),
        ("val/a.png", "annotations/val.json", "val"),
    ],
)
def test_places_of_coco_files(tmp_path, image, place, split):
    save(tmp_path / image, noise(0))
    write(tmp_path / place, record({"id": 1, "file_name": "a.png"}))
    assert names(kind="coco", root=tmp_path, split=split) == [image]


@pytest.mark.parametrize(
    "written",
    [
        "a.png",
        "train/a.png",
        "images\\a.png",
        "C:\\Users\\me\\data\\train\\a.png",
        "/home/me/data/train/a.png",
        "../train/a.png",
        "./a.png",
    ],
)
def test_forms_of_a_coco_file_name(tmp_path, written):
    save(tmp_path / "train" / "a.png", noise(0))
    write(
        tmp_path / "annotations" / "instances_train.json", record({"id": 1, "file_name": written})
    )
    (name,) = names(kind="coco", root=tmp_path)
    assert (tmp_path / name).samefile(tmp_path / "train" / "a.png")


def test_an_absolute_name_of_this_machine_is_found(tmp_path):
    path = save(tmp_path / "train" / "a.png", noise(0))
    write(
        tmp_path / "annotations" / "instances_train.json",
        record({"id": 1, "file_name": str(path)}),
    )
    assert names(kind="coco", root=tmp_path) == ["train/a.png"]


def test_another_image_of_the_same_last_name_is_not_taken(tmp_path):
    save(tmp_path / "train" / "a.png", noise(0))
    save(tmp_path / "train" / "night" / "b.png", noise(1))
    write(
        tmp_path / "annotations" / "instances_train.json",
        record({"id": 1, "file_name": "night/a.png"}),
    )
    with pytest.raises(BadInputError, match=r"train/night/a.png: a.png cannot be read: No such"):
        names(kind="coco", root=tmp_path)


@pytest.mark.parametrize(("written", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("kind", ["coco", "sa1b", "labelmap"])
def test_an_accent_may_be_a_character_of_its_own(tmp_path, kind, written, stored):
    here, there = (unicodedata.normalize(form, "M\u00fcller") for form in (stored, written))
    place = "images/train" if kind == "labelmap" else "train"
    save(tmp_path / place / f"{here}.png", noise(0))
    if kind == "coco":
        content = record({"id": 1, "file_name": f"{there}.png"})
        write(tmp_path / "annotations" / "instances_train.json", content)
    elif kind == "sa1b":
        write(tmp_path / "train" / f"{there}.json", sa1b_record([MASK]))
    else:
        save(tmp_path / "annotations" / "train" / f"{there}.png", LABELS)
    assert names(kind=kind, root=tmp_path) == [f"{place}/{here}.png"]


def test_lvis_names_images_by_their_address(tmp_path):
    save(tmp_path / "train2017" / "a b.png", noise(0))
    url = "http://images.cocodataset.org/train2017/a%20b.png"
    write(tmp_path / "annotations" / "instances_train2017.json", record({"id": 1, "coco_url": url}))
    assert names(kind="coco", root=tmp_path, split="train2017") == ["train2017/a b.png"]


def test_an_id_is_the_same_as_a_number_and_as_text(tmp_path):
    save(tmp_path / "train" / "a.png", noise(0))
    content = record({"id": "1", "file_name": "a.png"})
    content["annotations"][0]["image_id"] = 1
    write(tmp_path / "annotations" / "instances_train.json", content)
    assert names(kind="coco", root=tmp_path) == ["train/a.png"]


@pytest.mark.parametrize(
    "segmentation",
    [
        [6.0, 5.0, 18.0, 5.0, 18.0, 15.0, 6.0, 15.0],
        [[6.0, 5.0], [18.0, 5.0], [18.0, 15.0], [6.0, 15.0]],
        [[[6.0, 5.0], [18.0, 5.0], [18.0, 15.0], [6.0, 15.0]]],
        [["6", "5", "18", "5", "18", "15", "6", "15"]],
        [[6.0, 5.0, 18.0, 5.0, 18.0, 15.0, 6.0, 15.0], []],
        MASK.astype(int).tolist(),
        {"size": [40.0, "56"], "counts": compressed(MASK)["counts"]},
    ],
)
@pytest.mark.parametrize("kind", ["coco", "sa1b"])
def test_forms_of_a_segmentation(tmp_path, kind, segmentation):
    save(tmp_path / "train" / "a.png", noise(0))
    if kind == "coco":
        content = record({"id": 1, "file_name": "a.png"})
        content["annotations"][0]["segmentation"] = segmentation
        write(tmp_path / "annotations" / "instances_train.json", content)
    else:
        content = sa1b_record([MASK])
        content["annotations"][0]["segmentation"] = segmentation
        write(tmp_path / "train" / "a.json", content)
    assert names(kind=kind, root=tmp_path) == ["train/a.png"]


@pytest.mark.parametrize(
    "image",
    [{"height": "40", "width": "56"}, {"height": 40.0, "width": 56.0}, {}, None, "a.jpg"],
)
def test_forms_of_an_sa1b_size(tmp_path, image):
    save(tmp_path / "train" / "a.png", noise(0))
    write(tmp_path / "train" / "a.json", {**sa1b_record([MASK]), "image": image})
    assert names(kind="sa1b", root=tmp_path) == ["train/a.png"]


def test_null_scores_and_a_point_without_a_list_around_it(tmp_path):
    save(tmp_path / "train" / "a.png", noise(0))
    content = sa1b_record([MASK])
    content["annotations"][0] |= {
        "predicted_iou": None,
        "category_id": None,
        "point_coords": [7.0, 6.0],
    }
    write(tmp_path / "train" / "a.json", content)
    source = SourceConfig(kind="sa1b", root=tmp_path)
    (sample,) = read_samples(source, list_items(source)[0]).samples
    mask = sample.masks[0]
    assert (mask.predicted_iou, mask.category, mask.point) == (1.0, 0, (7.0, 6.0))


def test_null_annotations_are_none(tmp_path):
    make_sa1b(tmp_path, 2)
    content = sa1b_record([])
    write(tmp_path / "train" / "sa_0000.json", {**content, "annotations": None})
    report = convert(SourceConfig(kind="sa1b", root=tmp_path), tmp_path / "out")
    assert (report.manifest.num_images, report.manifest.counts.empty_inputs) == (1, 1)


@pytest.mark.parametrize("suffix", [".webp", ".tif", ".TIFF", ".bmp", ".JPG", ".Png"])
@pytest.mark.parametrize("kind", ["sa1b", "labelmap"])
def test_image_formats_of_every_layout(tmp_path, kind, suffix):
    if kind == "sa1b":
        save(tmp_path / "train" / f"a{suffix}", noise(0))
        write(
            tmp_path / "train" / ("a.JSON" if suffix == ".JPG" else "a.json"), sa1b_record([MASK])
        )
        expected = [f"train/a{suffix}"]
    else:
        save(tmp_path / "images" / "train" / f"a{suffix}", noise(0))
        save(tmp_path / "annotations" / "train" / "a.png", LABELS)
        expected = [f"images/train/a{suffix}"]
    assert names(kind=kind, root=tmp_path) == expected


def test_cityscapes_own_folders_and_names(tmp_path):
    for stem in ("ulm/ulm_000000_000019", "ulm/ulm_000001_000019"):
        save(tmp_path / "leftImg8bit" / "train" / f"{stem}_leftImg8bit.png", noise(0))
        maps = tmp_path / "gtFine" / "train"
        save(maps / f"{stem}_gtFine_labelIds.png", LABELS)
        save(maps / f"{stem}_gtFine_color.png", noise(1))
        save(maps / f"{stem}_gtFine_instanceIds.png", LABELS)
        write(maps / f"{stem}_gtFine_polygons.json", {})
    assert names(kind="labelmap", root=tmp_path) == [
        f"leftImg8bit/train/ulm/ulm_00000{k}_000019_leftImg8bit.png" for k in (0, 1)
    ]
    with pytest.raises(SourceError, match="no split 'val' .*one of: train$"):
        names(kind="labelmap", root=tmp_path, split="val")


@pytest.mark.parametrize(
    ("image", "mapped"),
    [
        ("a.jpg", "a_mask.png"),
        ("a.jpg", "a_labelIds.png"),
        ("a.png", "a.tif"),
        ("a.jpg", "a.PNG"),
        ("a.jpg", "a-mask.png"),
        ("a.jpg", "a_Segmentation.png"),
        ("a.jpg", "a.jpg.png"),
        ("a.jpg", "a_cp_masks.png"),
    ],
)
def test_names_of_label_maps(tmp_path, image, mapped):
    save(tmp_path / "images" / "train" / image, noise(0))
    save(tmp_path / "annotations" / "train" / mapped, LABELS)
    assert names(kind="labelmap", root=tmp_path) == [f"images/train/{image}"]


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA"])
def test_a_map_with_equal_channels_holds_ids(tmp_path, mode):
    save(tmp_path / "images" / "train" / "a.jpg", noise(0))
    path = save(tmp_path / "annotations" / "train" / "a.png", LABELS)
    Image.fromarray(LABELS).convert(mode).save(path)
    assert names(kind="labelmap", root=tmp_path) == ["images/train/a.jpg"]


def test_a_jpeg_is_not_taken_as_a_label_map(tmp_path):
    save(tmp_path / "images" / "train" / "a.jpg", noise(0))
    save(tmp_path / "annotations" / "train" / "a.jpg", LABELS)
    with pytest.raises(
        BadInputError, match="a.jpg is compressed as JPEG, which changes ids at edges; export"
    ):
        names(kind="labelmap", root=tmp_path)


def test_several_ids_are_left_out_and_the_background_is_counted(tmp_path):
    labels = np.full(SIZE, 255, np.uint8)
    labels[:10], labels[20:30], labels[30:] = 3, 7, 0
    save(tmp_path / "images" / "train" / "a.jpg", noise(0))
    save(tmp_path / "annotations" / "train" / "a.png", labels)
    for settings, classes, maps in (
        ({"ignore_id": (255, 3)}, {7}, 1),
        ({"background_id": None, "ignore_id": 255}, {0, 3, 7}, 0),
        ({"background_id": None}, {0, 3, 7, 255}, 0),
    ):
        source = SourceConfig(kind="labelmap", root=tmp_path, **settings)
        found = read_samples(source, list_items(source)[0])
        assert {mask.category for mask in found.samples[0].masks} == classes
        assert found.counts.background_maps == maps


def test_crowds_are_counted_and_their_flag_is_named(tmp_path):
    save(tmp_path / "train" / "a.png", noise(0))
    content = record(*[{"id": 1, "file_name": "a.png"}] * 1)
    one = content["annotations"][0]
    crowd = [1, "1", True, "0", 0, None, False]
    content["annotations"] = [one | {"id": k, "iscrowd": value} for k, value in enumerate(crowd)]
    path = tmp_path / "annotations" / "instances_train.json"
    write(path, content)
    source = SourceConfig(kind="coco", root=tmp_path)
    report = convert(source, tmp_path / "some")
    assert (report.manifest.num_masks, report.manifest.counts.crowds) == (4, 3)
    all_of_them = source.model_copy(update={"include_crowds": True})
    assert convert(all_of_them, tmp_path / "all").manifest.num_masks == 7
    content["annotations"] = content["annotations"][:3]
    write(path, content)
    with pytest.raises(SourceError, match=r"3 crowd regions .*--include-crowds keeps them"):
        convert(source, tmp_path / "none")
    assert list((tmp_path / "none").iterdir()) == []
    assert convert(all_of_them, tmp_path / "none").manifest.num_masks == 3


@pytest.mark.parametrize("kind", ["sa1b", "labelmap"])
def test_links_that_form_a_loop_give_each_image_once(tmp_path, kind):
    if kind == "sa1b":
        folder = make_sa1b(tmp_path, 3) / "train"
    else:
        folder = tmp_path / "images" / "train"
        for k in range(3):
            save(folder / f"{k}.jpg", noise(k))
            save(tmp_path / "annotations" / "train" / f"{k}.png", LABELS)
    before = [item.name for item in list_items(SourceConfig(kind=kind, root=tmp_path))]
    os.symlink(folder, folder / "a_loop")
    os.symlink(tmp_path, folder / "up")
    after = [item.name for item in list_items(SourceConfig(kind=kind, root=tmp_path))]
    assert [name for name in after if "up/" not in name] == before
    assert len(before) == 3


def test_a_link_to_a_folder_elsewhere_is_followed_once(tmp_path):
    make_sa1b(tmp_path / "store", 2)
    (tmp_path / "in" / "train").mkdir(parents=True)
    for name in ("a", "b"):
        os.symlink(tmp_path / "store" / "train", tmp_path / "in" / "train" / name)
    items = list_items(SourceConfig(kind="sa1b", root=tmp_path / "in"))
    assert [item.name for item in items] == ["train/a/sa_0000.jpg", "train/a/sa_0001.jpg"]


def test_hidden_folders_are_left_out(tmp_path):
    make_sa1b(tmp_path, 2)
    for hidden in (".ipynb_checkpoints", ".thumbs", "__MACOSX"):
        add_sa1b(tmp_path / "train" / hidden, "sa_0000", [MASK], noise(0))
    assert len(list_items(SourceConfig(kind="sa1b", root=tmp_path))) == 2


def test_a_name_that_is_not_utf8_is_refused_by_name(tmp_path):
    make_sa1b(tmp_path / "in", 2)
    folder = os.fsencode(tmp_path / "in" / "train")
    for suffix in (b".jpg", b".json"):
        os.rename(folder + b"/sa_0001" + suffix, folder + b"/M\xfcnchen" + suffix)
    source = SourceConfig(kind="sa1b", root=tmp_path / "in")
    with pytest.raises(BadInputError, match=r"train/M\\udcfcnchen.jpg: .*not UTF-8.*rename"):
        convert(source, tmp_path / "error")
    report = convert(source.model_copy(update={"on_bad": "skip"}), tmp_path / "skip")
    assert [skipped.name for skipped in report.manifest.skipped] == [r"train/M\udcfcnchen.jpg"]
    assert report.manifest.num_images == 1


def test_a_name_that_would_break_a_line_is_told_in_one(tmp_path, capsys):
    name = "a\nerror: \x1b[31m\"b'"
    add_sa1b(tmp_path / "in" / "train", name, [MASK], noise(0))
    source = SourceConfig(kind="sa1b", root=tmp_path / "in")
    report = convert(source, tmp_path / "out")
    assert ShardReader(tmp_path / "out").read(0).name == f"train/{name}.jpg"
    write(tmp_path / "in" / "train" / f"{name}.json", {"annotations": [None]})
    add_sa1b(tmp_path / "in" / "train", "good", [MASK], noise(1))
    with pytest.raises(BadInputError) as told:
        convert(source, tmp_path / "error")
    assert str(told.value).isprintable()
    report = convert(source.model_copy(update={"on_bad": "skip"}), tmp_path / "skip")
    (skipped,) = report.manifest.skipped
    assert (skipped.name + skipped.reason).isprintable()


@pytest.mark.parametrize("name", ["a\0.png", "x" * 300 + ".png", "a\ud800.png", "."])
def test_a_name_that_no_file_can_have_costs_its_image(tmp_path, name):
    save(tmp_path / "in" / "train" / "b.png", noise(0))
    content = record({"id": 1, "file_name": name}, {"id": 2, "file_name": "b.png"})
    write(tmp_path / "in" / "annotations" / "instances_train.json", content)
    source = SourceConfig(kind="coco", root=tmp_path / "in")
    with pytest.raises(BadInputError):
        convert(source, tmp_path / "error")
    report = convert(source.model_copy(update={"on_bad": "skip"}), tmp_path / "skip")
    assert (len(report.manifest.skipped), report.manifest.num_images) == (1, 1)


def test_a_folder_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    make_sa1b(tmp_path, 2)
    make_sa1b(tmp_path / "train", 2, split="closed")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match="closed cannot be read: Permission denied; allow it"):
        list_items(SourceConfig(kind="sa1b", root=tmp_path))
    with pytest.raises(SourceError, match="cannot be read: File name too long"):
        list_items(SourceConfig(kind="sa1b", root=tmp_path / ("x" * 300)))


def test_what_is_not_a_file_is_not_read(tmp_path):
    make_sa1b(tmp_path, 2)
    (tmp_path / "train" / "sa_0001.jpg").unlink()
    os.mkfifo(tmp_path / "train" / "sa_0001.jpg")
    with pytest.raises(BadInputError, match="sa_0001.jpg is a folder or a device"):
        names(kind="sa1b", root=tmp_path)


def test_a_link_to_nothing_is_named_with_its_target(tmp_path):
    make_sa1b(tmp_path / "in", 2)
    path = tmp_path / "in" / "train" / "sa_0001.jpg"
    path.unlink()
    path.symlink_to("/no/such/store/x")
    source = SourceConfig(kind="sa1b", root=tmp_path / "in")
    reason = "sa_0001.jpg is a link to /no/such/store/x, which does not exist; mount"
    with pytest.raises(BadInputError, match=f"train/sa_0001.jpg: {reason}"):
        convert(source, tmp_path / "error")
    report = convert(source.model_copy(update={"on_bad": "skip"}), tmp_path / "skip")
    assert reason in report.manifest.skipped[0].reason
    assert len(ShardReader(tmp_path / "skip")) == 1
