"""What an export scores: against the supernet's largest subnet, and in eight bits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from supersam.config.evaluate import PROMPTS
from supersam.data.shards import ShardReader
from supersam.evaluation import (
    Difference,
    EvalResult,
    Predictor,
    SubnetPredictor,
    learn_priors,
)
from supersam.evaluation.evaluator import score_by_side, score_prompts
from supersam.evaluation.result import subtract
from supersam.export.plan import ExportPlan
from supersam.model import SamSupernet
from supersam.runs.provenance import training_folders
from supersam.runtime.table import count

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accuracy:
    """Scores by prompt; each is empty where it was not measured."""

    metrics: dict[str, EvalResult] = field(default_factory=dict)
    """Of the exported model."""
    less_largest: dict[str, Difference] = field(default_factory=dict)
    """The same less the supernet's largest subnet."""
    int8: dict[str, EvalResult] = field(default_factory=dict)
    """Of the exported model with its encoder in eight bits."""
    int8_less_fp32: dict[str, Difference] = field(default_factory=dict)
    """The same less the exported model."""


def measure_accuracy(
    plan: ExportPlan,
    ours: Predictor,
    supernet: SamSupernet,
    readers: list[ShardReader],
    *,
    int8: Predictor | None,
) -> Accuracy:
    """Score the exported model on the same images as what it is compared with.

    The largest subnet is left out where it is the exported one, or where another subnet was trained
    alone.
    """
    if not readers:
        return Accuracy()
    total = sum(reader.num_images for reader in readers)
    looked_at = total if plan.images is None else plan.images
    logger.info(
        "evaluating it on %s of %s; --images N takes another number, --images None all",
        f"{looked_at:,}",
        count(total, "image"),
    )
    others = {} if int8 is None else {"int8": int8}
    alone = plan.run.finetune_steps > 0 or plan.train_run.sandwich.only is not None
    largest = plan.space.largest()
    if plan.spec != largest and not alone:
        others["largest"] = SubnetPredictor(supernet, largest, keep_embedding=True)
    priors = learn_priors(training_folders(plan.train_run))

    def score(some: Sequence[Predictor], side: int) -> dict[str, list[EvalResult]]:
        return score_prompts(
            some, readers, PROMPTS, side=side, limit=plan.images, workers=None, priors=priors
        )

    specs = [largest if name == "largest" else plan.spec for name in ("ours", *others)]
    sides = [plan.space.input_px(spec) for spec in specs]
    scored = score_by_side([ours, *others.values()], sides, score)
    found = [
        {prompt: results[place] for prompt, results in scored.items()}
        for place in range(1 + len(others))
    ]
    return _compared(found[0], dict(zip(others, found[1:], strict=True)))


def _compared(metrics: dict[str, EvalResult], others: dict[str, dict[str, EvalResult]]) -> Accuracy:
    largest, int8 = others.get("largest", {}), others.get("int8", {})
    for prompt, result in metrics.items():
        quantized = f", in eight bits {int8[prompt].miou:.4f}" if int8 else ""
        logger.info("%s: mIoU %.4f%s", prompt, result.miou, quantized)
    return Accuracy(
        metrics=metrics,
        less_largest={prompt: subtract(metrics[prompt], each) for prompt, each in largest.items()},
        int8=int8,
        int8_less_fp32={prompt: subtract(each, metrics[prompt]) for prompt, each in int8.items()},
    )
