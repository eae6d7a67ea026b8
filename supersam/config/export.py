"""What an export is: which subnet of which run, where to, and what is measured of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field, PositiveInt, model_validator

from supersam.config.evaluate import SubnetOfRun


class ExportRun(SubnetOfRun):
    """One subnet of a trained run as a folder that segment-anything alone can use."""

    out: Path
    """Folder to write: new or empty; where it holds this very export, nothing is done."""
    onnx: bool = False
    """Also write encoder.onnx and decoder.onnx, and compare their masks with PyTorch's."""
    int8: bool = False
    """Also write encoder_int8.onnx, the image encoder in eight bits, and measure what it loses and
    gains; needs --onnx and held-out images."""
    int8_max_loss: float = Field(0.02, ge=0, le=1)
    """Refuse the export where eight bits lose more than this of the mIoU with a point or a box."""
    int8_data: tuple[Path, ...] = ()
    """Folders of shards whose images show the ranges of the activations, and none of which the
    evaluation looks at; empty takes the run's training sets."""
    int8_images: PositiveInt = 32
    """Images of those to look at, spread evenly, cropped as in training."""
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
    json_: Annotated[bool, tyro.conf.arg(name="json")] = Field(False, alias="json")
    """Print the card as one JSON object on stdout."""

    @model_validator(mode="after")
    def _rate_has_steps(self) -> ExportRun:
        if self.finetune_lr is not None and self.finetune_steps == 0:
            raise ValueError(
                f"--finetune-lr {self.finetune_lr:g} needs a fine-tuning; add --finetune-steps N"
            )
        return self

    @model_validator(mode="after")
    def _int8_has_onnx(self) -> ExportRun:
        if self.int8 and not self.onnx:
            raise ValueError("--int8 quantises the encoder's ONNX file; add --onnx")
        if self.int8_data and not self.int8:
            raise ValueError("--int8-data is for eight bits; add --int8")
        return self
