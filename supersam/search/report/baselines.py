"""What the prompts of a search give away on its images, by baselines that never look at one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from supersam.config import UserError
from supersam.config.evaluate import PromptWord
from supersam.data.dataset import EvalDataset
from supersam.data.shards import ShardReader
from supersam.evaluation import Priors, box_fill_iou, learn_priors
from supersam.evaluation.table import PRIOR_WORDS
from supersam.runs.provenance import training_folders
from supersam.runs.weights import read_run
from supersam.search.image_set import selection_set
from supersam.search.images import chosen_images, some_objects
from supersam.search.report.content import Report
from supersam.search.report.parts import Text

_MAX_IMAGES = 200
"""Images looked at: the first of a fixed random order."""


def describe_baselines(report: Report) -> list[Text]:
    """Say what each prompt scores without the image; warn where no subnet scores more.

    Empty where the shards of the training or of the search are gone.
    """
    search = report.search
    try:
        train_run = read_run(search.run)
        priors = learn_priors(training_folders(train_run))
        images = selection_set(search, train_run)
        places = images.places().tolist()
        chosen = [places[i] for i in chosen_images(len(places), search.protocol.images)]
        if priors is None:
            return []
        found = {
            prompt: _score(report, priors, images.folders, prompt, chosen[:_MAX_IMAGES])
            for prompt in search.protocol.prompts
        }
    except UserError:
        return []
    parts = [f"{PRIOR_WORDS[prompt]} {score:.4f}" for prompt, (score, _) in found.items()]
    if "box" in found:
        parts.append(f"the filled box {found['box'][1]:.4f}")
    words = [Text(f"Without looking at the image: {', '.join(parts)}.", "note")]
    prior = float(np.mean([score for score, _ in found.values()]))
    if max(trial.metrics["miou"] for trial in report.front) < prior:
        words.append(
            Text(
                f"No subnet of the front scores more than {prior:.4f}, which the prompts alone "
                "give away: the search compares models that have not learned the task.",
                "warning",
            )
        )
    return words


def _score(
    report: Report, priors: Priors, folders: Sequence[Path], prompt: PromptWord, places: list[int]
) -> tuple[float, float]:
    """The mean IoU of a prompt's baseline and of filling the box, over the objects of a search."""
    readers = [ShardReader(folder) for folder in folders]
    dataset = EvalDataset(readers, side=report.space.shape.image_size, prompt=prompt)
    ious, fills = [np.zeros(0)], [np.zeros(0)]
    for place in places:
        image = some_objects(dataset[place], report.search.protocol.objects_per_image)
        ious.append(priors.ious(image))
        fills += [
            box_fill_iou(image.masks[k : k + 1]).double().numpy() for k in range(len(image.masks))
        ]
    return float(np.concatenate(ious).mean()), float(np.concatenate(fills).mean())
