"""Score a predictor on held-out images: every object counts once, none is padded or lost.

Letters: S input side, s mask-logit side, M objects of an image, H and W its original pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from supersam.config import UserError
from supersam.config.evaluate import PromptWord
from supersam.data.dataset import EvalDataset
from supersam.data.loader import build_eval_loader
from supersam.data.prompts import with_boxes
from supersam.data.sample import EvalImage
from supersam.data.shards import ShardReader
from supersam.evaluation.metrics import (
    boundary_band_px,
    boundary_iou,
    box_fill_iou,
    mask_area,
    mask_iou,
)
from supersam.evaluation.priors import Priors
from supersam.evaluation.result import EvalResult, Floats, ObjectTable, summarize
from supersam.evaluation.upscale import MaskUpscaler
from supersam.runtime.distributed import World
from supersam.runtime.logging import shown

T = TypeVar("T")

MASK_TOKENS = 4
"""Token 0 is the single mask, 1 to 3 are the multimask outputs, as in segment-anything."""
_FRAME_PIXELS_ON_GPU = 2**26
"""Upscaled pixels held at a time on a GPU: 512 MiB of float64."""


Prompted = Callable[[EvalImage], EvalImage]
"""From an image to the same image with its prompts."""


def as_stored(image: EvalImage) -> EvalImage:
    """Return the image with the prompts that it has."""
    return image


class DivergedError(UserError, FloatingPointError):
    """The model predicted NaN or infinity."""


class Predictor(Protocol):
    """What can be evaluated: a supernet with a subnet active, an exported subnet, SAM itself."""

    def predict(
        self, images: Tensor, sizes: Tensor, points: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mask logits and IoU estimates of prompted images, on whatever device it computes.

        Args:
            images: (B, 3, S, S) uint8 RGB, as in `Batch.images`, on any device.
            sizes: (B, 2) int64, (height, width) inside the padded square.
            points: (B, N, 2, 2) float32, two prompt points each, pixels (x, y) of the square.
            labels: (B, N, 2) int64, LABEL_* of each prompt point.

        Returns:
            (B, N, 4, s, s) float32 mask logits and (B, N, 4) float32 IoU estimates, by mask token.
        """
        ...


def gather_from_all_ranks(found: T) -> list[T]:
    """Return what every rank found, on every rank; alone, this process's where no group exists."""
    if not dist.is_available() or not dist.is_initialized():
        return [found]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, found)
    return gathered


@torch.no_grad()
def evaluate(
    predictor: Predictor,
    images: Iterable[EvalImage],
    *,
    boundary: bool = True,
    prompts_per_call: int = 64,
    priors: Priors | None = None,
) -> EvalResult:
    """Score a predictor on this rank's share of the images; every rank gets the whole result.

    The result does not depend on the world size or on who evaluates which image.

    Args:
        predictor: moves its inputs to its own device; scores are computed where its logits are.
        images: this rank's share. Shares must not overlap.
        boundary: also compute boundary IoU.
        prompts_per_call: prompts of one `predict` call. An image with more objects is predicted,
            and so encoded, again for each call.
        priors: also score these baselines that never look at the image.
    """
    ((result,),) = evaluate_all(
        [predictor], images, boundary=boundary, prompts_per_call=prompts_per_call, priors=priors
    )
    return result


@torch.no_grad()
def evaluate_all(
    predictors: Sequence[Predictor],
    images: Iterable[EvalImage],
    *,
    prompts: Sequence[Prompted] = (as_stored,),
    boundary: bool = True,
    prompts_per_call: int = 64,
    priors: Priors | None = None,
) -> list[list[EvalResult]]:
    """Score several predictors with several prompts on images that are read once; see `evaluate`.

    Args:
        predictors: one or more.
        images: this rank's share.
        prompts: give each image its prompts: `as_stored` keeps its own, `with_boxes` takes boxes.
        boundary: also compute boundary IoU.
        prompts_per_call: prompts of one `predict` call.
        priors: also score these baselines that never look at the image.

    Returns for each of `prompts` the result of each predictor.
    """
    if prompts_per_call < 1:
        raise ValueError(f"prompts_per_call={prompts_per_call}; at least 1 prompt is needed")
    tables: list[list[list[ObjectTable]]] = [[[] for _ in predictors] for _ in prompts]
    num_cut = 0
    for image in images:
        num_cut += image.num_cut
        if len(image.masks) == 0:
            continue
        views = [prompted(image) for prompted in prompts]
        known = [None if priors is None else priors.ious(view) for view in views]
        for place, predictor in enumerate(
            predictors
        ):  # an image's views in turn: it is encoded once
            for scored, view, prior in zip(tables, views, known, strict=True):
                table = score_image(
                    predictor, view, boundary=boundary, prompts_per_call=prompts_per_call
                )
                scored[place].append(replace(table, prior_iou=prior))
    cut = sum(gather_from_all_ranks(num_cut))
    return [
        [summarize(_merge(gather_from_all_ranks(each)), num_cut=cut) for each in scored]
        for scored in tables
    ]


