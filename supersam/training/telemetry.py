"""Reports the steps of a run: log lines, a progress bar, TensorBoard and metrics.jsonl."""

from __future__ import annotations

import logging
import sys
import time
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor
from tqdm import tqdm

from supersam.health.heartbeat import Heartbeat
from supersam.runtime.device import peak_memory_gib
from supersam.runtime.distributed import World, all_reduce_mean
from supersam.runtime.metrics import MetricWriter

logger = logging.getLogger(__name__)


class Telemetry:
    """Collects the numbers of single steps and writes their means every `every` steps."""

    def __init__(
        self,
        writer: MetricWriter,
        world: World,
        *,
        every: int,
        steps: int,
        first_step: int,
        heartbeat: Heartbeat,
    ) -> None:
        self._writer = writer
        self._world = world
        self._heartbeat = heartbeat
        self._every = every
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._steps, self._clipped = 0, 0
        self._images = 0
        self._data_wait_s = 0.0
        self._since = time.perf_counter()
        self._first = True
        self._bar = tqdm(
            total=steps,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            disable=not (world.is_first and sys.stderr.isatty()),
        )

    def add(self, losses: Mapping[str, Tensor], *, images: int, data_wait_s: float) -> None:
        """Add the numbers of one step. They stay on their device, and nothing waits for it."""
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
            self._counts[name] += 1
        self._images += images
        self._data_wait_s += data_wait_s

    def end_step(self, step: int, *, learning_rate: float, grad_norm: float, clipped: bool) -> None:
        """Count a finished step; write the means when it is time, which is a collective.

        step: steps taken so far. clipped: whether the gradient was longer than `optim.clip_norm`.
        """
        self._bar.update(1)
        self._steps += 1
        self._clipped += clipped
        if step % self._every != 0 and not self._first:
            return
        self._first = False
        names = sorted(self._sums)
        means = torch.stack([self._sums[n] / self._counts[n] for n in names]) if names else None
        values = all_reduce_mean(means).tolist() if means is not None else []
        elapsed = time.perf_counter() - self._since
        scalars = dict(zip(names, values, strict=True)) | {
            "train/lr": learning_rate,
            "train/grad_norm": grad_norm,
            "train/clipped": self._clipped / self._steps,
            "perf/images_per_s": self._images * self._world.world_size / elapsed,
            "perf/data_wait_s": self._data_wait_s,
            "perf/memory_gib": peak_memory_gib(),
        }
        self._writer.scalars(scalars, step)
        self._report(step, scalars)
        self._sums, self._counts = {}, defaultdict(int)
        self._steps, self._clipped = 0, 0
        self._images, self._data_wait_s, self._since = 0, 0.0, time.perf_counter()

    def pause(self) -> None:
        """Stop the clock until `resume`: validations and checkpoints are not training time."""
        self._paused = time.perf_counter()

    def resume(self) -> None:
        """Start the clock again."""
        self._since += time.perf_counter() - self._paused

    def close(self) -> None:
        """Remove the progress bar from the terminal."""
        self._bar.close()

    def _report(self, step: int, scalars: Mapping[str, float]) -> None:
        slots = {n.rpartition("/")[2]: v for n, v in scalars.items() if n.startswith("train/loss/")}
        self._heartbeat.report(losses=slots, images_per_s=scalars["perf/images_per_s"])
        losses = "  ".join(f"{name} {value:.3f}" for name, value in slots.items())
        if self._bar.disable:
            logger.info(
                "step %d  loss: %s  lr %.2e  %.1f images/s",
                step,
                losses,
                scalars["train/lr"],
                scalars["perf/images_per_s"],
            )
        else:
            self._bar.set_postfix_str(losses)
