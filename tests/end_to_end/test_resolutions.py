"""Subnets of another resolution through the commands: train, evaluate, export, predict."""

import json

import numpy as np
import pytest
from PIL import Image

from supersam.config import EvaluateRun, TrainRun, UserError
from supersam.config.predict import PredictRun
from supersam.evaluation.command import run_evaluate
from supersam.evaluation.predict import run_predict
from supersam.export import load_subnet
from supersam.export.command import run_export
from supersam.model import SamSupernet
from supersam.runs.checkpoint_io import CheckpointManager
from supersam.runs.checkpoints import TrainState
from supersam.runs.folder import describe_run, prepare_run_folder
from supersam.runs.weights import read_run
from supersam.runtime.distributed import World
from supersam.training.session import train
from tests.commands import launch
from tests.distributed.ranks import run_ranks
from tests.export.runs import export_of, tiny_export_run


def resolutions_run(folder, train_shards, val_shards) -> TrainRun:
    run = tiny_export_run(folder, train_shards, val_shards)
    space = run.space.model_copy(update={"resolutions": (48, 64, 80)})
    return run.model_copy(update={"space": space})


@pytest.fixture(scope="module")
def saved(tmp_path_factory, synthetic_shards, held_out_shards, make_supernet) -> TrainRun:
    """A run with a checkpoint of random weights."""
    run = resolutions_run(
        tmp_path_factory.mktemp("runs") / "tiny", synthetic_shards, held_out_shards
    )
    supernet: SamSupernet = make_supernet(prepare_run_folder(run))
    CheckpointManager(run.folder, run.checkpoint, World.single()).save(
        supernet, iter(()), TrainState(step=3), order={}, data=[], versions={}
    )
    return run


def evaluated(run, capsys, **changes):
    settings = {"run": run.folder, "subnet": "smallest", "device": "cpu", "json": True}
    assert run_evaluate(EvaluateRun.model_validate({**settings, "workers": 0, **changes})) == 0
    return capsys.readouterr().out


def test_a_dry_run_says_the_sizes(synthetic_shards, held_out_shards, tmp_path):
    text = describe_run(resolutions_run(tmp_path / "run", synthetic_shards, held_out_shards))
    assert "GFLOPs per image of 80 px with one prompt" in text
    assert "GFLOPs per image of 48 px with one prompt" in text


def test_impossible_resolutions_are_refused_before_anything_is_written(
    synthetic_shards, held_out_shards, tmp_path
):
    run = resolutions_run(tmp_path / "run", synthetic_shards, held_out_shards)
    space = run.space.model_copy(update={"resolutions": (64, 96)})
    with pytest.raises(UserError, match=r"96 is larger than the model's own 80 px"):
        prepare_run_folder(run.model_copy(update={"space": space}))
    assert not (tmp_path / "run" / "space.yaml").exists()


@pytest.mark.slow
def test_a_run_trains_validates_and_resumes_with_them(synthetic_shards, held_out_shards, tmp_path):
    run = resolutions_run(tmp_path / "run", synthetic_shards, held_out_shards)
    sandwich = run.sandwich.model_copy(update={"largest_only_steps": 0})
    run = run.model_copy(update={"sandwich": sandwich})
    prepare_run_folder(run)
    assert run_ranks(1, train, run) == [0]
    longer = run.model_copy(update={"optim": run.optim.model_copy(update={"steps": 4})})
    prepare_run_folder(longer)
    assert run_ranks(1, train, longer) == [0]
    lines = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {x["step"] for x in lines if "train/loss/smallest" in x} == {1, 2, 3, 4}
    assert sum("val/miou/smallest" in x for x in lines) == 2
    assert read_run(run.folder).space.resolutions == (48, 64, 80)


def test_an_export_scores_what_its_subnet_scores(saved, tmp_path, capsys):
    """On images that are loaded at its resolution; the largest subnet's at its own."""
    record = json.loads(evaluated(saved, capsys, against="largest"))
    assert record["subnet"]["resolution"] == 48
    alone = json.loads(evaluated(saved, capsys))
    assert record["prompts"] == alone["prompts"]
    largest = json.loads(evaluated(saved, capsys, subnet="largest"))
    mean = record["against"]["differences"]["box"]["mean"]
    apart = record["prompts"]["box"]["miou"] - largest["prompts"]["box"]["miou"]
    assert mean == pytest.approx(apart, abs=1e-9)

    out = tmp_path / "out"
    assert run_export(export_of(saved, out, onnx=True)) == 0
    card = json.loads((out / "card.json").read_text())
    assert card["max_difference_from_supernet"] == 0
    assert card["metrics"]["box"]["miou"] == record["prompts"]["box"]["miou"]
    assert card["less_largest"]["box"]["mean"] == pytest.approx(mean, abs=1e-9)
    assert card["spec"]["resolution"] == 48
    text = (out / "README.md").read_text()
    assert "for images of 48 px." in text
    assert "| input | 48 px; the supernet's 80 |" in text
    assert load_subnet(out).image_encoder.img_size == 48


def test_an_evaluation_says_the_size(saved, capsys):
    assert "GFLOPs per image of 48 px with one prompt" in evaluated(saved, capsys, json=False)
    assert "GFLOPs per image with one prompt" in evaluated(
        saved, capsys, subnet="largest", json=False
    )


def test_predict_segments_an_image_with_it(saved, tmp_path, capsys):
    image = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)).save(image)
    options = PredictRun(
        image=image, run=saved.folder, subnet="smallest", box=("10,5,60,40",),
        out=tmp_path / "masks.png",
    )  # fmt: skip
    assert run_predict(options) == 0
    assert "1 mask" in capsys.readouterr().out


@pytest.mark.slow
def test_fine_tuning_keeps_the_resolution(saved, tmp_path):
    words = ["--run", saved.folder, "--subnet", "smallest", "--out", tmp_path / "tuned"]
    words += ["--finetune-steps", "2", "--images", "2", "--device", "cpu"]
    done = launch("export", *words)
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "tuned" / "card.json").read_text())
    assert card["identity"]["finetune_steps"] == 2
    assert card["max_difference_from_supernet"] == 0
    assert load_subnet(tmp_path / "tuned").image_encoder.img_size == 48
