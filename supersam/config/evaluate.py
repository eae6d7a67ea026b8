"""What an evaluation is: which subnet of which run, on which images, with which prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, PositiveInt

from supersam.config.sections import Section


class EvaluateRun(Section):
    """Metrics of one subnet on held-out images."""

    run: Path
    """Folder of a training run."""
    subnet: str = "largest"
    """largest, smallest, medium, a JSON file of a subnet, or a subnet of a search's front:
    SEARCH#best (highest mIoU), SEARCH#knee, SEARCH#cheapest (fewest FLOPs), SEARCH#0 (its first),
    where SEARCH is the search's folder or its pareto.json."""
    data: tuple[Path, ...] = ()
    """Folders of held-out shards; empty takes the run's validation sets."""
    checkpoint: str = "last"
    """last, best, initial (the weights before training), or a step number."""
    prompt: tuple[Literal["point", "box"], ...] = ("point", "box")
    """Prompts to evaluate with: point, box."""
    boundary: bool = False
    """Also measure boundary IoU (slower)."""
    images: PositiveInt | None = None
    """Look at this many images, spread evenly over the set; null looks at all."""
    workers: int | None = Field(None, ge=0, le=64)
    """Processes that decode images ahead; 0 decodes in the main process, null takes one fewer than
    there are cores, at most 4."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = Field(False, alias="json")
    """Print the result as one JSON object on stdout."""
