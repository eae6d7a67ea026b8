"""What subnets make of the same few held-out images, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from supersam.config import SearchRun
from supersam.config.files import FIGURES, SPACE_FILE
from supersam.data.dataset import EvalDataset
from supersam.data.sample import EvalImage
from supersam.data.shards import ShardReader
from supersam.evaluation import Predictor, SubnetPredictor
from supersam.evaluation.overlay import OBJECTS_SHOWN, draw_overlays, draw_panels
from supersam.runs.folder import validation_folders
from supersam.runs.supernet import load_supernet
from supersam.runs.weights import find_weights, read_run
from supersam.runtime.device import choose_device
from supersam.runtime.figures import save_pixels
from supersam.search.report.parts import Panels, Picture, png_uri
from supersam.space import SubnetSpec, read_space, resolve_shape

_TRIES = 8
"""Images looked at for each one shown: the one of most objects is."""
_CAPTION = (
    "The single mask of each prompt, on the same held-out images for each subnet. Filled is what "
    "the subnet predicts, a colour for each object; the white line is the outline of the "
    "annotation. Below: mean IoU of the objects shown, at the size shown. Images are spread over "
    f"the set, of neighbours the one with most objects; {OBJECTS_SHOWN} objects at most are shown."
)


def draw_masks(
    search: SearchRun,
    step: int,
    subnets: Mapping[str, SubnetSpec],
    *,
    images: int,
    folder: Path,
) -> Panels:
    """A row for each image: prompts, annotation, then each subnet's masks with their IoU.

    step: of the checkpoint. Also writes `figures/masks.png` below `folder`. Raises UserError where
    the run, its checkpoint or the data is gone.
    """
    run = read_run(search.run)
    space = read_space(search.run / SPACE_FILE, resolve_shape(run.model))
    supernet = load_supernet(run, space, find_weights(run, str(step)))
    supernet.to(choose_device(search.device))
    readers = [ShardReader(path) for path in search.data or validation_folders(run)]
    prompt = search.protocol.prompts[0]
    dataset = EvalDataset(readers, side=space.shape.image_size, prompt=prompt)
    predictors: dict[str, Predictor] = {
        name: SubnetPredictor(supernet, spec) for name, spec in subnets.items()
    }
    shown = _choose(dataset, images)
    save_pixels(draw_overlays(shown, predictors), folder / FIGURES / "masks.png")
    panels = [panel for image in shown for panel in draw_panels(image, list(predictors.values()))]
    pictures = [
        Picture(png_uri(panel.pixels), "" if panel.miou is None else f"IoU {panel.miou:.3f}")
        for panel in panels
    ]
    return Panels([f"prompts ({prompt})", "annotation", *subnets], pictures, _CAPTION)


def _choose(dataset: EvalDataset, count: int) -> list[EvalImage]:
    """Images spread over the set; of a few neighbours the one of most objects."""
    chosen = []
    for part in np.array_split(np.arange(len(dataset)), min(count, len(dataset))):
        some = [dataset[int(i)] for i in part[:_TRIES]]
        chosen.append(max(some, key=lambda image: len(image.masks)))
    return chosen
