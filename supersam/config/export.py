"""What an export is: which subnet of which run, where to, and what is measured of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, PositiveInt, model_validator

from supersam.config.sections import Section


class ExportRun(Section):
    """One subnet of a trained run as a folder that segment-anything alone can use."""

    run: Path
    """Folder of a training run."""
    subnet: str = "largest"
    """largest, smallest, medium, a JSON file of a subnet, or a subnet of a search's front:
    SEARCH#best (highest mIoU), SEARCH#knee, SEARCH#cheapest (fewest FLOPs), SEARCH#0 (its first),
    where SEARCH is the search's folder or its pareto.json."""
    out: Path
    """Folder to write; absent, empty, or this very export."""
    checkpoint: str = "last"
    """last, best, initial (the weights before training), or a step number."""
    onnx: bool = False
    """Also write encoder.onnx and decoder.onnx, and compare their masks with PyTorch's."""
    finetune_steps: int = Field(0, ge=0)
    """Train the subnet alone for this many steps first, on the run's data."""
    finetune_lr: float | None = Field(None, gt=0)
    """Peak learning rate of the fine-tuning; null takes a tenth of the run's."""
    data: tuple[Path, ...] = ()
    """Folders of held-out shards; empty takes the final set of the search that selected the subnet,
    where it has one, else the run's validation sets."""
    images: PositiveInt | None = 200
    """Evaluate on this many images, spread evenly over the set; null (--images None) takes all."""
    license: str | None = None
    """Licence of the weights, an identifier such as apache-2.0, for the model card."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""
    threads: int = Field(0, ge=0)
    """CPU threads. 0: what OMP_NUM_THREADS or SLURM_CPUS_PER_TASK says, else one for each core."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = Field(False, alias="json")
    """Print the card as one JSON object on stdout."""

    @model_validator(mode="after")
    def _rate_has_steps(self) -> ExportRun:
        if self.finetune_lr is not None and self.finetune_steps == 0:
            raise ValueError(
                f"--finetune-lr {self.finetune_lr:g} is for a fine-tuning; say how long: "
                "--finetune-steps N"
            )
        return self
