"""Subnets to trials: a long-lived evaluator that loads the supernet and the images once."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from supersam.config import SearchRun
from supersam.config.files import SPACE_FILE
from supersam.data.sample import EvalImage
from supersam.evaluation import mask_iou, mean_interval, single_mask_ious
from supersam.evaluation.evaluator import require_finite
from supersam.evaluation.latency import measure_latency, measure_peak_memory
from supersam.model import SamSupernet
from supersam.runs.supernet import load_supernet
from supersam.runs.weights import WeightSource, read_run
from supersam.runtime.device import choose_device, describe_device
from supersam.runtime.distributed import World, default_threads
from supersam.runtime.memory import keep_freed_memory
from supersam.search.costs import is_hopeless, keeps_limits, known_costs
from supersam.search.image_set import ImageSet, selection_set
from supersam.search.images import GridTargets, ImageBatch, Prompts, load_images
from supersam.search.journal import GroupSum, Stage, Status, Trial
from supersam.search.pareto import Costs, cost_row
from supersam.search.prefix import PrefixCache, cache_bytes, encode_each
from supersam.space import SubnetSpec, places_by_resolution, read_space, resolve_shape

logger = logging.getLogger(__name__)
Floats = NDArray[np.float64]

FULL: tuple[Stage, ...] = ("final", "measured")
"""Stages at the original resolution, without early stopping."""
_PROMPTS_AT_A_TIME = 64
"""Prompts decoded in one call: bounds the memory of an image with many objects."""


@dataclass(frozen=True)
class EvalRequest:
    """A subnet to evaluate, and its place in the search."""

    key: str
    spec: SubnetSpec
    stage: Stage
    searcher: str
    batch: int
    index: int


@dataclass(frozen=True)
class Chunk:
    """What an evaluator does at a time; the result does not depend on how jobs are put together."""

    requests: tuple[EvalRequest, ...]
    before_training: bool = False
    """Whether the weights are those before training."""
    seen: tuple[Costs, ...] = ()
    """For each rung (H, K), the costs of earlier batches there."""


@dataclass
class _Running:
    """A job whose images are being looked at."""

    request: EvalRequest
    metrics: dict[str, float]
    ious: list[Floats] = field(default_factory=list)
    """(P, M) for each batch of images: kinds of prompts, objects."""
    groups: list[NDArray[np.int64]] = field(default_factory=list)
    """(M,) the group of each object's image."""
    num_images: int = 0
    rungs: list[tuple[int, float]] = field(default_factory=list)
    status: Status = "complete"

    @property
    def miou(self) -> float:
        """Mean over the objects so far, and over the kinds of prompts."""
        return float(np.concatenate(self.ious, axis=1).mean(0).mean())


