"""Tiny training runs, and one step of training made of plain torch to compare with."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from supersam.config import TrainRun, merge
from supersam.data.dataset import ShardDataset
from supersam.data.loader import TrainLoader, build_loader
from supersam.data.partition import SampleOrder
from supersam.data.sample import Batch
from supersam.data.shards import ShardReader
from supersam.health.heartbeat import Heartbeat
from supersam.model import Prediction, SamSupernet
from supersam.model.input_size import resize_batch, resize_maps
from supersam.model.losses import subnet_loss
from supersam.runs.checkpoints import TrainState
from supersam.runtime.distributed import World
from supersam.runtime.metrics import MetricWriter
from supersam.space import SearchSpace
from supersam.training.engine import (
    Engine,
    freeze_untrained,
    learning_rate_scale,
    parameter_groups,
    trainable_parameters,
)
from supersam.training.sandwich import SandwichSampler
from supersam.training.session import build_supernet
from supersam.training.telemetry import Telemetry
from supersam.training.trainer import Trainer

TINY_RUN: dict[str, Any] = {
    "model": {
        "name": "tiny", "embed_dim": 96, "depth": 4, "num_heads": 3, "global_layers": [1, 3],
        "image_size": 80, "window_size": 3,
    },
    "space": {"removable": [0, 1, 2], "elastic_heads": True, "width_multiple": 32},
    "data": {"workers": 0, "prompts_per_image": 3},
    "sandwich": {"largest_only_steps": 0},
    "optim": {"steps": 5, "lr": 1e-3, "warmup_steps": 2, "global_batch": 4},
    "engine": {"device": "cpu", "threads": 1, "log_every": 1, "log_sample_ids": True},
    "checkpoint": {"every_steps": 1, "keep_last": 10, "validate_every_steps": 100},
}  # fmt: skip


def tiny_run(folder: Path, shards: Path, changes: dict[str, Any] | None = None) -> TrainRun:
    """A run of a few small steps on `shards`, in `folder`."""
    place = {"run": str(folder), "data": {"train": [str(shards)]}}
    return TrainRun.model_validate(merge(TINY_RUN, place, changes or {}))


def build_trainer(run: TrainRun, world: World, space: SearchSpace) -> Trainer:
    """The real trainer and engine of one rank, without validation and checkpoints."""
    supernet = build_supernet(run, space)
    freeze_untrained(supernet, run.optim, run.data)
    heartbeat = Heartbeat(
        run.folder,
        rank=world.rank,
        world_size=world.world_size,
        nodes=1,
        interval_s=10.0,
        steps=run.optim.steps,
    )
    return Trainer(
        run,
        world,
        supernet=supernet,
        engine=Engine(supernet, run.optim, run.engine, world_size=world.world_size),
        loader=train_loader(run, world),
        sandwich=sandwich_of(run, space),
        telemetry=Telemetry(
            MetricWriter(None), world, every=1000, steps=100, first_step=0, heartbeat=heartbeat
        ),
        heartbeat=heartbeat,
        teacher=None,
        validator=None,
        prioritizer=None,
        save=lambda: None,
        record_score=lambda: None,
        state=TrainState(),
        device=torch.device("cpu"),
    )


def sandwich_of(run: TrainRun, space: SearchSpace) -> SandwichSampler:
    return SandwichSampler(space, run.optim.seed, run.sandwich.random_subnets)


def train_loader(run: TrainRun, world: World) -> TrainLoader:
    """This rank's batches of a run's training shards."""
    readers = [ShardReader(folder) for folder in run.data.train]
    order = SampleOrder(
        [reader.shard_sizes for reader in readers], run.optim.global_batch, seed=run.optim.seed
    )
    dataset = ShardDataset(readers, run.data, side=run.model.image_size or 0, seed=run.optim.seed)
    share = run.optim.global_batch // world.world_size // run.optim.accumulate
    return build_loader(dataset, order, world, batch_size=share)


def weights_and_moments(supernet: SamSupernet, engine: Engine) -> dict[str, Tensor]:
    """Everything that training changes, by name, as copies."""
    state = {f"weight/{n}": p for n, p in trainable_parameters(supernet)} | dict(engine.moments())
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def plain_training(run: TrainRun, space: SearchSpace, *, steps: int) -> dict[str, Tensor]:
    """What `steps` sandwich steps must lead to: each subnet's gradient alone, summed, plain AdamW.

    The whole global batch is one batch here, whatever the number of ranks or micro-batches.
    """
    supernet = build_supernet(run, space)
    freeze_untrained(supernet, run.optim, run.data)
    optim = run.optim
    optimizer = torch.optim.AdamW(
        parameter_groups(supernet, optim.weight_decay),
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
    )
    alone = run.model_copy(update={"optim": optim.model_copy(update={"accumulate": 1})})
    batches = iter(train_loader(alone, World.single()))
    parameters = [p for _, p in trainable_parameters(supernet)]
    for step in range(steps):
        batch = next(batches)
        gradients = subnet_gradients(run, supernet, batch, sandwich_of(run, space).draw(step))
        for parameter, *parts in zip(parameters, *gradients, strict=True):
            parameter.grad = torch.stack(parts).sum(dim=0)
        if optim.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(parameters, optim.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * learning_rate_scale(optim)(step)
        optimizer.step()
    result = {}
    for name, parameter in trainable_parameters(supernet):
        result[f"weight/{name}"] = parameter.detach()
        for key in ("exp_avg", "exp_avg_sq"):
            result[f"{key}/{name}"] = optimizer.state[parameter][key]
    return result


def mean_with_corrections(
    run: TrainRun,
    supernet: SamSupernet,
    prediction: Prediction,
    batch: Batch,
    teacher: Prediction | None,
    first: Tensor,
) -> Tensor:
    """The mean loss of the first prompts and the corrections, in one graph from the pixels on."""
    losses, points, labels = [first], batch.points, batch.labels
    best = 1 + prediction.ious[..., 1:].argmax(dim=-1)
    masks = torch.stack(
        [
            torch.stack([p[int(i)] for p, i in zip(*each, strict=True)])
            for each in zip(prediction.masks, best, strict=True)
        ]
    ).detach()
    for number in range(batch.clicks.shape[-1]):
        clicked = [
            [click_on(masks[b, n] > 0, batch, b, n, number) for n in range(masks.shape[1])]
            for b in range(len(masks))
        ]
        points = torch.cat([points, torch.tensor([[[p] for p, _ in row] for row in clicked])], 2)
        labels = torch.cat([labels, torch.tensor([[[k] for _, k in row] for row in clicked])], 2)
        answer, estimates = supernet.decode(prediction.embedding, points, labels, masks)
        taught = None
        if teacher is not None:
            with torch.no_grad():
                side = teacher.masks.shape[-1]
                scaled = points * (side / masks.shape[-1])
                shown = masks if side == masks.shape[-1] else resize_maps(masks, side)
                found = supernet.decode(teacher.embedding, scaled, labels, shown)
            taught = Prediction(found[0][:, :, :1], found[1][:, :, :1], teacher.embedding)
            taught = taught.at_grid(masks.shape[-1] // 4)
        single = Prediction(answer[:, :, :1], estimates[:, :, :1], prediction.embedding)
        losses.append(subnet_loss(single, batch, run.loss, teacher=taught).total)
        masks = answer[:, :, 0].detach()
    return torch.stack(losses).mean()


def click_on(
    predicted: Tensor, batch: Batch, image: int, prompt: int, number: int
) -> tuple[list[float], int]:
    """The middle of one of the wrong cells, counted from the image's top left, and its label."""
    share = batch.masks[image, prompt].int()
    truth = share >= max(1, min(128, int(share.max())))
    height, width = batch.sizes[image].tolist()
    wrong = predicted != truth
    wrong[-((2 - height) // 4) :] = False
    wrong[:, -((2 - width) // 4) :] = False
    cells = (wrong if wrong.any() else truth).nonzero().tolist() or [[len(share) - 1] * 2]
    draw = float(batch.clicks[image, prompt, number])
    row, column = cells[min(int(np.float32(draw) * np.float32(len(cells))), len(cells) - 1)]
    return [4 * column + 1.5, 4 * row + 1.5], int(truth[row, column])


def subnet_gradients(
    run: TrainRun, supernet: SamSupernet, batch: Batch, subnets: Sequence[Any]
) -> list[list[Tensor]]:
    """The gradients of each subnet's loss, computed separately."""
    gradients, teacher = [], None
    for subnet in subnets:
        supernet.zero_grad(set_to_none=True)
        seen = resize_batch(batch, supernet.space.input_px(subnet))
        with supernet.activated(subnet):
            prediction = supernet(seen.images, seen.sizes, seen.points, seen.labels)
        taught = None if teacher is None else teacher.at_grid(prediction.embedding.shape[-1])
        loss = subnet_loss(prediction, seen, run.loss, teacher=taught).total
        if batch.clicks is not None:
            loss = mean_with_corrections(run, supernet, prediction, seen, teacher, loss)
        loss.backward()
        if run.loss.distill and teacher is None:
            teacher = prediction
        gradients.append(
            [
                torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for _, p in trainable_parameters(supernet)
            ]
        )
    return gradients