def _merge(tables_of_ranks: list[list[ObjectTable]]) -> ObjectTable:
    """One table, sorted by image. Each image's table comes whole from one rank."""
    tables = sorted(chain.from_iterable(tables_of_ranks), key=lambda table: table.sample_id[0])
    if len(tables) == 0:
        raise UserError(
            "no image has an annotated object (those that a tile's frame cuts do not count); "
            "evaluate on a split that holds objects"
        )
    for first, second in pairwise(tables):
        if first.sample_id[0] == second.sample_id[0]:
            raise ValueError(
                f"image {first.sample_id[0]} was evaluated twice; "
                "give every rank its own images, without padding shares to equal length"
            )
    return ObjectTable.concatenate(tables)


def score_image(
    predictor: Predictor, image: EvalImage, *, boundary: bool, prompts_per_call: int
) -> ObjectTable:
    """All objects of an image, (M,) rows. It has at least one.

    The rows have their memory before the first object: small arrays that stay, allocated between
    the large ones that go, would keep the heap from shrinking.
    """
    sizes = torch.tensor([image.size])
    table, row = ObjectTable.allocate(len(image.masks), boundary=boundary), 0
    for some in slices(len(image.masks), prompts_per_call):
        points, labels = image.points[some], image.labels[some]
        logits, estimates = predictor.predict(image.image[None], sizes, points[None], labels[None])
        _check_prediction(logits, estimates, num_prompts=len(points), sample_id=image.sample_id)
        for part in _score_objects(
            image, logits[0], estimates[0], first=some.start, boundary=boundary
        ):
            row = table.fill(row, part)
    return table


def _check_prediction(
    logits: Tensor, estimates: Tensor, *, num_prompts: int, sample_id: int
) -> None:
    expected = (1, num_prompts, MASK_TOKENS)
    if logits.ndim != 5 or logits.shape[:3] != expected or estimates.shape != expected:
        raise ValueError(
            f"predict returned logits {tuple(logits.shape)} and estimates {tuple(estimates.shape)};"
            f" {num_prompts} prompts of one image need {(*expected, 's', 's')} and {expected}:"
            " the single mask, then the three multimask outputs"
        )
    require_finite(logits, estimates, sample_id=sample_id)


def require_finite(*predicted: Tensor, sample_id: int) -> None:
    """Raise DivergedError unless all that was predicted for an image is finite."""
    for values in predicted:
        # One pass: NaN and infinity reach the extremes. `isfinite` takes a CPU ten times longer.
        if not torch.stack(values.aminmax()).isfinite().all():
            raise DivergedError(
                f"predicted NaN or infinity for image {sample_id}; the weights have diverged or "
                "overflowed: take an earlier checkpoint or compute in float32"
            )


def _score_objects(
    image: EvalImage, logits: Tensor, estimates: Tensor, *, first: int, boundary: bool
) -> Iterator[ObjectTable]:
    """Score objects from the `first` on, a few at a time.

    logits: (n, 4, s, s). estimates: (n, 4).
    """
    upscaler = MaskUpscaler.for_image(
        logits, side=image.image.shape[-1], size=image.size, original_size=image.original_size
    )
    band_px = boundary_band_px(*image.original_size) if boundary else None
    for some in slices(len(logits), objects_at_a_time(logits.device, image.original_size)):
        objects = slice(first + some.start, min(first + some.stop, len(image.masks)))
        window = upscaler.window(logits[some], image.masks.frame(objects))
        # outside the window all masks are empty, so every score is that of the whole frame
        yield _score_masks(
            upscaler.masks(logits[some], window),
            image.masks.draw(objects, window).to(logits.device),
            estimates=estimates[some],
            image=image,
            band_px=band_px,
        )


def slices(length: int, step: int) -> Iterator[slice]:
    """Neighbouring pieces of `length` elements, `step` in each but the last."""
    return (slice(start, start + step) for start in range(0, length, step))


