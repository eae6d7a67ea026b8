"""One rank of a design, from its configuration to its files: launch/design.py."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from supersam.config import DesignRun, LossConfig, ModelConfig, UserError
from supersam.config.files import DESIGN_CACHE, LOGS
from supersam.data.sample import Batch
from supersam.data.shards import ShardReader
from supersam.design import ScoreLoss, scan_sensitivity
from supersam.design.cache import EffectCache, cached_scores
from supersam.design.calibration import load_calibration
from supersam.design.designer import design_space, require_reachable
from supersam.design.files import Evidence, write_design
from supersam.design.scores import embedding_loss
from supersam.design.sensitivity import cache_content
from supersam.model import Prediction, SamSupernet
from supersam.model.losses import subnet_loss
from supersam.runs.supernet import load_model, resized
from supersam.runtime.device import choose_device
from supersam.runtime.distributed import World, barrier, close_world, init_world, share_cores
from supersam.runtime.logging import setup_logging
from supersam.runtime.table import count, duration
from supersam.space import SHAPES, EncoderShape, describe_shape

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Start:
    """The weights that a design starts from, and what is known of them."""

    supernet: SamSupernet
    model: ModelConfig
    """How a training run describes this model."""
    crop_px: tuple[int, int] | None
    """The crops that it was trained on; None where that is not known."""


def design(run: DesignRun) -> None:
    """Design a space as the rank that the environment describes; rank 0 writes the files.

    Raises UserError for what a user can mend.
    """
    device = choose_device(run.device)
    world = init_world(device)
    device = choose_device(run.device, world.local_rank)
    setup_logging(world, run.folder / LOGS / f"design-{world.rank:05d}.log")
    share_cores(run.threads, world)
    try:
        start = load_start(run)
        require_reachable(start.supernet.space.shape, run.limits, run.scan)
        supernet = start.supernet.to(device).eval()
        calibration = _load_calibration(run, start)
        evidence = gather_evidence(run, supernet, calibration, world)
        if world.is_first:
            summary = write_design(run, start.model, supernet, calibration, evidence)
            print(json.dumps(summary) if run.json_ else _in_words(run, summary))
        barrier()
    finally:
        close_world()


def load_start(run: DesignRun) -> Start:
    """Load the weights that `run.checkpoint` names as a supernet, and what is known of them."""
    supernet, trained = load_model(run.checkpoint, image_size=run.image_size)
    if trained is None:
        start = Start(supernet, describe_shape(supernet.space.shape), None)
    else:
        model = resized(trained.model, run.image_size)
        start = Start(supernet, model, trained.data.augment.crop_px)
    found = start.supernet.space.shape
    if run.model is not None and run.model not in SHAPES:
        raise UserError(f"--model {run.model!r} is not one of {', '.join(SHAPES)}; or leave it out")
    if run.model is not None and _shape_named(run.model, run.image_size) != found:
        raise UserError(
            f"checkpoint {run.checkpoint} holds {_words(start.model)}, and --model {run.model} was "
            "asked for; name its file, or leave --model out"
        )
    return start


def _shape_named(name: str, image_size: int | None) -> EncoderShape:
    shape = SHAPES[name]
    return shape if image_size is None else replace(shape, image_size=image_size)


def gather_evidence(
    run: DesignRun, supernet: SamSupernet, calibration: list[Batch], world: World
) -> Evidence:
    """Measure scores and sensitivity, and design the space. A collective."""
    seconds: dict[str, float] = {}

    def timed(name: str, action: Callable[[], Result]) -> Result:
        began = time.perf_counter()
        result = action()
        seconds[name] = time.perf_counter() - began
        logger.info("%s: %.1f s", name, seconds[name])
        return result

    folder = run.folder / DESIGN_CACHE
    content = timed("hash weights and images", lambda: cache_content(supernet, calibration))
    scores = timed(
        "score units",
        lambda: cached_scores(
            folder, content, supernet, calibration, run.importance, world, loss=_loss_of(run)
        ),
    )
    cache = EffectCache(folder / "sensitivity.jsonl", content, is_first=world.is_first)
    before = len(cache)
    sensitivity = timed(
        "scan layers",
        lambda: scan_sensitivity(supernet, calibration, run.scan, world=world, cache=cache),
    )
    space = design_space(supernet.space.shape, scores, sensitivity, run.limits)
    return Evidence(scores, sensitivity, space, seconds, num_measured=len(cache) - before)


def _load_calibration(run: DesignRun, start: Start) -> list[Batch]:
    config = run.calibration
    if config.crop_px is None:
        config = config.model_copy(update={"crop_px": start.crop_px})
    readers = [ShardReader(path) for path in run.data]
    return load_calibration(readers, config, side=start.supernet.space.shape.image_size)


def _loss_of(run: DesignRun) -> ScoreLoss:
    return _task_loss if run.importance.loss == "task" else embedding_loss(run.importance.seed)


def _task_loss(prediction: Prediction, batch: Batch) -> Tensor:
    return subnet_loss(prediction, batch, LossConfig(), teacher=None).total


def _words(model: ModelConfig) -> str:
    sizes = model.model_dump(exclude_none=True, exclude={"attention", "checkpoint"})
    return ", ".join(f"{name} {value}" for name, value in sizes.items())


def _in_words(run: DesignRun, summary: Mapping[str, Any]) -> str:
    subnets = count(summary["num_subnets"], "subnet")
    sizes = f"{summary['smallest_m']:.1f} to {summary['largest_m']:.1f} M parameters"
    layers = zip(summary["removable"], summary["removal"], strict=True)
    removed = ", ".join(f"{layer} ({share:.0%})" for layer, share in layers)
    seconds = ", ".join(f"{name} {duration(s)}" for name, s in summary["seconds"].items())
    return "\n".join(
        [
            f"{run.out}: {subnets} of {sizes}; the smallest is "
            f"{summary['smallest_is_smaller_by']:.0%} smaller",
            f"layers that may go, and how often: {removed or 'none'}",
            f"mIoU of the whole model on the calibration images: {summary['calibration_miou']:.4f}",
            f"reordering its units changes the embedding by {summary['function_change']:.1g}",
            f"it took: {seconds}; {summary['memory_gib']:.1f} GiB of memory",
            f"figures, evidence and reordered weights: {run.folder}",
        ]
    )