class SubnetEvaluator:
    """Evaluates subnets of one supernet on one set of images, on one device."""

    def __init__(
        self,
        search: SearchRun,
        source: WeightSource,
        *,
        images: ImageSet | None = None,
        sharers: int = 1,
    ) -> None:
        """source: the verified weights; sharers: evaluators in the memory of this host or GPU.

        images: those to evaluate on, by default those that the search selects on.
        """
        self._search = search
        self._source = source
        self._run = read_run(search.run)
        self._images = images or selection_set(search, self._run)
        self._space = read_space(search.run / SPACE_FILE, resolve_shape(self._run.model))
        self._device = choose_device(search.device)
        self._bf16 = search.protocol.precision == "bf16"
        self._supernet = self._load(source)
        self._batches = self._load_images(originals=search.protocol.resolution == "original")
        count = sum(len(batch.sizes) for batch in self._batches)
        self.cache_bytes = cache_bytes(
            search, self._space.shape, images=count, device=self._device, sharers=sharers
        )
        """Most memory for outputs of layers, besides model and images."""
        layers = search.population * self._space.shape.depth
        self._caches = [
            PrefixCache(self.cache_bytes * len(batch.sizes) / count, generation_layers=layers)
            for batch in self._batches
        ]

    @torch.no_grad()
    def evaluate(self, chunk: Chunk) -> list[Trial]:
        """The trials of a chunk, in its order. Raises DivergedError where a mask is not finite."""
        started = time.perf_counter()
        before = self._supernet, self._caches
        if chunk.before_training:
            self._supernet, self._caches = self._load(WeightSource(step=0)), []
        try:
            running = [self._begin(request) for request in chunk.requests]
            for stage in sorted({request.stage for request in chunk.requests}):
                self._score([r for r in running if r.request.stage == stage], stage, chunk.seen)
        finally:
            self._supernet, self._caches = before
        seconds = time.perf_counter() - started
        looked_at = max(1, sum(r.num_images for r in running))
        step = 0 if chunk.before_training else self._source.step
        return [self._finish(r, seconds * r.num_images / looked_at, step) for r in running]

    def _load(self, source: WeightSource) -> SamSupernet:
        supernet = load_supernet(self._run, self._space, source)
        return supernet.to(self._device).requires_grad_(False)

    def _load_images(self, *, originals: bool) -> list[ImageBatch]:
        return load_images(
            self._images,
            self._search.protocol,
            side=self._space.shape.image_size,
            device=self._device,
            originals=originals,
        )

    @cached_property
    def _batches_with_originals(self) -> list[ImageBatch]:
        """For the front at the end; the search does without the full masks."""
        at_originals = self._search.protocol.resolution == "original"
        return self._batches if at_originals else self._load_images(originals=True)

    def _begin(self, request: EvalRequest) -> _Running:
        """Costs first: what breaks a measured limit is not evaluated."""
        metrics = known_costs(request.spec, self._space)
        measured = self._search.measured
        if "latency_ms" in measured:
            found = measure_latency(
                self._supernet, request.spec, self._search.latency, bf16=self._bf16
            )
            metrics |= {"latency_ms": found.median_ms, "latency_iqr_ms": found.iqr_ms}
        if "peak_mem_mib" in measured:
            metrics["peak_mem_mib"] = measure_peak_memory(
                self._supernet, request.spec, bf16=self._bf16
            )
        running = _Running(request, metrics)
        if request.stage == "search" and not keeps_limits(metrics, self._search.constraints):
            running.status = "infeasible"
        return running

    def _score(self, running: list[_Running], stage: Stage, seen: tuple[Costs, ...]) -> None:
        """Look at the images, rung by rung; give up what is hopeless."""
        batches = self._batches_with_originals if stage in FULL else self._batches
        rungs = self._search.protocol.rungs if stage == "search" else ()
        ends = rung_ends(rungs, len(batches))
        first = 0
        for rung, end in enumerate([*ends, len(batches)]):
            alive = [r for r in running if r.status == "complete"]
            for place in range(first, end):
                cache = self._caches[place] if batches is self._batches and self._caches else None
                self._score_batch(alive, batches[place], cache)
            first = end
            if rung < len(ends):
                for r in alive:
                    self._judge(r, seen[rung])

    def _judge(self, running: _Running, seen: Costs) -> None:
        miou = running.miou
        running.rungs.append((running.num_images, miou))
        costs = cost_row({**running.metrics, "miou": miou}, self._search.objectives)
        if is_hopeless(costs, seen, keep=self._search.protocol.keep):
            running.status = "stopped"

    def _score_batch(
        self, running: list[_Running], batch: ImageBatch, cache: PrefixCache | None
    ) -> None:
        """Add the IoUs of one batch of images to every subnet still in the race."""
        specs = [r.request.spec for r in running]
        for resolution, places in places_by_resolution(specs).items():
            seen = batch.at(self._space.shape.at(resolution).image_size)
            some = [running[place] for place in places]
            for each, embedding in self._embeddings(seen, [specs[i] for i in places], cache):
                with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
                    ious, groups = score_embedding(self._supernet, embedding, seen)
                some[each].ious.append(ious)
                some[each].groups.append(groups)
                some[each].num_images += len(batch.sizes)

    def _embeddings(
        self, batch: ImageBatch, specs: list[SubnetSpec], cache: PrefixCache | None
    ) -> Iterator[tuple[int, Tensor]]:
        pixels = self._supernet.normalize(batch.images, batch.sizes)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            yield from encode_each(self._supernet.image_encoder, pixels, specs, cache)

    def _finish(self, running: _Running, seconds: float, step: int) -> Trial:
        request, metrics = running.request, dict(running.metrics)
        num_objects = 0
        by_group: tuple[GroupSum, ...] = ()
        if running.status != "infeasible":
            ious, groups = np.concatenate(running.ious, axis=1), np.concatenate(running.groups)
            metrics |= _summary(ious, groups, self._search.protocol.prompts)
            num_objects = len(groups)
            if request.stage == "measured":
                by_group = _sums(ious.mean(0), groups)
        original = request.stage in FULL
        return Trial(
            **{name: getattr(request, name) for name in ("key", "spec", "stage", "searcher")},
            status=running.status,
            metrics=metrics,
            num_images=running.num_images,
            num_objects=num_objects,
            seconds=seconds,
            batch=request.batch,
            index=request.index,
            step=step,
            host=socket.gethostname(),
            resolution="original" if original else self._search.protocol.resolution,
            rungs=tuple(running.rungs),
            device=describe_device(self._device),
            by_group=by_group,
        )


def prepare_process(search: SearchRun, evaluators_here: int) -> None:
    """Set this process up as one of several evaluators of its host."""
    torch.set_num_threads(search.threads or evaluator_threads(os.environ, evaluators_here))
    keep_freed_memory()


