"""The sections of a run's configuration: plain frozen values with bounds. No torch, no files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PromptKind = Literal["point", "box", "either"]
SourceKind = Literal["sa1b", "coco", "labelmap", "tiff", "synthetic"]
BadRecord = Literal["skip", "error"]


class Section(BaseModel):
    """A frozen part of a configuration; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )


class SyntheticConfig(Section):
    """Generated images: textured shapes that hide each other, so the task is not trivial."""

    images: PositiveInt = 256
    """Number of images."""
    size_px: int = Field(256, ge=16)
    """Side of each square image, pixels."""
    max_objects: PositiveInt = 12
    """Most shapes drawn in one image; hidden ones are left out."""
    seed: int = Field(0, ge=0)
    """The same seed draws the same images on every machine."""


class SourceConfig(Section):
    """Images and masks on disk, in the layout of a public data set."""

    kind: SourceKind = "sa1b"
    """Layout of the source."""
    root: Path | None = None
    """Folder of the source; unused for synthetic images."""
    split: str = "train"
    """The source's own name of the split, for example train, val2017, training."""
    ignore_id: int | None = None
    """Label maps: the class id that is not an object (besides `background_id`)."""
    background_id: int | None = 0
    """Label maps: the class id of the background; null where every id is a class."""
    instances: Literal["components", "classes"] = "components"
    """Label maps and TIFF: an object is a connected component, or all pixels of a class."""
    include_crowds: bool = False
    """COCO: keep `iscrowd=1` regions as objects."""
    min_area_px: PositiveInt = 16
    """Objects with fewer pixels are left out."""
    tile_px: int | None = Field(None, ge=16)
    """Cut larger images into a grid of tiles of at most this side; null keeps them whole."""
    on_bad: BadRecord = "error"
    """An unreadable or inconsistent image: stop with its name, or skip, count and log it."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """The generator's settings, for kind synthetic."""


class AugmentConfig(Section):
    """Training-time changes of image, masks and prompts together."""

    flip_horizontal: Fraction = 0.5
    """Probability of a left-right flip."""
    flip_vertical: Fraction = 0.0
    """Probability of an upside-down flip."""
    crop_px: tuple[PositiveInt, PositiveInt] | None = None
    """Smallest and largest side of a random square crop, source pixels; null keeps the image."""
    brightness: Fraction = 0.0
    """Largest relative change of brightness and contrast."""

    @model_validator(mode="after")
    def _crop_is_a_range(self) -> AugmentConfig:
        if self.crop_px is not None and self.crop_px[0] > self.crop_px[1]:
            low, high = self.crop_px
            raise ValueError(f"crop_px=({low}, {high}) is empty; put the smaller side first")
        return self


class DataSetConfig(Section):
    """One training set of shards and its share of the mix."""

    path: Path
    """Folder with `manifest.json`, as written by launch/shard.py."""
    weight: float = Field(1.0, gt=0)
    """Relative share of the samples of an epoch; 1 for all means every record once."""


class DataConfig(Section):
    """Which shards are read, and how a record becomes a training sample."""

    train: tuple[DataSetConfig, ...] = ()
    """Training sets, mixed by weight."""
    val: tuple[Path, ...] = ()
    """Held-out sets for the validation during training; nothing is trained on them."""
    synthetic_train: SyntheticConfig | None = None
    """Generate the training set instead of reading `train`."""
    synthetic_val: SyntheticConfig | None = None
    """Generate the validation set instead of reading `val`."""
    workers: int = Field(1, ge=0)
    """Loader processes of each rank; 0 decodes in the training process."""
    prompts_per_image: PositiveInt = 8
    """Objects, and so prompts, drawn from each image."""
    prompt: PromptKind = "either"
    """Prompt of each object: a point, a box, or one of them at random."""
    box_jitter: Fraction = 0.1
    """Standard deviation of each box side's shift, as a share of the box's size."""
    augment: AugmentConfig = AugmentConfig()
    """Training-time augmentation."""
    max_bad_fraction: Fraction = 0.01
    """Damaged records are replaced and counted; a run stops above this share."""
    block_records: PositiveInt = 32
    """Records read as one sequential piece; the unit of the global shuffle."""
    window_blocks: PositiveInt = 4
    """Blocks whose records are mixed with each other inside a lane."""
