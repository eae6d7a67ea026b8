"""The training loop: one optimizer step is one accumulated sandwich."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from supersam.config import TrainRun, UserError
from supersam.config.files import LOGS
from supersam.data.loader import DeviceBatches, TrainLoader
from supersam.data.sample import Batch
from supersam.health.heartbeat import Heartbeat
from supersam.model import Prediction, SamSupernet
from supersam.model.input_size import resize_batch
from supersam.model.losses import LossTerms
from supersam.model.prefix import SharedPrefix
from supersam.runs.checkpoints import TrainState
from supersam.runtime.device import computes_bf16
from supersam.runtime.distributed import World, all_reduce_max
from supersam.runtime.signals import StopFlag
from supersam.space import SubnetSpec, places_by_resolution
from supersam.training.clicks import Prompts, Taught, accumulate_rounds
from supersam.training.engine import Engine
from supersam.training.prioritizer import Prioritizer
from supersam.training.sandwich import SandwichSampler
from supersam.training.teacher import FrozenTeacher
from supersam.training.telemetry import Telemetry
from supersam.training.validation import Validator


class InterruptedRunError(Exception):
    """Raised after a run was asked to stop and has saved its state."""

    def __init__(self, step: int, number: int) -> None:
        """step: the last one taken; number: of the signal that ended the run."""
        super().__init__(f"stopped at step {step}, which is saved")
        self.signal = number


class Trainer:
    """Trains a supernet from `state.step` to the last step of its run."""

    def __init__(
        self,
        run: TrainRun,
        world: World,
        *,
        supernet: SamSupernet,
        engine: Engine,
        loader: TrainLoader,
        sandwich: SandwichSampler,
        telemetry: Telemetry,
        heartbeat: Heartbeat,
        teacher: FrozenTeacher | None,
        validator: Validator | None,
        prioritizer: Prioritizer | None,
        save: Callable[[], None],
        record_score: Callable[[], None],
        state: TrainState,
        device: torch.device,
    ) -> None:
        self.run = run
        self.world = world
        self.supernet = supernet
        self.engine = engine
        self.loader = loader
        self.sandwich = sandwich
        self.telemetry = telemetry
        self.heartbeat = heartbeat
        self.teacher = teacher
        self.validator = validator
        self.prioritizer = prioritizer
        self.save = save
        self.record_score = record_score
        self.state = state
        self.device = device
        self._bf16 = computes_bf16(run.engine.precision, device)

    def fit(self, stop: StopFlag) -> None:
        """Train to the last step. Raises InterruptedRunError where `stop` was set, after saving.

        A step that is saved and validated is saved first, so that no interruption loses it; a
        validation that an interruption prevented is made up for when the run goes on.
        """
        if self._validation_is_due():
            self.validate(is_saved=True)
        if self.state.step == self.run.optim.steps:
            return
        batches = DeviceBatches(iter(self.loader), self.device)
        while self.state.step < self.run.optim.steps:
            self.supernet.train()
            self.prioritize()
            self.train_step(batches)
            self.state.step += 1
            self.heartbeat.end_step(self.state.step)
            stopping = self._agree_to_stop(stop)
            last = self.state.step == self.run.optim.steps
            self.telemetry.pause()
            saving = last or stopping or self.state.step % self.run.checkpoint.every_steps == 0
            if saving:
                self.heartbeat.enter("saving")
                self.save()
            if self._validation_is_due() and (last or not stopping):
                self.validate(is_saved=bool(saving))
            self.heartbeat.enter("training")
            self.telemetry.resume()
            if stopping and not last:
                raise InterruptedRunError(self.state.step, stopping)

    def prioritize(self) -> None:
        """Reorder the weights at the steps that need it, which depend on the step number alone."""
        if self.prioritizer is None or not self.prioritizer.is_due(self.state.step):
            return
        self.telemetry.pause()
        phase = self.heartbeat.phase
        self.heartbeat.enter("prioritizing")
        self.prioritizer.prioritize(self.state.step)
        self.heartbeat.enter(phase)
        self.telemetry.resume()

    def train_step(self, batches: DeviceBatches) -> None:
        """Take one optimizer step of the sandwich rule, over `optim.accumulate` micro-batches.

        The host waits for the device once, in `engine.step`, so that a gradient that is not finite
        ends the run at once.
        """
        step, accumulate = self.state.step, self.run.optim.accumulate
        for _ in range(accumulate):
            started = time.perf_counter()
            self.heartbeat.note_progress()
            batch = next(batches)
            self._log_sample_ids(batch)
            waited = time.perf_counter() - started
            self.heartbeat.note_progress()
            losses = self.accumulate_sandwich(batch, step, scale=1 / accumulate)
            started = time.perf_counter()
            batches.copy_ahead()
            waited += time.perf_counter() - started
            self.telemetry.add(losses, images=len(batch.images), data_wait_s=waited)
        learning_rate = self.engine.learning_rate
        self.heartbeat.end_own_work()
        grad_norm = self.engine.step()
        if not math.isfinite(grad_norm):
            raise UserError(
                f"training diverged: at step {step + 1} the gradient's norm is {grad_norm}, and "
                f"nothing is saved of it; lower --optim.lr ({self.run.optim.lr:g}) or "
                f"--optim.clip-norm ({self.run.optim.clip_norm:g}) and start anew in another --run"
            )
        self.telemetry.end_step(
            step + 1,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            clipped=grad_norm > self.run.optim.clip_norm > 0,
        )

    def accumulate_sandwich(self, batch: Batch, step: int, *, scale: float) -> dict[str, Tensor]:
        """Add the gradients of every subnet of `step`; each backward frees its own activations.

        Subnets of one resolution take their turn together: their images are scaled once, the prefix
        that they share is computed once, and its backward comes last. Nothing here waits for the
        device. Returns the losses by metric name, detached scalars.
        """
        losses: dict[str, Tensor] = {}
        subnets, slots = self.sandwich.draw(step), self.sandwich.slots(step)
        teacher = self._teach(batch)
        for resolution, places in places_by_resolution(subnets).items():
            seen = resize_batch(batch, self.supernet.space.shape.at(resolution).image_size)
            with self._autocast():
                prefix = self.supernet.begin(
                    seen.images, seen.sizes, [subnets[place] for place in places]
                )
            for place in places:
                terms, first = self._accumulate(
                    subnets[place], prefix, seen, teacher=teacher, scale=scale
                )
                losses |= _named(slots[place], terms)
                if self.run.loss.distill and teacher is None:
                    first = _detached(first)
                    teacher = Taught(first, first.embedding, self._answer)
            if (prefix_loss := prefix.loss()) is not None:
                self.engine.backward(prefix_loss)
        return losses

    def _accumulate(
        self,
        subnet: SubnetSpec,
        prefix: SharedPrefix,
        batch: Batch,
        *,
        teacher: Taught | None,
        scale: float,
    ) -> tuple[LossTerms, Prediction]:
        """Add the gradients of one subnet, down to the prefix. batch: at its resolution."""
        with self.supernet.activated(subnet), self._autocast():
            embedding = self.supernet.encode_from(prefix)
        return accumulate_rounds(
            self._answer,
            embedding,
            batch,
            self.run.loss,
            teacher=teacher,
            backward=self.engine.backward,
            scale=scale,
        )

    def _answer(self, embedding: Tensor, prompts: Prompts) -> Prediction:
        with self._autocast():
            return self.supernet.predict(embedding, prompts.points, prompts.labels, prompts.masks)

    def _teach(self, batch: Batch) -> Taught | None:
        if self.teacher is None:
            return None
        with self._autocast():
            taught = self.teacher.teach(batch)
        return replace(taught, answer=self._autocast()(taught.answer))

    def validate(self, *, is_saved: bool) -> None:
        """Score the fixed subnets on held-out images and remember the best step.

        is_saved: whether the step's checkpoint is written already, which then gets the score too.
        """
        if self.validator is None:
            return
        self.heartbeat.enter("validating")
        with self.engine.averaged():
            score = self.validator.validate(self.supernet, self.state.step)
        self.heartbeat.validated(score)
        if self.state.best_score is None or score > self.state.best_score:
            self.state.best_score, self.state.best_step = score, self.state.step
        self.state.validated_step = self.state.step
        if is_saved:
            self.record_score()

    def _validation_is_due(self) -> bool:
        """Whether the present step is to be validated, and was not yet."""
        step = self.state.step
        if self.validator is None or step == 0 or self.state.validated_step == step:
            return False
        every = self.run.checkpoint.validate_every_steps
        return step == self.run.optim.steps or step % every == 0

    def _agree_to_stop(self, stop: StopFlag) -> int:
        """Return the signal that stopped any rank, 0 for none: all must leave at the same step."""
        return int(all_reduce_max(float(stop.number)))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16)

    def _log_sample_ids(self, batch: Batch) -> None:
        if not self.run.engine.log_sample_ids:
            return
        path = Path(self.run.folder) / LOGS / f"sample_ids-{self.world.rank:05d}.jsonl"
        path.parent.mkdir(exist_ok=True)
        line = {"step": self.state.step, "ids": batch.sample_ids.tolist()}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _named(slot: str, terms: LossTerms) -> dict[str, Tensor]:
    parts = {"loss": terms.total, "mask": terms.mask, "iou": terms.iou}
    if terms.distill is not None:
        parts["distill"] = terms.distill
    return {f"train/{part}/{slot}": value for part, value in parts.items()}


def _detached(prediction: Prediction) -> Prediction:
    """Drop the graph, so that its activations are freed."""
    return Prediction(
        masks=prediction.masks.detach(),
        ious=prediction.ious.detach(),
        embedding=prediction.embedding.detach(),
    )
