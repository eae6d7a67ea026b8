"""Samples to batches of one rank: the training loader, endless from any step, and the evaluation's.

On a GPU `DeviceBatches` copies the next batch while the current one is in use.

Worker processes use one thread each: `DataLoader` sees to it.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from supersam.config import UserError
from supersam.data.dataset import (
    EvalDataset,
    Row,
    ShardDataset,
    TooManyBadRecordsError,
)
from supersam.data.partition import SampleKey, SampleOrder
from supersam.data.sample import Batch, EvalImage
from supersam.runtime.distributed import World
from supersam.runtime.process import begin_worker, interrupts_blocked
from supersam.runtime.scratch import shorten_temporary_names

StartMethod = Literal["fork", "spawn", "forkserver"]

SHARED_MEMORY = Path("/dev/shm")
_PREFETCHED = 2  # batches that each worker has ready: DataLoader's own number
_LARGER = (
    "make it larger (docker run --shm-size, mount -o remount,size=), or take fewer: --data.workers "
    "0 needs none"
)
MAX_EVAL_WORKERS = 4
"""Worker processes of an evaluation where their number is not set."""
IMAGES_PER_EVAL_WORKER = 16
"""Fewest images for each worker where their number is not set: its start takes as long."""


class TrainLoader:
    """Endless micro-batches of one rank, `DataLoader` underneath. Counts damaged records.

    An iterator starts at the first step asked for; take one for the whole run. The workers end
    with it.
    """

    def __init__(self, loader: DataLoader[Row], *, max_bad_fraction: float, epoch: int):
        """`epoch` is the number of samples of this rank in an epoch."""
        self._loader = loader
        self._max_bad_fraction = max_bad_fraction
        self._epoch = epoch
        self.num_samples = 0
        self.num_bad = 0

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            self.num_samples += len(batch.sample_ids)
            self.num_bad += batch.num_bad
            self._check()
            yield batch

    def _check(self) -> None:
        # Of the epochs begun: one damaged record among the first ten is not yet a tenth.
        epochs = -(-self.num_samples // self._epoch)
        if self.num_bad > self._max_bad_fraction * epochs * self._epoch:
            raise TooManyBadRecordsError(
                f"{self.num_bad} of {self.num_samples} records read are damaged, and "
                f"--data.max-bad-fraction is {self._max_bad_fraction}; the warnings above name "
                "them: make their shards anew, or raise the fraction"
            )


def _require_shared_memory(batch_bytes: int, workers: int) -> None:
    """Raise UserError where the batches that wait for the trainer do not fit into /dev/shm.

    Without room there, a worker ends by a bus error that says nothing.
    """
    if not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    needed = batch_bytes * workers * _PREFETCHED
    if free < needed:
        raise UserError(
            f"{SHARED_MEMORY} has {free / 2**20:.1f} MiB left, and {workers} loader worker(s) hand "
            f"over up to {needed / 2**20:.1f} MiB of batches there; {_LARGER}"
        )


def _or_told(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches. Raises UserError where a worker finds no room for one in /dev/shm.

    Others may have filled it since the check before the first batch.
    """
    try:
        yield from batches
    except RuntimeError as fault:
        if "shared memory" not in str(fault):  # torch's words, also for a worker's bus error
            raise
        raise UserError(f"{SHARED_MEMORY} has no room for a batch; {_LARGER}") from None


class _Loader(DataLoader[Any]):
    """A DataLoader whose workers never see Ctrl-C, not even while they start."""

    def __iter__(self) -> Any:
        with interrupts_blocked():  # workers begin with the mask of their parent
            batches = super().__iter__()
        return _or_told(batches)


class _StepSampler:
    """The keys of one rank's micro-batches, step after step without end.

    With each come the keys of the micro-batch that the same worker is asked for next.
    """

    def __init__(
        self,
        order: SampleOrder,
        world: World,
        *,
        batch_size: int,
        start_step: int,
        ahead: int,
    ):
        """A worker's next micro-batch comes `ahead` after its last."""
        self._order = order
        self._world = world
        self._batch_size = batch_size
        self._start_step = start_step
        self._ahead = ahead

    def __iter__(self) -> Iterator[list[list[SampleKey]]]:
        batches = self._micro_batches()
        waiting = deque(itertools.islice(batches, self._ahead))
        for later in batches:
            waiting.append(later)
            yield [waiting.popleft(), later]

    def _micro_batches(self) -> Iterator[list[SampleKey]]:
        for step in itertools.count(self._start_step):
            keys = self._order.rank_batch(step, self._world.rank, self._world.world_size)
            for first in range(0, len(keys), self._batch_size):
                yield [SampleKey(*key) for key in keys[first : first + self._batch_size].tolist()]


