"""A run, an evaluation, an export and a design at another input size than the weights'."""

import json
from dataclasses import replace

import pytest
import torch

from supersam.config import DesignRun, EvaluateRun, TrainRun, UserError
from supersam.design.files import check_design
from supersam.design.session import load_start
from supersam.evaluation.command import run_evaluate
from supersam.export import load_subnet
from supersam.export.command import run_export
from supersam.model import load_sam
from supersam.runs.folder import prepare_run_folder
from supersam.runs.supernet import build_supernet, load_supernet
from supersam.runs.weights import find_weights, read_run
from supersam.space import resolve_shape
from tests.export.runs import export_of, tiny_export_run

POS = "image_encoder.pos_embed"


@pytest.fixture(scope="module")
def resized(trained, synthetic_shards, held_out_shards, tmp_path_factory) -> TrainRun:
    """A run of 112 px that begins from one of 80 px."""
    folder = tmp_path_factory.mktemp("runs") / "resized"
    run = tiny_export_run(folder, synthetic_shards, held_out_shards)
    model = run.model.model_copy(update={"checkpoint": trained.folder, "image_size": 112})
    run = run.model_copy(update={"model": model})
    prepare_run_folder(run)
    return run


def test_a_run_begins_from_a_run_of_another_size_and_records_its_own(trained, resized):
    assert resolve_shape(read_run(resized.folder).model).image_size == 112
    space = prepare_run_folder(resized)
    before = load_supernet(trained, space_of(trained), find_weights(trained, "last")).state_dict()
    after = build_supernet(resized, space).state_dict()
    assert after[POS].shape == (1, 7, 7, 96)
    fitted = {name for name in before if before[name].shape != after[name].shape}
    assert len(fitted) == 5  # positions of the grid, and two tables of each global layer
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - fitted)


def space_of(run):
    return prepare_run_folder(run)


def test_evaluation_and_export_work_at_the_new_size(resized, held_out_shards, tmp_path, capsys):
    settings = {"run": resized.folder, "checkpoint": "initial", "device": "cpu", "json": True}
    assert run_evaluate(EvaluateRun.model_validate({**settings, "workers": 0})) == 0
    record = json.loads(capsys.readouterr().out)
    out = tmp_path / "out"
    assert run_export(export_of(resized, out, subnet="largest", checkpoint="initial")) == 0
    card = json.loads((out / "card.json").read_text())
    assert card["metrics"]["box"]["miou"] == record["prompts"]["box"]["miou"]
    assert card["shape"]["image_size"] == 112
    assert load_subnet(out).image_encoder.img_size == 112


@pytest.mark.parametrize("kind", ["file", "run"])
def test_a_design_measures_at_the_size_that_it_is_told(
    trained, tiny_shape, synthetic_shards, tmp_path, kind
):
    file = tmp_path / "tiny.pth"
    torch.save(load_sam(tiny_shape).state_dict(), file)
    start = file if kind == "file" else trained.folder
    settings = {"data": [synthetic_shards], "checkpoint": start, "out": tmp_path / "space.yaml"}
    found = load_start(DesignRun.model_validate({**settings, "image_size": 112}))
    expected = replace(tiny_shape, image_size=112)
    assert found.supernet.space.shape == expected
    assert resolve_shape(found.model) == expected
    with pytest.raises(UserError, match="image_size=100 is not a multiple of 16; try 96"):
        load_start(DesignRun.model_validate({**settings, "image_size": 100}))


def test_a_design_of_another_size_is_not_overwritten(trained, synthetic_shards, tmp_path):
    settings = {
        "data": [synthetic_shards],
        "checkpoint": trained.folder,
        "out": tmp_path / "space.yaml",
        "calibration": {"images": 4},
    }
    before = DesignRun.model_validate(settings)
    before.folder.mkdir()
    before.out.write_text("designed: true\n")
    (before.folder / "run.yaml").write_text(
        json.dumps(before.model_dump(mode="json", by_alias=True))
    )
    check_design(before)
    with pytest.raises(
        UserError, match="--image-size None, and now --image-size 112 was asked for"
    ):
        check_design(DesignRun.model_validate({**settings, "image_size": 112}))


def test_a_size_that_patches_do_not_fill_is_refused(resized):
    model = resized.model.model_copy(update={"image_size": 100})
    with pytest.raises(UserError, match="image_size=100 is not a multiple of 16; try 96"):
        prepare_run_folder(resized.model_copy(update={"model": model}))
