"""`supersam predict`: masks of one image as a picture and as COCO JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO
from segment_anything import SamPredictor

from supersam.config.errors import exit_code
from supersam.config.predict import PredictRun
from supersam.evaluation.picture import PredictedMask, draw_masks
from supersam.evaluation.predict import coco_record, run_predict
from supersam.export import export_subnet, load_subnet
from tests.next_commands import read_next


@pytest.fixture(scope="module")
def exported(make_supernet, tmp_path_factory):
    supernet = make_supernet()
    folder = tmp_path_factory.mktemp("predict") / "export"
    export_subnet(supernet, supernet.space.medium(), folder)
    return folder


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8)
    Image.fromarray(pixels).resize((90, 60)).save(path)
    return path


def options_of(image, exported, **values):
    values = {"export": exported, "out": image.with_name("masks.png")} | values
    return PredictRun(image=image, **values)


def test_prompts_give_the_predictor_s_masks_as_coco(image, exported, capsys):
    options = options_of(image, exported, box=("10,5,60,40",), point=("30,20",))
    assert run_predict(options) == 0
    predictor = SamPredictor(load_subnet(exported))
    predictor.set_image(np.asarray(Image.open(image)))
    boxed, _, _ = predictor.predict(box=np.array([10, 5, 60, 40]), multimask_output=False)
    masks, scores, _ = predictor.predict(np.array([[30.0, 20.0]]), np.array([1]))
    expected = [boxed[0], masks[scores.argmax()]]
    record = json.loads(image.with_name("masks.json").read_text())
    found = [coco.decode(each["segmentation"]).astype(bool) for each in record["annotations"]]
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
    assert [each["area"] for each in record["annotations"]] == [mask.sum() for mask in expected]
    assert record["images"][0]["file_name"] == "photo.jpg"
    assert Image.open(image.with_name("masks.png")).size == (90, 60)
    printed = capsys.readouterr().out
    assert f"2 masks: picture {image.with_name('masks.png')}" in printed
    name, following = read_next(printed)
    assert (name, following.auto, following.export) == ("predict", True, exported)


def test_auto_finds_masks_without_prompts(image, exported, capsys):
    assert (
        run_predict(
            options_of(image, exported, auto=True, points_per_side=3, min_iou=0, min_stability=0)
        )
        == 0
    )
    name, following = read_next(capsys.readouterr().out)
    index = COCO(image.with_name("masks.json"))
    assert all(index.annToMask(each).sum() == each["area"] for each in index.anns.values())
    assert len(index.anns) > 0
    best = max(index.anns.values(), key=lambda each: each["score"])
    x, y, width, height = best["bbox"]
    assert (name, following.boxes) == ("predict", [(x, y, x + width, y + height)])


def test_no_mask_is_said_with_what_to_lower(image, exported, capsys):
    assert run_predict(options_of(image, exported, auto=True, points_per_side=1, min_iou=1)) == 0
    name, following = read_next(capsys.readouterr().out)
    assert (name, following.auto) == ("predict", True)
    assert (following.min_iou, following.min_stability) == (0.8, 0.75)
    assert json.loads(image.with_name("masks.json").read_text())["annotations"] == []


def test_a_run_s_subnet_predicts_what_its_export_would(image, trained, tmp_path):
    words = {"run": trained.folder, "export": None, "box": ("10,5,60,40",)}
    areas = []
    for subnet in ("largest", "smallest"):
        options = options_of(image, None, **words, subnet=subnet)
        assert run_predict(options) == 0
        areas.append(json.loads(image.with_name("masks.json").read_text())["annotations"])
    assert areas[0] != areas[1]


def test_boxes_of_a_record_are_tight_and_an_empty_mask_has_none():
    mask = np.zeros((6, 9), bool)
    mask[2:4, 3:8] = True
    pixels = np.zeros((6, 9, 3), np.uint8)
    found = [PredictedMask(mask, 0.5), PredictedMask(np.zeros_like(mask), 0.1)]
    first, second = coco_record("x.png", pixels, found)["annotations"]
    assert (first["bbox"], first["area"]) == ([3, 2, 5, 2], 10)
    assert (second["bbox"], second["area"]) == ([0, 0, 0, 0], 0)


def test_a_small_mask_is_drawn_above_a_large_one():
    small, large = np.zeros((2, 20, 20), bool)
    small[8:12, 8:12] = True
    large[:] = True
    black = np.zeros((20, 20, 3), np.uint8)
    picture = draw_masks(black, [PredictedMask(small, 1.0), PredictedMask(large, 1.0)])
    assert not np.array_equal(picture[10, 10], picture[2, 2])
    assert np.array_equal(draw_masks(black, []), black)


def test_a_pixel_under_several_masks_has_the_colour_of_the_smallest():
    masks = [np.zeros((60, 60), bool) for _ in range(3)]
    for mask, side in zip(masks, (60, 30, 12), strict=True):
        mask[:side, :side] = True
    grey = np.full((60, 60, 3), 128, np.uint8)
    found = [PredictedMask(mask, 0.5) for mask in masks]
    alone = [draw_masks(grey, [PredictedMask(np.zeros_like(mask), 0.5)] * k + [found[k]])
             for k, mask in enumerate(masks)]  # fmt: skip
    together = draw_masks(grey, found)
    for place, k in ((50, 0), (20, 1), (5, 2)):
        assert np.array_equal(together[place, place], alone[k][place, place])


def test_few_masks_are_numbered_at_their_prompts_and_many_are_not():
    mask = np.zeros((80, 120), bool)
    mask[40:70, 40:100] = True
    grey = np.full((80, 120, 3), 128, np.uint8)
    few = draw_masks(grey, [PredictedMask(mask, 0.5, box=(10.0, 10.0, 110.0, 75.0))])
    assert (few == 255).all(axis=-1).any()
    many = draw_masks(grey, [PredictedMask(mask, 0.5, point=(20.0, 20.0))] * 30)
    assert not (many == 255).all(axis=-1).any()


@pytest.mark.parametrize("point", [(0.0, 0.0), (89.0, 59.0), (89.0, 0.0), (0.0, 59.0)])
def test_the_label_of_a_prompt_at_the_frame_stays_in_the_picture(point):
    dark = np.zeros((60, 90, 3), np.uint8)
    none = PredictedMask(np.zeros((60, 90), bool), 0.25, point=point)
    white = np.argwhere((draw_masks(dark, [none]) > 200).all(axis=-1))
    assert np.ptp(white[:, 1]) > 20  # the whole text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"box": ("1,2,3",)}, "--box 1,2,3 is not x0,y0,x1,y1"),
        ({"box": ("5,5,5,9",)}, "is empty"),
        ({"point": ("a,b",)}, "--point a,b is not x,y"),
        ({}, "say what to segment"),
        ({"auto": True, "point": ("1,1",)}, "--auto takes no prompts"),
        ({"auto": True, "export": None}, "name one model"),
        ({"auto": True, "out": "masks.jpg"}, "is not a .png file; name one"),
    ],
)
def test_options_that_do_not_fit_are_refused(image, exported, values, message):
    with pytest.raises(ValueError, match=message):
        options_of(image, exported, **values)


def test_the_image_itself_is_never_replaced(tmp_path, exported):
    with pytest.raises(ValueError, match="would replace the image itself"):
        PredictRun(image=tmp_path / "a.png", export=exported, auto=True, out=tmp_path / "a.png")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"point": ("95,10",)}, "95,10 reaches beyond the image, which is 90 px wide"),
        ({"auto": True, "export": "absent"}, "cannot be read"),
    ],
)
def test_a_fault_leaves_no_file(image, exported, values, message, capsys):
    assert exit_code(run_predict, options_of(image, exported, **values)) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in image.parent.iterdir()) == ["photo.jpg"]


def test_a_file_that_is_not_an_image_is_named(tmp_path, exported, capsys):
    text = tmp_path / "text.jpg"
    text.write_text("hello")
    assert exit_code(run_predict, options_of(text, exported, auto=True)) == 2
    assert "text.jpg cannot be read as an image" in capsys.readouterr().err
