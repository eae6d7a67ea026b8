"""Learning from a frozen teacher: of one size or another, one subnet alone, without labels."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from supersam.config import UserError
from supersam.model import SamSupernet, load_sam
from supersam.runs.checkpoint_io import CheckpointManager, read_moments, read_weights
from supersam.runs.folder import prepare_run_folder
from supersam.runtime.distributed import World
from supersam.space import build_space, published_space, resolve_shape
from supersam.training.clicks import Prompts
from supersam.training.session import train
from supersam.training.teacher import FrozenTeacher
from tests.design.calibration_sets import tiny_calibration
from tests.distributed.ranks import run_ranks
from tests.training.runs import tiny_run


@pytest.fixture(scope="module")
def batch(synthetic_shards):
    return tiny_calibration(synthetic_shards)[0]


def test_a_teacher_of_the_students_size_predicts_as_the_model_that_it_is(batch, tiny_shape):
    model = SamSupernet(load_sam(tiny_shape, seed=3), published_space(tiny_shape)).eval()
    found = FrozenTeacher(model, tiny_shape).predict(batch)
    with torch.no_grad():
        expected = model(batch.images, batch.sizes, batch.points, batch.labels)
    for name in ("masks", "ious", "embedding"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
        assert not getattr(found, name).requires_grad


@pytest.mark.parametrize("side", [48, 128])
def test_a_teacher_of_another_size_sees_the_same_scene(batch, tiny_shape, side):
    shape = replace(tiny_shape, image_size=side, embed_dim=48)
    seen = []

    class Recorder(SamSupernet):
        def forward(self, images, sizes, points, labels):
            seen.append((images, sizes, points))
            return super().forward(images, sizes, points, labels)

    model = Recorder(load_sam(shape, seed=3), published_space(shape))
    found = FrozenTeacher(model, tiny_shape).predict(batch)
    grid, objects = tiny_shape.grid, batch.points.shape[1]
    assert found.embedding.shape == (len(batch.images), 256, grid, grid)
    assert found.masks.shape == (len(batch.images), objects, 4, 4 * grid, 4 * grid)
    (images, sizes, points), factor = seen[0], side / tiny_shape.image_size
    assert images.shape[-2:] == (side, side)
    assert torch.equal(sizes, (batch.sizes * factor).round().long())
    torch.testing.assert_close((points + 0.5) / factor, batch.points + 0.5)
    assert float(images.mean()) == pytest.approx(float(batch.images.float().mean()), rel=0.02)


def taught_run(folder, shards, teacher, subnet, **changes):
    settings = {
        "model": {"embed_dim": 48},
        "sandwich": {"only": str(subnet)},
        "loss": {"teacher": str(teacher), "label_weight": 0},
        "optim": {"steps": 12, "lr": 3e-3, "warmup_steps": 2},
    }
    return tiny_run(folder, shards, settings | changes)


@pytest.fixture
def teacher(tmp_path, tiny_shape):
    torch.save(load_sam(tiny_shape, seed=5).state_dict(), tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


@pytest.fixture
def subnet(tmp_path, tiny_shape, synthetic_shards):
    run = taught_run(tmp_path, synthetic_shards, "none", "none")
    build_space(run.space, resolve_shape(run.model)).medium().write(tmp_path / "subnet.json")
    return tmp_path / "subnet.json"


@pytest.mark.parametrize("side", [80, 48])
def test_a_teacher_corrects_the_masks_that_the_student_gets(batch, tiny_shape, side):
    shape = replace(tiny_shape, image_size=side)
    model = SamSupernet(load_sam(shape, seed=3), published_space(shape)).eval()
    teacher = FrozenTeacher(model, tiny_shape)
    taught = teacher.teach(batch)
    first = taught.first
    prompts = Prompts(batch.points, batch.labels, first.masks[:, :, 0])
    found = taught.correct(prompts, tiny_shape.grid)
    assert torch.equal(found.embedding, first.embedding)
    assert found.masks.shape == first.masks.shape
    assert not torch.allclose(found.masks, first.masks)
    if side == tiny_shape.image_size:
        with torch.no_grad():
            expected = model.predict(first.embedding, *vars(prompts).values())
        assert torch.equal(found.masks, expected.masks)
        assert torch.equal(found.ious, expected.ious)


@pytest.mark.slow
@pytest.mark.parametrize("clicks", [0, 2])
def test_one_subnet_alone_learns_from_a_wider_teacher_without_labels_and_resumes_exactly(
    tmp_path, synthetic_shards, teacher, subnet, clicks
):
    data = {"clicks": clicks}
    run = taught_run(tmp_path / "whole", synthetic_shards, teacher, subnet, data=data)
    prepare_run_folder(run)
    assert run_ranks(1, train, run) == [0]
    lines = list(map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines()))
    taught = [line["train/distill/subnet"] for line in lines]
    assert sum(taught[-3:]) < 0.9 * sum(taught[:3])
    assert [line["train/loss/subnet"] for line in lines] == pytest.approx(taught)
    shutil.copytree(run.folder, tmp_path / "resumed")
    for step in range(6, 13):
        shutil.rmtree(tmp_path / "resumed" / "checkpoints" / f"step-{step:06d}", ignore_errors=True)
    resumed = run.model_copy(update={"run": tmp_path / "resumed"})
    assert run_ranks(1, train, resumed) == [0]
    states = [_last_state(each) for each in (run, resumed)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    learned = any("prompt_encoder.mask_downscaling" in n for n in states[0] if "exp_avg" in n)
    assert learned == (clicks > 0)


def _last_state(run):
    found = CheckpointManager(run.folder, run.checkpoint, World.single()).latest()
    return read_weights(*found) | read_moments(*found)


def test_one_subnet_alone_has_no_larger_one_to_learn_from(tmp_path, synthetic_shards, subnet):
    alone = taught_run(tmp_path / "run", synthetic_shards, "none", subnet, loss={"distill": True})
    with pytest.raises(UserError, match="one subnet alone has no larger one to learn from; name a"):
        prepare_run_folder(alone)
    assert not alone.folder.exists()


def test_a_teacher_that_is_not_there_is_refused_at_submission(tmp_path, synthetic_shards, subnet):
    run = taught_run(tmp_path / "run", synthetic_shards, tmp_path / "absent.pth", subnet)
    with pytest.raises(UserError, match="--loss.teacher .*absent.pth does not exist"):
        prepare_run_folder(run)


def test_no_labels_and_no_teacher_leave_nothing_to_learn_from(tmp_path, synthetic_shards):
    with pytest.raises(ValueError, match="--loss.label-weight 0 leaves the largest subnet nothing"):
        tiny_run(tmp_path / "run", synthetic_shards, {"loss": {"label_weight": 0}})
