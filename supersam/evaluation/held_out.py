"""Score predictors on held-out shards: from folders on disk to results by prompt."""

from __future__ import annotations

from collections.abc import Sequence

from supersam.config.evaluate import PromptWord
from supersam.data.dataset import EvalDataset
from supersam.data.loader import build_eval_loader
from supersam.data.prompts import with_boxes
from supersam.data.shards import ShardReader
from supersam.evaluation.evaluator import Predictor, as_stored, evaluate_all
from supersam.evaluation.priors import Priors
from supersam.evaluation.result import EvalResult
from supersam.runtime.distributed import World
from supersam.runtime.logging import shown


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
) -> dict[str, list[EvalResult]]:
    """Score predictors with each prompt, and show how far that is; each image is read once.

    Returns by prompt the result of each predictor. side: of the model's input, pixels.
    """
    first, *others = prompts
    dataset = EvalDataset(readers, side=side, prompt=first, cut_objects=cut_objects)
    loader = build_eval_loader(dataset, World.single(), limit=limit, workers=workers)
    images = shown(loader, len(loader), what=" and ".join(prompts), unit="image")
    views = [as_stored, *(with_boxes for _ in others)]
    scored = evaluate_all(predictors, images, prompts=views, boundary=boundary, priors=priors)
    return dict(zip(prompts, scored, strict=True))
