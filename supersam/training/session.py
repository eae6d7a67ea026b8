"""One rank of a training run, from its configuration to its end."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from supersam.config import TrainRun, UserError, dump_yaml
from supersam.config.files import LOGS, SPACE_FILE, SUBNET_FILE
from supersam.data.dataset import EvalDataset, ShardDataset
from supersam.data.loader import TrainLoader, build_eval_loader, build_loader
from supersam.health.heartbeat import Heartbeat
from supersam.health.watchdog import Watchdog
from supersam.model import SamSupernet
from supersam.runs.checkpoint_io import CheckpointManager, read_average, read_moments
from supersam.runs.checkpoints import Manifest, TrainState
from supersam.runs.provenance import git_commit, versions
from supersam.runs.shards import build_order, open_data
from supersam.runs.supernet import build_supernet, load_model, restore_supernet
from supersam.runs.weights import read_run
from supersam.runtime.device import choose_device, computes_bf16, peak_memory_gib
from supersam.runtime.distributed import World, close_world, init_world, share_cores
from supersam.runtime.logging import setup_logging
from supersam.runtime.memory import keep_freed_memory
from supersam.runtime.metrics import MetricWriter
from supersam.runtime.signals import StopFlag, stop_requested
from supersam.runtime.table import count
from supersam.space import SearchSpace, read_space, read_subnet, resolve_shape
from supersam.training.engine import Engine, freeze_untrained, trainable_parameters
from supersam.training.prioritizer import Prioritizer
from supersam.training.sandwich import SandwichSampler
from supersam.training.teacher import FrozenTeacher
from supersam.training.telemetry import Telemetry
from supersam.training.trainer import InterruptedRunError, Trainer
from supersam.training.validation import Validator

logger = logging.getLogger(__name__)

STOP_NOTICE = "stopping after this step; Ctrl-C again to quit now"


def train(run: TrainRun) -> None:
    """Train `run` as the rank that the environment describes. Its folder is prepared already.

    Raises UserError for what a user can mend, and InterruptedRunError after saving if it was asked
    to stop.
    """
    device = choose_device(run.engine.device)
    world = init_world(device)
    device = choose_device(run.engine.device, world.local_rank)
    setup_logging(world, run.folder / LOGS / f"train-{world.rank:05d}.log")
    share_cores(run.engine.threads, world)
    keep_freed_memory()
    try:
        heartbeat = _build_heartbeat(run, world)
        notice = STOP_NOTICE if world.is_first else ""
        with stop_requested(notice) as stop, heartbeat, Watchdog(heartbeat, run.watchdog):
            _Session(run, world, device, heartbeat).train(stop)
    finally:
        close_world()


class _Session:
    """Everything that one rank of a run holds."""

    def __init__(
        self, run: TrainRun, world: World, device: torch.device, heartbeat: Heartbeat
    ) -> None:
        self.run, self.world, self.device, self.heartbeat = run, world, device, heartbeat
        self.space = read_space(run.folder / SPACE_FILE, resolve_shape(run.model))
        self.sandwich = _build_sandwich(run, self.space)
        self.train_readers, self.val_readers = open_data(run, world)
        self.order = build_order(run, self.train_readers)
        self.checkpoints = CheckpointManager(run.folder, run.checkpoint, world)

    def train(self, stop: StopFlag) -> None:
        """Start or resume the run and train to its end."""
        found = _agree_on_checkpoint(self.checkpoints, self.world)
        if found is None:
            supernet = build_supernet(self.run, self.space)
        else:
            self._check_same_data(*found)
            supernet = restore_supernet(self.run, self.space, *found)
        supernet.to(self.device)
        freeze_untrained(supernet, self.run.optim, self.run.data, only=self.sandwich.only)
        supernet.prepare_training(
            checkpoint_activations=self.run.engine.checkpoint_activations,
            compiled=self.run.engine.compile and self.device.type == "cuda",
        )
        engine = Engine(supernet, self.run.optim, self.run.engine, world_size=self.world.world_size)
        state = TrainState()
        if found is not None:
            path, manifest = found
            state = manifest.state
            engine.restore(read_moments(path, manifest), step=state.step)
            if engine.average is not None:
                engine.average.restore(read_average(path, manifest))
            logger.info("resumed at step %d from %s (verified)", state.step, path)
        self._announce(supernet)
        self.heartbeat.begin(state.step)
        is_validated = not self.val_readers or state.validated_step == state.step
        if state.step >= self.run.optim.steps and is_validated:
            logger.info("this run is complete at step %d; raise --optim.steps to go on", state.step)
            return
        self._fit(supernet, engine, state, stop)

    def _fit(
        self, supernet: SamSupernet, engine: Engine, state: TrainState, stop: StopFlag
    ) -> None:
        run, world = self.run, self.world
        writer = MetricWriter(
            run.folder if world.is_first else None,
            first_step=state.step,
            own=run.engine.metric_writer,
        )
        writer.text("run", dump_yaml(_settings(run)))
        telemetry = Telemetry(
            writer,
            world,
            every=run.engine.log_every,
            steps=run.optim.steps,
            first_step=state.step,
            heartbeat=self.heartbeat,
        )
        validator = self._build_validator(writer)
        trainer = Trainer(
            run,
            world,
            supernet=supernet,
            engine=engine,
            loader=self._build_loader(state.step),
            sandwich=self.sandwich,
            telemetry=telemetry,
            heartbeat=self.heartbeat,
            teacher=self._build_teacher(),
            validator=validator,
            prioritizer=self._build_prioritizer(supernet, engine),
            save=lambda: self._save(supernet, engine, state),
            record_score=lambda: self.checkpoints.record_score(state),
            state=state,
            device=self.device,
        )
        try:
            trainer.fit(stop)
            if validator is not None:
                writer.hparams(_hparams(run), validator.last)
        except InterruptedRunError:
            self.heartbeat.enter("stopped")
            raise
        finally:
            telemetry.close()
            writer.close()

    def _save(self, supernet: SamSupernet, engine: Engine, state: TrainState) -> None:
        path = self.checkpoints.save(
            supernet,
            engine.moment_shares(),
            state,
            average={} if engine.average is None else engine.average.state(),
            order=self.order.describe(),
            data=[reader.fingerprint for reader in self.train_readers],
            versions={**versions(), "git": git_commit()},
        )
        self.heartbeat.saved(state.step)
        logger.info("saved %s", path)

    def _build_teacher(self) -> FrozenTeacher | None:
        if self.run.loss.teacher is None:
            return None
        model, _ = load_model(self.run.loss.teacher)
        return FrozenTeacher(model.to(self.device), self.space.shape)

    def _build_prioritizer(self, supernet: SamSupernet, engine: Engine) -> Prioritizer | None:
        if self.run.prioritize.when == "off":
            return None
        return Prioritizer(
            self.run,
            self.world,
            supernet=supernet,
            engine=engine,
            dataset=self._build_dataset(),
            steps_per_epoch=self.order.batches_per_epoch,
        )

    def _build_dataset(self) -> ShardDataset:
        run = self.run
        return ShardDataset(
            self.train_readers, run.data, side=self.space.shape.image_size, seed=run.optim.seed
        )

    def _build_loader(self, step: int) -> TrainLoader:
        run, world = self.run, self.world
        return build_loader(
            self._build_dataset(),
            self.order,
            world,
            batch_size=run.optim.global_batch // world.world_size // run.optim.accumulate,
            start_step=step,
            workers=run.data.workers,
            pin_memory=self.device.type == "cuda",
            start_method=run.engine.loader_start,
        )

    def _build_validator(self, writer: MetricWriter) -> Validator | None:
        if not self.val_readers:
            return None
        run = self.run
        dataset = EvalDataset(
            self.val_readers,
            side=self.space.shape.image_size,
            prompt=run.checkpoint.validate_prompt,
        )
        images = build_eval_loader(dataset, self.world, limit=run.checkpoint.validate_images)
        bf16 = computes_bf16(run.engine.precision, self.device)
        subnets = self.sandwich.fixed()
        return Validator(subnets, images, self.world, writer, run.checkpoint, bf16=bf16)

    def _check_same_data(self, path: Path, manifest: Manifest) -> None:
        prints = [reader.fingerprint for reader in self.train_readers]
        if manifest.data != prints:
            raise UserError(
                f"the training shards are not those that {path} was trained on; restore them, or "
                "start a new run from its weights with --model.checkpoint"
            )
        try:
            self.order.require_same(manifest.order)
        except ValueError as fault:
            raise UserError(str(fault)) from fault

    def _announce(self, supernet: SamSupernet) -> None:
        trained = sum(p.numel() for _, p in trainable_parameters(supernet)) / 1e6
        logger.info(
            "%s, %.1f M trained parameters, %s subnets, %s on %s in %s",
            count(sum(reader.num_images for reader in self.train_readers), "image"),
            trained,
            f"{self.space.num_subnets():,}",
            count(self.world.world_size, "rank"),
            self.device,
            "bf16" if computes_bf16(self.run.engine.precision, self.device) else "fp32",
        )


def _build_sandwich(run: TrainRun, space: SearchSpace) -> SandwichSampler:
    only = None if run.sandwich.only is None else read_subnet(run.folder / SUBNET_FILE, space)
    in_force = read_run(run.folder)  # a longer run begins its sandwich where the first one did
    return SandwichSampler(
        space,
        run.optim.seed,
        run.sandwich.random_subnets,
        by_size=run.sandwich.sampling == "size",
        largest_only_steps=in_force.largest_only_steps,
        growing_steps=run.sandwich.growing_steps,
        only=only,
    )


def _agree_on_checkpoint(
    checkpoints: CheckpointManager, world: World
) -> tuple[Path, Manifest] | None:
    """Return the newest valid checkpoint, which rank 0 verifies. A collective."""
    choice: list[tuple[Path, Manifest] | UserError | None] = [None]
    if world.is_first:
        try:
            choice = [checkpoints.latest()]
        except UserError as fault:
            choice = [fault]
    dist.broadcast_object_list(choice)
    if isinstance(choice[0], UserError):
        raise choice[0]
    return choice[0]


def _build_heartbeat(run: TrainRun, world: World) -> Heartbeat:
    return Heartbeat(
        run.folder,
        rank=world.rank,
        world_size=world.world_size,
        nodes=world.world_size // int(os.environ.get("LOCAL_WORLD_SIZE", world.world_size)),
        interval_s=run.watchdog.heartbeat_s,
        steps=run.optim.steps,
        memory_gib=peak_memory_gib,
    )


def _settings(run: TrainRun) -> dict[str, Any]:
    """The settings of a run without those that are null, such as Slurm's of a run without it."""
    return run.model_dump(mode="json", by_alias=True, exclude_none=True)


def _hparams(run: TrainRun) -> dict[str, float | str | bool]:
    return {
        "model": run.model.name,
        "lr": run.optim.lr,
        "global_batch": run.optim.global_batch,
        "steps": run.optim.steps,
        "random_subnets": run.sandwich.random_subnets,
        "distill": run.loss.distill,
        "precision": run.engine.precision,
    }