def build_loader(
    dataset: ShardDataset,
    order: SampleOrder,
    world: World,
    *,
    batch_size: int,
    start_step: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
    start_method: StartMethod | None = None,
) -> TrainLoader:
    """Load this rank's micro-batches from an optimizer step on, through the epochs without end.

    Args:
        dataset: the samples.
        order: which of them each global batch holds.
        world: which rank's share is wanted.
        batch_size: samples of a micro-batch; G / (R batch_size) of them make a step.
        start_step: the first optimizer step; samples consumed / G after a restart.
        workers: processes that read ahead; 0 reads in this one.
        pin_memory: put batches where copies to a device do not block.
        start_method: how workers start; None takes Python's own.
    """
    share, rest = divmod(order.global_batch, world.world_size)
    if rest != 0 or share % batch_size != 0:
        raise ValueError(
            f"global batch {order.global_batch} is not a multiple of {world.world_size} ranks x "
            f"micro-batch {batch_size}; change one of the three"
        )
    if workers > 0:
        _require_shared_memory(dataset.sample_bytes * batch_size, workers)
        shorten_temporary_names()
    loader = _Loader(
        dataset,
        batch_sampler=_StepSampler(
            order, world, batch_size=batch_size, start_step=start_step, ahead=max(1, workers)
        ),
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=begin_worker,
        pin_memory=pin_memory,
        multiprocessing_context=start_method if workers > 0 else None,
    )
    return TrainLoader(
        loader,
        max_bad_fraction=dataset.config.max_bad_fraction,
        epoch=order.batches_per_epoch * share,
    )


class EvalLoader:
    """Held-out images of one rank, in order. Every iterator starts at the first."""

    def __init__(self, loader: DataLoader[EvalImage | UserError]):
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[EvalImage]:
        """Raises ShardFolderError at an image that is damaged."""
        for image in self._loader:
            if isinstance(image, UserError):
                raise image
            yield image


class _ErrorsReturned(Dataset[EvalImage | UserError]):
    """Returns a user's error instead of raising it: a worker would wrap it into a traceback."""

    def __init__(self, dataset: EvalDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, index: int) -> EvalImage | UserError:
        try:
            return self._dataset[index]
        except UserError as error:
            return error


def build_eval_loader(
    dataset: EvalDataset,
    world: World,
    *,
    limit: int | None = None,
    workers: int | None = 0,
    start_method: StartMethod = "forkserver",
) -> EvalLoader:
    """This rank's images: every R-th from the r-th on, each once over all ranks, none padded.

    Args:
        dataset: the images.
        world: which rank's share is wanted.
        limit: look at that many images, spread evenly over the set; None looks at all.
        workers: processes that decode ahead; 0 decodes in this one, None chooses by the number of
            images and of cores. No more are started than there are images.
        start_method: how workers start.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    chosen = [index * len(dataset) // count for index in range(count)]
    share = chosen[world.rank :: world.world_size]
    workers = _eval_workers(len(share)) if workers is None else min(workers, len(share))
    return EvalLoader(
        _Loader(
            _ErrorsReturned(dataset),
            batch_size=None,
            sampler=share,
            num_workers=workers,
            worker_init_fn=begin_worker,
            multiprocessing_context=start_method if workers > 0 else None,
        )
    )


def _eval_workers(images: int) -> int:
    """One fewer than there are cores, for the model needs one; none where a few images are read."""
    spare = len(os.sched_getaffinity(0)) - 1
    return min(MAX_EVAL_WORKERS, spare, images // IMAGES_PER_EVAL_WORKER)


def collate(rows: list[Row]) -> Batch:
    """Return one batch of several rows."""
    columns = default_collate(rows)
    return Batch(**columns | {"num_bad": int(columns["num_bad"].sum())})


class DeviceBatches:
    """Batches of a loader, on a device. On a GPU one batch is copied ahead, on its own stream."""

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches = batches
        self._device = device
        self._ahead: Batch | None = None
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # no type in torch

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch, self._ahead = self._ahead, None
        if batch is None:
            return next(self._batches).to(self._device)
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            batch.record_stream(current)
        return batch

    def copy_ahead(self) -> None:
        """Fetch the next batch and start its copy: call it while the device is busy.

        On a CPU, which is busy itself, nothing is done.
        """
        if self._stream is None or self._ahead is not None:
            return
        batch = next(self._batches, None)
        with torch.cuda.stream(self._stream):
            self._ahead = None if batch is None else batch.to(self._device)
