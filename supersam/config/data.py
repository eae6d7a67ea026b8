"""Sources, shards and samples: which images a run reads, and what becomes of them. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, PositiveInt, field_validator, model_validator

from supersam.config.sections import Extension, Fraction, Section, or_own

PromptKind = Literal["point", "box", "either"]
SourceKind = Literal["sa1b", "coco", "labelmap", "tiff", "synthetic"]
BadRecord = Literal["skip", "error"]
ExifPolicy = Literal["auto", "stored", "upright"]


class SyntheticConfig(Section):
    """Generated images: textured shapes that hide each other, so the task is not trivial."""

    images: PositiveInt = 256
    """Number of images."""
    size_px: int = Field(256, ge=16)
    """Side of each square image, pixels."""
    max_objects: PositiveInt = 12
    """Most shapes drawn in one image; hidden ones are left out."""
    plain: bool = False
    """Ellipses and blobs of one colour that stand out from an even background, as stained cells do:
    what a model from random weights learns to see first. Textures, lines and rings are left out."""
    seed: int = Field(0, ge=0)
    """The same seed draws the same images on every machine."""


class SourceConfig(Section):
    """Images and masks on disk, in the layout of a public data set."""

    kind: Annotated[SourceKind | Extension, or_own(SourceKind), tyro.conf.arg(name="source")] = (
        "sa1b"
    )
    """Layout of the source, or module:object of a data set of your own: called with the root and
    the split, it returns something with a length whose items are an image and its masks."""
    root: Path | None = None
    """Folder of the source; unused for synthetic images."""
    split: str = "train"
    """The source's own name of the split, for example train, val2017, training."""
    ignore_id: tuple[int, ...] = ()
    """Label maps: class ids that are not objects (besides `background_id`)."""
    background_id: int | None = 0
    """Label maps: the class id of the background; null where every id is a class."""
    instances: Literal["components", "classes"] = "components"
    """Label maps and TIFF: an object is a connected component of an id, or all its pixels."""
    include_crowds: bool = False
    """COCO: keep `iscrowd=1` regions as objects; without it they are counted and left out."""
    exif: ExifPolicy = "auto"
    """Photographs with an EXIF orientation: whether masks were drawn on the stored or the upright
    picture. The annotated size decides where it can; auto then takes stored, and counts them."""
    min_area_px: PositiveInt = 16
    """Objects with fewer pixels are left out."""
    tile_px: int | None = Field(None, ge=16)
    """Cut larger images into a grid of tiles of at most this side; null keeps them whole."""
    on_bad: BadRecord = "error"
    """An unusable image or annotation: stop with its name, or leave it out, count and list it."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """The generator's settings, for kind synthetic."""

    @field_validator("ignore_id", mode="before")
    @classmethod
    def _one_id_or_several(cls, value: object) -> object:
        """Settings of former versions hold one id or null."""
        if value is None:
            return ()
        return (value,) if isinstance(value, int) else value


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
            raise ValueError(
                f"--data.augment.crop-px {low} {high} is empty; put the smaller side first"
            )
        return self


class DataConfig(Section):
    """Which shards are read, and how a record becomes a training sample."""

    source: Literal["shards", "synthetic"] = "shards"
    """Read `train` and `val`, or generate both in the run's folder."""
    train: tuple[Path, ...] = ()
    """Folders of training shards, as written by launch/shard.py."""
    train_weights: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Relative share of each training set; empty takes every record once an epoch."""
    val: tuple[Path, ...] = ()
    """Held-out folders for the validation during training; nothing is trained on them."""
    synthetic_train: SyntheticConfig = SyntheticConfig()
    """The generated training set."""
    synthetic_val: SyntheticConfig = SyntheticConfig(images=32, seed=1)
    """The generated validation set."""
    workers: int = Field(1, ge=0)
    """Loader processes of each rank; 0 decodes in the training process."""
    prompts_per_image: PositiveInt = 8
    """Objects, and so prompts, drawn from each image."""
    prompt: PromptKind = "either"
    """Prompt of each object: a point, a box, or one of them at random."""
    box_jitter: Fraction = 0.1
    """Standard deviation of each box side's shift, as a share of the box's size."""
    clicks: int = Field(0, ge=0, le=16)
    """Corrections of each prompt, as SAM was trained: every step decodes as often again, each time
    with the former mask and one more point where it is wrong, background points where it is too
    large. The loss is the mean over the first prompt and the corrections; 0 trains first prompts
    alone. Images are encoded once."""
    augment: AugmentConfig = AugmentConfig()
    """Training-time augmentation."""
    max_bad_fraction: Fraction = 0.01
    """Damaged records are replaced and counted; a run stops above this share."""
    block_records: PositiveInt = 32
    """Records read as one sequential piece; the unit of the global shuffle."""
    window_blocks: PositiveInt = 4
    """Blocks whose records are shuffled together."""

    @model_validator(mode="after")
    def _names_its_data(self) -> DataConfig:
        if self.source == "synthetic" and (self.train or self.val):
            raise ValueError(
                "--data.source synthetic generates its images; drop --data.train and --data.val"
            )
        if self.train_weights and len(self.train_weights) != len(self.train):
            raise ValueError(
                f"{len(self.train_weights)} --data.train-weights for {len(self.train)} folders of "
                "--data.train; give one each, or none"
            )
        return self
