"""The examples of docs/extending.md, run as they stand."""

from __future__ import annotations

import csv
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from supersam.config import SearchRun, ShardRun, SourceConfig, TrainRun, UserError, merge
from supersam.data.convert import convert
from supersam.data.shards import ShardReader
from supersam.design import score_units
from supersam.model import Prediction
from supersam.model.losses import subnet_loss
from supersam.runtime.extensions import load_extension
from supersam.search.searchers import Problem, build_searcher
from tests.design.calibration_sets import tiny_calibration
from tests.paths import ROOT
from tests.search.tiny_search import SEARCH, TINY

PAGE = (ROOT / "docs" / "extending.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# (my_\w+)\.py\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture(autouse=True)
def in_a_folder_with_the_examples(tmp_path, monkeypatch):
    for name, text in EXAMPLES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in EXAMPLES:
        sys.modules.pop(name, None)


def test_every_example_is_about_ten_lines():
    assert set(EXAMPLES) == {
        *("my_loss", "my_writer", "my_data", "my_score", "my_searcher", "my_script"),
    }
    assert all(len(text.strip().splitlines()) <= 18 for text in EXAMPLES.values())


def test_a_loss_of_one_s_own_is_minimised(synthetic_shards):
    run = TrainRun.model_validate(
        {"data": {"source": "synthetic"}, "loss": {"mask": "my_loss:soft_iou_loss"}}
    )
    batch = tiny_calibration(synthetic_shards, images=1, batch=1)[0]
    target = (batch.masks.float() / 255.0)[:, :, None].expand(-1, -1, 4, -1, -1)
    ious = torch.ones(target.shape[:3])
    losses = []
    for sign in (1, -1):
        prediction = Prediction(
            masks=sign * (target * 40 - 20), ious=ious, embedding=torch.zeros(1, 1, 1, 1)
        )
        losses.append(float(subnet_loss(prediction, batch, run.loss, teacher=None).mask))
    assert losses[0] < 0.5 < 1 < losses[1]


def test_a_data_source_of_one_s_own_becomes_shards(tmp_path):
    run = ShardRun(out=tmp_path / "shards", source={"kind": "my_data:Discs"})
    convert(run.source, tmp_path / "shards", workers=2)
    reader = ShardReader(tmp_path / "shards")
    assert len(reader) == 8
    example = importlib.import_module("my_data").Discs(None, "train")
    areas = [int(example[index][1].sum()) for index in range(8)]
    assert sorted(int(reader.read(index).masks[0].area) for index in range(8)) == sorted(areas)


def test_an_importance_score_of_one_s_own_orders_units(make_supernet, synthetic_shards):
    supernet = make_supernet()
    supernet.image_encoder.blocks[1].mlp.lin2.weight.data[:, 7] = -5.0
    calibration = tiny_calibration(synthetic_shards, images=1, batch=1)
    scores = score_units(supernet, calibration, score="my_score:by_output_norm")
    assert int(scores.mlp[1].argmax()) == 7


def test_a_searcher_of_one_s_own_proposes(tiny_space):
    problem = Problem(tiny_space, ("miou", "params_m"))
    found = build_searcher("my_searcher:HillClimber", problem).ask(5)
    assert len(set(found)) == 5
    assert found == build_searcher("my_searcher:HillClimber", problem).ask(5)


@pytest.mark.slow
def test_train_and_search_from_python_with_a_loss_a_writer_and_a_searcher(tmp_path):
    """The page's script, on a run as small as can be, with three more of its examples."""
    convert(SourceConfig(kind="my_data:Discs"), tmp_path / "train")
    convert(SourceConfig(kind="my_data:Discs", split="val"), tmp_path / "val")
    engine = {"metric_writer": "my_writer:CsvWriter", "log_every": 1}
    own = {
        "run": "run",
        "data": {"train": ["train"], "val": ["val"], "workers": 0, "prompts_per_image": 1},
        "loss": {"mask": "my_loss:soft_iou_loss"},
        "optim": {"steps": 2, "warmup_steps": 0, "global_batch": 2},
        "engine": engine,
        "checkpoint": {"every_steps": 2, "validate_every_steps": 2},
    }
    search = SEARCH | {"trials": 4, "searcher": "my_searcher:HillClimber"}
    search["protocol"] = {"images": 2, "images_per_batch": 1}
    folder = importlib.import_module("my_script").main(merge(TINY, own), search)
    assert folder == Path("run/results/search")
    assert (folder / "pareto.json").is_file()
    with Path("run/metrics.csv").open() as file:
        written = [(int(step), name) for step, name, _ in csv.reader(file)]
    assert {(1, "train/loss/largest"), (2, "train/loss/largest")} <= set(written)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_absent:thing", "No module named 'my_absent'; run from the folder of my_absent.py"),
        ("my_loss:absent", "has no attribute 'absent'; check the name after the colon"),
    ],
)
def test_what_cannot_be_loaded_is_named_with_its_setting(name, message):
    with pytest.raises(UserError, match=message) as fault:
        load_extension(name, "--loss.mask")
    assert str(fault.value).startswith(f"--loss.mask {name}: ")


def test_a_searcher_must_be_one(tiny_space):
    with pytest.raises(UserError, match="is not a subclass of"):
        build_searcher("my_data:Discs", Problem(tiny_space, ("miou",)))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            TrainRun,
            {"loss": {"mask": "dice_bcee"}},
            "did you mean dice_bce",
        ),
        (SearchRun, {"run": "x", "searcher": "optna"}, "did you mean optuna"),
        (ShardRun, {"out": "x", "source": {"kind": "cocoo"}}, "did you mean coco"),
        (SearchRun, {"run": "x", "searcher": "a:b:c"}, "module:object of your own"),
    ],
)
def test_a_typo_names_the_nearest_word_of_ours(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind.model_validate(values)
