"""A wrong --source is answered with the layout that the folder has."""

import itertools

import numpy as np
import pytest
import tifffile

from supersam.config.data import SourceConfig
from supersam.data.sources import SourceError, list_items
from tests.data.folders import make_coco, make_sa1b, noise, save


def list_layout(**config):
    return list_items(SourceConfig(**config))


def make_layout(root, kind):
    """A folder of that layout with the split val2017. Returns its root."""
    if kind == "sa1b":
        make_sa1b(root, 1, split="val2017")
    if kind == "coco":
        make_coco(root, [], [], split="val2017")
        save(root / "val2017" / "a.jpg", noise(0))
    if kind == "labelmap":
        save(root / "images" / "val2017" / "a.jpg", noise(0))
        save(root / "annotations" / "val2017" / "a.png", np.ones((40, 56), np.uint8))
    if kind == "tiff":
        for name in ("val2017", "val2017_groundtruth"):
            tifffile.imwrite(root / f"{name}.tif", np.zeros((2, 20, 20), np.uint8))
    return root


LAYOUTS = ("sa1b", "coco", "labelmap", "tiff")


@pytest.mark.parametrize(
    ("kind", "taken"), [pair for pair in itertools.product(LAYOUTS, LAYOUTS) if len({*pair}) == 2]
)
def test_a_folder_of_another_layout_is_recognised(tmp_path, kind, taken):
    make_layout(tmp_path, kind)
    with pytest.raises(SourceError, match=f"looks like {kind} .*: take --source {kind}$"):
        list_layout(kind=taken, root=tmp_path, split="val2017")
    advice = f"looks like {kind} .*: take --source {kind} --split val2017$"
    with pytest.raises(SourceError, match=advice):
        list_layout(kind=taken, root=tmp_path, split="val")


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_data_set_inside_of_the_root_is_found(tmp_path, kind):
    (tmp_path / "mine").mkdir()
    root = make_layout(tmp_path / "mine", kind)
    with pytest.raises(SourceError, match=f"take --root {root} --source {kind}$"):
        list_layout(kind=kind, root=tmp_path, split="val2017")


def test_a_folder_of_no_layout_is_not_taken_for_one(tmp_path):
    save(tmp_path / "train" / "a.jpg", noise(0))
    (tmp_path / "train" / "b.json").write_text("{}")
    with pytest.raises(SourceError) as caught:
        list_layout(kind="coco", root=tmp_path)
    assert "looks like" not in str(caught.value)
