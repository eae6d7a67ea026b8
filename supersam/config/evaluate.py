"""What an evaluation is: which subnet of which run, on which images, with which prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, PositiveInt

from supersam.config.sections import Section

PromptWord = Literal["point", "box"]
PROMPTS: tuple[PromptWord, ...] = ("point", "box")
"""Prompts of an evaluation, the headline first: a box gives most of the answer away."""


class SubnetOfRun(Section):
    """A subnet of a trained run, and what computes with it."""

    run: Path
    """Folder of a training run."""
    subnet: str = "largest"
    """largest, smallest, medium, a JSON file of a subnet, or a subnet of a search's front:
    SEARCH#best (highest mIoU), SEARCH#knee, SEARCH#cheapest (fewest FLOPs), SEARCH#0 (its first),
    where SEARCH is the search's folder or its pareto.json."""
    checkpoint: str = "last"
    """last, best, initial (the weights before training), or a step number."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""
    threads: int = Field(0, ge=0)
    """CPU threads. 0: what OMP_NUM_THREADS or SLURM_CPUS_PER_TASK says, else one for each core."""


class EvaluateRun(SubnetOfRun):
    """Metrics of one subnet on held-out images."""

    data: tuple[Path, ...] = ()
    """Folders of held-out shards; empty takes the run's validation sets."""
    prompt: tuple[Literal["point", "box", "both"], ...] = ("point", "box")
    """Prompts to evaluate with: point, box, or both."""
    against: str | None = None
    """Another subnet, named as with --subnet, or pretrained (the largest before training): also
    print the difference to it, object by object."""
    clicks: int = Field(0, ge=0, le=20)
    """Also correct each object's mask by so many simulated clicks: mIoU after 1, 3 and 5 of them
    and after all, and the number of clicks to an IoU of 0.8."""
    cut_objects: bool = False
    """Also score objects that are cut by the frame of a tile."""
    boundary: bool = False
    """Also measure boundary IoU (slower)."""
    images: PositiveInt | None = None
    """Look at this many images, spread evenly over the set; null looks at all."""
    workers: int | None = Field(None, ge=0, le=64)
    """Processes that decode images ahead; 0 decodes in the main process, null takes one fewer than
    there are cores, at most 4."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = Field(False, alias="json")
    """Print the result as one JSON object on stdout."""

    @property
    def prompts(self) -> tuple[PromptWord, ...]:
        """The prompts to evaluate with, the headline first, each once."""
        both = "both" in self.prompt
        return tuple(name for name in PROMPTS if both or name in self.prompt)
