"""Predicted memory against the bytes that PyTorch records of a real step."""

from __future__ import annotations

import pytest

from benchmarks.step_memory import peak_mib, random_batch
from supersam.config import TrainRun, merge
from supersam.model import SamSupernet, load_sam
from supersam.space import build_space, resolve_shape
from supersam.training import step_memory
from supersam.training.engine import freeze_untrained
from supersam.training.step_memory import (
    StepMemory,
    describe_memory,
    largest_batch,
    predict_memory,
)
from tests.training.runs import TINY_RUN


def tiny(**engine) -> TrainRun:
    sizes = {"model": {"image_size": 160, "attention": "reference"}}
    changes = {"data": {"source": "synthetic"}, "engine": engine}
    return TrainRun.model_validate(merge(TINY_RUN, sizes, changes))


@pytest.mark.parametrize("images", [4])
@pytest.mark.parametrize("recomputed", [False, True])
def test_the_predicted_peak_is_the_real_one(images, recomputed):
    run = tiny(checkpoint_activations=recomputed)
    shape = resolve_shape(run.model)
    space = build_space(run.space, shape)
    supernet = SamSupernet(load_sam(shape), space, attention="reference")
    freeze_untrained(supernet, run.optim, run.data)
    supernet.prepare_training(checkpoint_activations=recomputed, compiled=False)
    batch = random_batch(images, run.data.prompts_per_image, shape.image_size)
    real = peak_mib(supernet, batch, [space.largest()] * 2) * 2**20
    predicted = predict_memory(run, world_size=1, on_gpu=False, images=images)
    assert real > 2 * predicted.weights  # activations, not the optimizer, make the peak
    assert predicted.step == pytest.approx(real, rel=0.02)


def test_memory_grows_with_the_batch_and_shrinks_with_bf16_and_recomputation():
    def step(images: int, *, on_gpu: bool = False, **engine) -> int:
        run = tiny(**engine)
        return predict_memory(run, world_size=2, on_gpu=on_gpu, images=images).step

    plain = step(4)
    assert step(8) > 1.5 * plain
    assert step(4, checkpoint_activations=True) < 0.9 * plain
    assert step(4, precision="bf16") < 0.9 * plain
    assert step(1, on_gpu=True, precision="auto") == step(1, on_gpu=True, precision="bf16")


def test_memory_does_not_grow_with_corrections_beyond_the_first():
    def step(clicks: int) -> int:
        run = TrainRun.model_validate(merge(tiny().model_dump(), {"data": {"clicks": clicks}}))
        return predict_memory(run, world_size=1, on_gpu=False, images=4).step

    once = step(1)
    assert step(0) < once
    assert step(6) < 1.2 * once  # each point is one more token


@pytest.mark.parametrize("images", [0, 1, 2, 5, 6, 40, 41])
@pytest.mark.parametrize("kink", [1, 5, 30])
def test_the_largest_batch_is_the_last_that_fits(images, kink, monkeypatch):
    asked = []

    def predicted(run: TrainRun, *, images: int, **_) -> StepMemory:
        """The optimizer's step, then a straight line, then a steeper one."""
        asked.append(images)
        return StepMemory(10, 30, max(40, 10 * images, 25 * images - 15 * kink))

    monkeypatch.setattr(step_memory, "predict_memory", predicted)
    limit = predicted(tiny(), images=images + 1).total - 1
    fit = [n for n in range(60) if predicted(tiny(), images=n).total <= limit]
    asked.clear()
    most = largest_batch(tiny(), world_size=1, on_gpu=True, limit=limit)
    assert most == (fit[-1] if 1 in fit else 0)
    assert len(asked) < 14


def test_weights_and_optimizer_state_are_the_parameters(tiny_space):
    run = tiny()
    alone, of_four = (
        predict_memory(run, world_size=world, on_gpu=False, images=1) for world in (1, 4)
    )
    parameters = sum(p.numel() for p in load_sam(resolve_shape(run.model)).parameters())
    assert alone.weights == of_four.weights == pytest.approx(4 * parameters, rel=0.01)
    assert alone.optimizer == pytest.approx(12 * parameters, rel=0.02)
    assert of_four.optimizer == pytest.approx(alone.optimizer / 4, rel=1e-3)
    assert "of 1 image at once" in describe_memory(alone, 1)
