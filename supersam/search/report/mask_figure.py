"""What subnets make of the same few held-out images, side by side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from supersam.config import SearchRun
from supersam.config.files import SPACE_FILE
from supersam.data.dataset import EvalDataset
from supersam.data.sample import EvalImage
from supersam.data.shards import ShardReader
from supersam.evaluation import Predictor, SubnetPredictor
from supersam.evaluation.overlay import draw_overlays
from supersam.runs.folder import validation_folders
from supersam.runs.supernet import load_supernet
from supersam.runs.weights import find_weights, read_run
from supersam.runtime.device import choose_device
from supersam.space import SubnetSpec, read_space, resolve_shape

COLUMNS = ("prompts", "annotation")
"""What a row begins with; a column for each subnet follows."""
_TRIES = 8  # images looked at for each one shown: the one of most objects is


def draw_masks(
    search: SearchRun, step: int, subnets: Mapping[str, SubnetSpec], *, images: int
) -> NDArray[np.uint8]:
    """A row an image: prompts, annotation, then each subnet's masks. (H, W, 3) uint8.

    step: of the checkpoint. Raises UserError where the run, its checkpoint or the data is gone.
    """
    run = read_run(search.run)
    space = read_space(search.run / SPACE_FILE, resolve_shape(run.model))
    supernet = load_supernet(run, space, find_weights(run, str(step)))
    supernet.to(choose_device(search.device))
    readers = [ShardReader(folder) for folder in search.data or validation_folders(run)]
    dataset = EvalDataset(readers, side=space.shape.image_size, prompt=search.protocol.prompts[0])
    predictors: dict[str, Predictor] = {
        name: SubnetPredictor(supernet, spec) for name, spec in subnets.items()
    }
    return draw_overlays(_choose(dataset, images), predictors)


def _choose(dataset: EvalDataset, count: int) -> list[EvalImage]:
    """Images spread over the set; of a few neighbours the one of most objects."""
    chosen = []
    for part in np.array_split(np.arange(len(dataset)), min(count, len(dataset))):
        some = [dataset[int(i)] for i in part[:_TRIES]]
        chosen.append(max(some, key=lambda image: len(image.masks)))
    return chosen
