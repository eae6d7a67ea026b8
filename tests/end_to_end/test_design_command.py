"""`python launch/design.py` as a user types it: its files, ranks and messages; then a training."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
import yaml

from supersam.config import TrainRun, load_run
from supersam.model import extract_subnet, load_sam
from supersam.space import read_space, resolve_shape
from supersam.training.session import build_supernet
from tests.commands import launch
from tests.conftest import TINY
from tests.next_commands import read_next
from tests.training.runs import TINY_RUN

pytestmark = pytest.mark.slow

FLAGS = ("--calibration.images", "6", "--calibration.batch", "2", "--threads", "1")
FLAGS += ("--limits.width-multiple", "32", "--limits.max-miou-drop", "1.0", "--device", "cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint file in segment-anything's format, of the tiny encoder."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(load_sam(TINY, seed=3).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def designed(checkpoint, synthetic_shards, tmp_path_factory) -> Path:
    """The folder of a design by one process."""
    folder = tmp_path_factory.mktemp("designs")
    done = launch(
        "design", "--data", synthetic_shards, "--checkpoint", checkpoint, *FLAGS, "--json",
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "stdout.json").write_text(done.stdout)
    return folder


def test_the_space_its_evidence_figures_and_weights_are_there(designed):
    summary = json.loads((designed / "stdout.json").read_text())
    space = read_space(designed / "space.yaml", TINY)
    assert summary["removable"] == list(space.removable)
    beside = designed / "space-design"
    evidence = json.loads((beside / "evidence.json").read_text())
    assert evidence["function_change"]["embedding"] <= 1e-5
    assert len(evidence["sensitivity"]["alone"]) == TINY.depth
    assert len(evidence["scores_before_reordering"]["mlp"][0]) == TINY.mlp_width
    pictures = sorted(path.name for path in (beside / "figures").iterdir())
    assert pictures == ["cumulative.png", "scores.png", "sensitivity.png", "sizes.png"]
    assert (beside / "weights.safetensors").is_file()
    assert not list(designed.rglob(".*.tmp*"))


def test_a_training_starts_from_the_reordered_weights_in_the_designed_space(
    designed, checkpoint, synthetic_shards
):
    config = designed / "tiny.yaml"
    values = {name: TINY_RUN[name] for name in ("data", "optim", "engine", "checkpoint")}
    values = {**values, "data": {**values["data"], "train": [str(synthetic_shards)]}}
    config.write_text(yaml.safe_dump({**values, "optim": {**values["optim"], "steps": 1}}))
    words = ("--config", config, "--config", "space-design/train.yaml", "--run", "run")
    done = launch("train", *words, cwd=designed)
    assert done.returncode == 0, done.stderr
    assert (designed / "run" / "space.yaml").read_text() == (designed / "space.yaml").read_text()
    run = load_run(TrainRun, designed / "run" / "run.yaml")
    model = run.model.model_copy(
        update={"checkpoint": designed / "space-design/weights.safetensors"}
    )
    space = read_space(designed / "space.yaml", resolve_shape(run.model))
    supernet = build_supernet(run.model_copy(update={"model": model}), space)
    sam, start = extract_subnet(supernet, space.largest()), load_sam(TINY, checkpoint)
    image = torch.randn(1, 3, TINY.image_size, TINY.image_size)
    with torch.no_grad():
        torch.testing.assert_close(
            sam.image_encoder(image), start.image_encoder(image), rtol=0, atol=1e-5
        )
    name = "image_encoder.blocks.0.mlp.lin1.weight"
    assert not torch.equal(sam.state_dict()[name], start.state_dict()[name])


def test_a_second_design_measures_nothing_again(designed, checkpoint, synthetic_shards):
    done = launch(
        "design", "--data", synthetic_shards, "--checkpoint", checkpoint, *FLAGS,
        "--limits.widths", "2", cwd=designed,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    evidence = json.loads((designed / "space-design" / "evidence.json").read_text())
    assert evidence["sets_measured"] == 0
    assert "M parameters; the smallest is" in done.stdout
    with contextlib.chdir(designed):
        name, following = read_next(done.stdout)
    assert (name, following.data.train) == ("train", (synthetic_shards,))
    assert following.space.file == Path("space.yaml")
    assert all(len(c) <= 2 for c in read_space(designed / "space.yaml", TINY).mlp_widths)


def test_weights_that_diverged_are_named_and_leave_nothing(checkpoint, synthetic_shards, tmp_path):
    weights = torch.load(checkpoint)
    weights["image_encoder.blocks.1.mlp.lin1.weight"][0, 0] = torch.nan
    torch.save(weights, tmp_path / "nan.pth")
    words = ("--data", synthetic_shards, "--checkpoint", "nan.pth", *FLAGS)
    done = launch("design", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "image_encoder.blocks.1.mlp.lin1.weight are NaN" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["nan.pth"]


def test_a_design_of_other_weights_or_images_is_not_overwritten(
    designed, checkpoint, synthetic_shards, held_out_shards, tmp_path
):
    other = tmp_path / "other.pth"
    torch.save(load_sam(TINY, seed=4).state_dict(), other)
    (designed / "mine.yaml").write_text("depth: 4\n")
    before = {p: p.read_bytes() for p in designed.rglob("*") if p.is_file()}
    for words, expected in (
        (("--checkpoint", other, "--dry-run"), "a design with --checkpoint "),
        (("--checkpoint", other), f"a design with --checkpoint {checkpoint}, and now --checkpoint"),
        (("--data", held_out_shards, "--calibration.images", "4"), "a design with --data"),
        (("--out", "mine.yaml"), "mine.yaml exists and no design made it; choose another --out"),
    ):
        given = ("--data", synthetic_shards, "--checkpoint", checkpoint, *FLAGS, *words)
        done = launch("design", *given, cwd=designed)
        assert done.returncode == 2, done.stderr
        assert expected in done.stderr
    assert {p: p.read_bytes() for p in designed.rglob("*") if p.is_file()} == before


def test_two_ranks_design_what_one_does(designed, checkpoint, synthetic_shards):
    done = launch(
        "design", "--data", synthetic_shards, "--checkpoint", checkpoint, *FLAGS,
        "--tasks-per-node", "2", "--out", "two.yaml", cwd=designed,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = (
        json.loads((designed / f"{name}-design" / "evidence.json").read_text())
        for name in ("space", "two")
    )
    assert two["sets_measured"] > 0
    for key in ("sensitivity", "scores_before_reordering", "calibration"):
        assert one[key] == two[key]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--calibration.images", "99"], "ask for --calibration.images 24"),
        (["--checkpoint", "absent.pth"], "absent.pth does not exist"),
        (["--model", "vit_b"], "embed_dim 96"),
        (["--model", "vit_q"], "vit_t, vit_s, vit_b, vit_l, vit_h"),
        (["--limits.smallest-m", "0.1"], "--limits.smallest-m"),
        (["--data", "absent"], "absent"),
        (["--importance.score", "best"], "magnitude"),
    ],
)
def test_mistakes_end_in_one_message_and_code_2(
    checkpoint, synthetic_shards, tmp_path, words, expected
):
    given = ("--data", synthetic_shards, "--checkpoint", checkpoint, *FLAGS)
    done = launch("design", *given, *words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "space.yaml").exists()


def test_a_file_that_is_no_model_is_named_as_such(synthetic_shards, tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    done = launch(
        "design", "--data", synthetic_shards, "--checkpoint", "other.pth", *FLAGS, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "not a segment-anything model" in done.stderr