def objects_at_a_time(device: torch.device, original_size: tuple[int, int]) -> int:
    """A CPU is fastest with each object in its own window, a GPU with many in a shared one."""
    if device.type == "cpu":
        return 1
    return max(1, _FRAME_PIXELS_ON_GPU // (MASK_TOKENS * original_size[0] * original_size[1]))


def _score_masks(
    pred: Tensor, target: Tensor, *, estimates: Tensor, image: EvalImage, band_px: int | None
) -> ObjectTable:
    """The rows of n objects, with the boundary IoU unless `band_px` is None.

    pred: (n, 4, h, w) bool. target: (n, h, w) bool. estimates: (n, 4).
    """
    iou = mask_iou(pred, target[:, None])
    preferred = estimates[:, 1:].argmax(1, keepdim=True)
    return ObjectTable(
        sample_id=np.full(len(target), image.sample_id),
        group=np.full(len(target), image.group),
        area=mask_area(target).long().cpu().numpy(),
        iou_single=_column(iou[:, 0]),
        iou_predicted_best=_column(iou[:, 1:].gather(1, preferred)[:, 0]),
        iou_oracle=_column(iou[:, 1:].amax(1)),
        boundary_iou=(
            None if band_px is None else _column(boundary_iou(pred[:, 0], target, band_px=band_px))
        ),
        predicted_iou=_column(estimates[:, 0]),
        box_fill_iou=_column(box_fill_iou(target)),
    )


def _column(values: Tensor) -> Floats:
    return values.double().cpu().numpy()


def single_mask_ious(logits: Tensor, image: EvalImage) -> Tensor:
    """Score each object of an image at the original resolution: (M,) float32, on the CPU.

    Equals `iou_single` of `score_image` at a fifth of the work: only one mask of four is brought to
    the original size, and only its pixels above 0 are looked at. A search ranks subnets by it.

    Args:
        logits: (M, s, s) logits of the single mask of each object, on any device.
        image: the image, with M objects.

    Raises FloatingPointError where the logits are not finite.
    """
    require_finite(logits, sample_id=image.sample_id)
    upscaler = MaskUpscaler.for_image(
        logits, side=image.image.shape[-1], size=image.size, original_size=image.original_size
    )
    ious = torch.empty(len(logits), device=logits.device)  # all at once, as in `score_image`
    for some in slices(len(logits), objects_at_a_time(logits.device, image.original_size)):
        window = upscaler.window(logits[some, None])
        target = image.masks.draw(some, window).to(logits.device)
        area = image.masks.areas(some).to(logits.device)
        pred = upscaler.masks(logits[some], window)
        overlap = mask_area(pred & target)
        union = mask_area(pred) + area - overlap
        ious[some] = torch.where(union == 0, 1.0, overlap / union)
    return ious.cpu()


def score_prompts(
    predictors: Sequence[Predictor],
    readers: Sequence[ShardReader],
    prompts: Sequence[PromptWord],
    *,
    side: int,
    limit: int | None,
    workers: int | None,
    priors: Priors | None,
    cut_objects: bool = False,
    boundary: bool = False,
    watch: Callable[[Iterable[EvalImage]], Iterable[EvalImage]] = iter,
) -> dict[str, list[EvalResult]]:
    """Score predictors with each prompt, and show how far that is; each image is read once.

    Returns by prompt the result of each predictor. side: of the model's input, pixels. watch: sees
    each image before it is scored.
    """
    first, *others = prompts
    dataset = EvalDataset(readers, side=side, prompt=first, cut_objects=cut_objects)
    loader = build_eval_loader(dataset, World.single(), limit=limit, workers=workers)
    images = shown(loader, len(loader), what=" and ".join(prompts), unit="image")
    views = [as_stored, *(with_boxes for _ in others)]
    scored = evaluate_all(
        predictors, watch(images), prompts=views, boundary=boundary, priors=priors
    )
    return dict(zip(prompts, scored, strict=True))


def score_by_side(
    predictors: Sequence[Predictor],
    sides: Sequence[int],
    score: Callable[[Sequence[Predictor], int], dict[str, list[EvalResult]]],
) -> dict[str, list[EvalResult]]:
    """Score predictors of several input sizes, each on images that are loaded at its own.

    Args:
        predictors: one or more.
        sides: of the input of each of them, pixels.
        score: `score_prompts` of some predictors with that `side`.

    Returns as `score_prompts`.
    """
    found: dict[str, dict[int, EvalResult]] = {}
    for side in dict.fromkeys(sides):
        places = [place for place, each in enumerate(sides) if each == side]
        for prompt, results in score([predictors[place] for place in places], side).items():
            found.setdefault(prompt, {}).update(zip(places, results, strict=True))
    return {
        prompt: [results[place] for place in range(len(predictors))]
        for prompt, results in found.items()
    }
