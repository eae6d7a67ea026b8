"""Corrections in training: where the clicks are, what a step without any is, memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from supersam.config import DataConfig, LossConfig
from supersam.data.dataset import ShardDataset
from supersam.data.sample import LABEL_BACKGROUND, LABEL_FOREGROUND, Batch
from supersam.data.shards import ShardReader
from supersam.model.losses import mean_terms, subnet_loss
from supersam.runtime.distributed import World
from supersam.training.clicks import Prompts, accumulate_rounds, correct, draw_clicks
from tests.training.runs import tiny_run, train_loader

CELLS = 20


def batch_of(masks: torch.Tensor, size: tuple[int, int] = (80, 80)) -> Batch:
    """One image of masks (N, 20, 20) uint8."""
    return Batch(
        images=torch.zeros(1, 3, 80, 80, dtype=torch.uint8),
        sizes=torch.tensor([size]),
        points=torch.zeros(1, len(masks), 2, 2),
        labels=torch.ones(1, len(masks), 2, dtype=torch.int64),
        masks=masks[None],
        valid=torch.ones(1, len(masks), dtype=torch.bool),
        sample_ids=torch.zeros(1, dtype=torch.int64),
    )


@pytest.fixture(scope="module")
def blobs():
    """64 objects and as many predictions of them, some nearly right."""
    rng = np.random.default_rng(0)
    objects = np.zeros((64, CELLS, CELLS), np.uint8)
    predicted = np.zeros((64, CELLS, CELLS), bool)
    for i in range(64):
        y, x, height, width = rng.integers(1, 9, 4)
        objects[i, y : y + height, x : x + width] = 255
        dy, dx = rng.integers(-1, 2, 2)
        predicted[i, y + dy : y + dy + height, x + dx : x + dx + width] = True
    return torch.from_numpy(objects), torch.from_numpy(predicted)


def test_a_click_is_where_the_mask_is_wrong_and_says_how(blobs):
    objects, predicted = blobs
    draws = torch.rand(1, 64, generator=torch.Generator().manual_seed(0))
    points, labels = draw_clicks(predicted[None], batch_of(objects), draws)
    kinds = set()
    for truth, mask, point, label in zip(objects > 0, predicted, points[0], labels[0], strict=True):
        column, row = ((point - 1.5) / 4).long().tolist()
        assert (point == torch.tensor([4 * column + 1.5, 4 * row + 1.5])).all()
        if bool((truth != mask).any()):
            assert truth[row, column] != mask[row, column]
        assert int(label) == (LABEL_FOREGROUND if truth[row, column] else LABEL_BACKGROUND)
        kinds.add(int(label))
    assert kinds == {LABEL_FOREGROUND, LABEL_BACKGROUND}


def test_each_wrong_cell_has_the_same_chance():
    objects = torch.zeros(1, CELLS, CELLS, dtype=torch.uint8)
    objects[:, 4:8, 4:8] = 255
    predicted = torch.zeros(1, 1, CELLS, CELLS, dtype=torch.bool)
    predicted[..., 6:10, 4:8] = True  # 8 cells are missing, 8 too many
    batch = batch_of(objects.expand(1600, -1, -1))
    draws = (torch.arange(1600) / 1600)[None]
    points, labels = draw_clicks(predicted.expand(1, 1600, -1, -1), batch, draws)
    _, counts = points[0].unique(dim=0, return_counts=True)
    assert counts.tolist() == [100] * 16
    assert labels.float().mean() == 0.5


def test_a_click_leaves_the_padding_alone_and_a_right_mask_gets_a_point_of_the_object():
    objects = torch.zeros(4, CELLS, CELLS, dtype=torch.uint8)
    objects[:2, 3:5, 3:5] = 255
    objects[2, 6, 7] = 90  # smaller than a cell
    predicted = torch.zeros(1, 4, CELLS, CELLS, dtype=torch.bool)
    predicted[0, 0] = objects[0] > 0
    predicted[0, 1, 3:5, 3:5], predicted[0, 1, 10:] = True, True  # wrong in the padding alone
    predicted[0, 2] = False
    for draw in (0.0, 0.5, 1 - 2**-24):
        draws = torch.full((1, 4), draw)
        points, labels = draw_clicks(predicted, batch_of(objects, (40, 80)), draws)
        cells = ((points[0, :3] - 1.5) / 4).long().tolist()
        assert all(3 <= x < 5 and 3 <= y < 5 for x, y in cells[:2])
        assert cells[2] == [7, 6]
        assert labels[0, :3].tolist() == [LABEL_FOREGROUND] * 3
        assert points[0, 3].isfinite().all()  # of no object, which no loss counts


def answering(supernet):
    return lambda embedding, p: supernet.predict(embedding, p.points, p.labels, p.masks)


@pytest.fixture(scope="module")
def clicked(synthetic_shards, tmp_path_factory):
    """A batch with three corrections for each prompt."""
    changes = {"data": {"clicks": 3}}
    run = tiny_run(tmp_path_factory.mktemp("clicks"), synthetic_shards, changes)
    return next(iter(train_loader(run, World.single())))


def gradients(supernet):
    found = {n: p.grad.clone() for n, p in supernet.named_parameters() if p.grad is not None}
    supernet.zero_grad(set_to_none=True)
    return found


def test_without_corrections_a_step_is_bit_for_bit_the_loss_of_the_prediction(
    make_supernet, clicked
):
    supernet, batch = make_supernet(), replace(clicked, clicks=None)
    inputs = (batch.images, batch.sizes, batch.points, batch.labels)
    terms = subnet_loss(supernet(*inputs), batch, LossConfig(), teacher=None)
    (terms.total * 0.5).backward()
    expected = gradients(supernet)
    found, _ = accumulate_rounds(
        answering(supernet),
        supernet.encode(batch.images, batch.sizes),
        batch,
        LossConfig(),
        teacher=None,
        backward=lambda loss: loss.backward(),
        scale=0.5,
    )
    assert found == mean_terms([terms])
    again = gradients(supernet)
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    assert "prompt_encoder.mask_downscaling.0.weight" not in again


def test_a_sample_is_the_same_but_for_its_clicks(synthetic_shards):
    reader = ShardReader(synthetic_shards)
    plain, clicked = (
        ShardDataset([reader], DataConfig(source="synthetic", clicks=n), side=80, seed=3)[0, 5, 1]
        for n in (0, 4)
    )
    draws = clicked.pop("clicks")
    assert draws.shape == (8, 4)
    assert draws.dtype == np.float32
    assert ((draws >= 0) & (draws < 1)).all()
    assert plain.keys() == clicked.keys()
    assert all(np.array_equal(plain[name], clicked[name]) for name in plain)


def test_the_best_of_three_is_corrected_first_then_the_single_mask(make_supernet, clicked):
    supernet = make_supernet()
    with torch.no_grad():
        embedding = supernet.encode(clicked.images, clicked.sizes)
        first = supernet.predict(embedding, clicked.points, clicked.labels)
        prompts = correct(Prompts(clicked.points, clicked.labels), first, clicked, 0)
        second = supernet.predict(embedding, prompts.points, prompts.labels, prompts.masks)
        third = correct(prompts, second.single(), clicked, 1)
    for b, n in np.ndindex(*clicked.valid.shape):
        best = 1 + int(first.ious[b, n, 1:].argmax())
        assert torch.equal(prompts.masks[b, n], first.masks[b, n, best])
    assert torch.equal(third.masks, second.masks[:, :, 0])
    assert third.points.shape[2] == 4
    assert torch.equal(third.points[:, :, :3], prompts.points)
    alone = supernet.predict(embedding, prompts.points, prompts.labels)
    assert not torch.allclose(alone.masks, second.masks)  # the mask is looked at


def test_memory_does_not_grow_with_the_corrections(make_supernet, clicked):
    """Each backward frees its decoder's activations before the next correction is decoded."""
    supernet, alive = make_supernet(), []
    saved = set()

    def pack(tensor):
        saved.add(id(holder := [tensor]))
        return Kept(holder, saved)

    def backward(loss: torch.Tensor) -> None:
        alive.append(len(saved))
        loss.backward()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.holder[0]):
        embedding = supernet.encode(clicked.images, clicked.sizes)
        accumulate_rounds(
            answering(supernet), embedding, clicked, LossConfig(),
            teacher=None, backward=backward, scale=1.0,
        )  # fmt: skip
    assert len(alive) == 5  # the prompt, three corrections, the encoder
    assert alive[1] == alive[2] == alive[3]
    assert alive[4] < alive[0]


class Kept:
    """A tensor that a graph keeps, and its end."""

    def __init__(self, holder, saved):
        self.holder, self._saved = holder, saved

    def __del__(self):
        self._saved.discard(id(self.holder))