def evaluator_threads(environment: Mapping[str, str], evaluators_here: int) -> int:
    """Threads of one of several evaluators of this host, by the rule of `default_threads`."""
    # Slurm starts one task on each host, which the evaluators share.
    shared = {"LOCAL_WORLD_SIZE": str(evaluators_here), "SLURM_NTASKS": ""}
    cores = len(os.sched_getaffinity(0))
    return default_threads(World.single(), {**environment, **shared}, cores=cores)


def rung_ends(rungs: Sequence[float], batches: int) -> list[int]:
    """After how many batches a hopeless subnet is given up: some, never all."""
    ends = {max(1, round(share * batches)) for share in rungs}
    return sorted(end for end in ends if end < batches)


def _summary(ious: Floats, groups: NDArray[np.int64], prompts: Sequence[str]) -> dict[str, float]:
    """Mean IoU over objects and prompts, with its interval, and for each prompt alone."""
    of_objects = ious.mean(0)
    found = {"miou": float(of_objects.mean())}
    if len(prompts) > 1:
        rows = zip(prompts, ious, strict=True)
        found |= {f"miou_{name}": float(row.mean()) for name, row in rows}
    interval = mean_interval(of_objects, groups)
    if interval is not None:
        found |= {"miou_lo": interval[0], "miou_hi": interval[1]}
    return found


def _sums(values: Floats, groups: NDArray[np.int64]) -> tuple[GroupSum, ...]:
    names, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
    totals = np.bincount(place, weights=values)
    rows = zip(names, counts, totals, strict=True)
    return tuple((int(name), int(count), float(total)) for name, count, total in rows)


def score_embedding(
    supernet: SamSupernet, embedding: Tensor, batch: ImageBatch
) -> tuple[Floats, NDArray[np.int64]]:
    """IoU of each object's single mask for each kind of prompt, (P, M), and its group, (M,)."""
    if isinstance(batch.targets, GridTargets):
        return _score_logits(supernet, embedding, batch, batch.targets)
    return _score_originals(supernet, embedding, batch, batch.targets)


def _score_logits(
    supernet: SamSupernet, embedding: Tensor, batch: ImageBatch, targets: GridTargets
) -> tuple[Floats, NDArray[np.int64]]:
    """On the grid of the logits."""
    valid = targets.valid.cpu()
    ious = []
    for prompts in batch.prompts:
        masks = supernet.decode_single(embedding, prompts.points, prompts.labels)
        masks = _on_grid(masks, targets.masks.shape[-1])
        for of_image, sample_id in zip(masks, batch.sample_ids.tolist(), strict=True):
            require_finite(of_image, sample_id=sample_id)
        found = mask_iou((masks > 0) & targets.inside, targets.masks)
        ious.append(found.cpu()[valid].double().numpy())
    groups = batch.groups[:, None].expand(valid.shape)[valid]
    return np.stack(ious), groups.numpy()


def _on_grid(logits: Tensor, cells: int) -> Tensor:
    """Scale logits to a finer grid, on which subnets of all resolutions are compared."""
    if logits.shape[-1] == cells:
        return logits
    return F.interpolate(logits, (cells, cells), mode="bilinear", align_corners=False)


def _score_originals(
    supernet: SamSupernet, embedding: Tensor, batch: ImageBatch, images: Sequence[EvalImage]
) -> tuple[Floats, NDArray[np.int64]]:
    """At the original resolution."""
    counts = [len(image.masks) for image in images]
    ious = []
    for prompts in batch.prompts:
        found = [
            single_mask_ious(_decode_some(supernet, embedding[row], prompts, row, count), image)
            for row, (image, count) in enumerate(zip(images, counts, strict=True))
        ]
        ious.append(torch.cat(found).double().numpy())
    return np.stack(ious), np.repeat(batch.groups.numpy(), counts)


def _decode_some(
    supernet: SamSupernet, embedding: Tensor, prompts: Prompts, row: int, count: int
) -> Tensor:
    """Mask logits of one image's first `count` prompts, (count, s, s), a few at a time."""
    some = prompts.points[row, :count], prompts.labels[row, :count]
    parts = zip(*(torch.split(x, _PROMPTS_AT_A_TIME) for x in some), strict=True)
    masks = [supernet.decode_single(embedding[None], p[None], k[None])[0] for p, k in parts]
    return torch.cat(masks)


def protocol_of(
    search: SearchRun, *, weights: str, data: str, final: bool = False
) -> Mapping[str, Any]:
    """Everything besides the subnet that a trial's numbers depend on; see `trial_key`."""
    protocol = search.protocol.model_dump(mode="json")
    protocol["prompt"] = search.protocol.prompt or "both"
    if final and search.protocol.resolution != "original":
        protocol |= {"resolution": "original", "rungs": []}
    measured = {"latency": search.latency.model_dump(mode="json")} if search.measured else {}
    return {"weights": weights, "data": data, **protocol, **measured}
