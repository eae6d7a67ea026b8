"""The sections of a run's configuration: plain frozen values with bounds. No torch, no files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PromptKind = Literal["point", "box", "either"]
SourceKind = Literal["sa1b", "coco", "labelmap", "tiff", "synthetic"]
BadRecord = Literal["skip", "error"]


class Section(BaseModel):
    """A frozen part of a configuration; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        hide_input_in_errors=True,  # the flag parser prints errors raw
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

    kind: Annotated[SourceKind, tyro.conf.arg(name="source")] = "sa1b"
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
    augment: AugmentConfig = AugmentConfig()
    """Training-time augmentation."""
    max_bad_fraction: Fraction = 0.01
    """Damaged records are replaced and counted; a run stops above this share."""
    block_records: PositiveInt = 32
    """Records read as one sequential piece; the unit of the global shuffle."""
    window_blocks: PositiveInt = 4
    """Blocks whose records are mixed with each other inside a lane."""

    @model_validator(mode="after")
    def _names_its_data(self) -> DataConfig:
        if self.source == "synthetic" and (self.train or self.val):
            raise ValueError("source=synthetic generates its images; drop train and val")
        if self.train_weights and len(self.train_weights) != len(self.train):
            raise ValueError(
                f"{len(self.train_weights)} train_weights for {len(self.train)} train folders; "
                "give one each, or none"
            )
        return self


class ModelConfig(Section):
    """The Segment Anything model that becomes the supernet."""

    name: str = "vit_t"
    """vit_t, vit_b, vit_l, vit_h; or any word when all sizes below are given."""
    checkpoint: Path | None = None
    """Weights to start from: a file in the format of `sam_vit_b_01ec64.pth`, or the folder of
    another run of the same model or of one of its checkpoints; null draws random ones."""
    image_size: PositiveInt | None = None
    """Side of the square input, pixels; null takes the named model's."""
    embed_dim: PositiveInt | None = None
    """Channels of the residual stream; null takes the named model's."""
    depth: PositiveInt | None = None
    """Layers of the image encoder; null takes the named model's."""
    num_heads: PositiveInt | None = None
    """Attention heads of a layer; null takes the named model's."""
    global_layers: tuple[int, ...] | None = None
    """Layers with global attention; null takes the named model's."""
    window_size: PositiveInt | None = None
    """Side of an attention window, patches; null takes the named model's."""
    attention: Literal["auto", "sdpa", "in_kernel", "reference"] = "auto"
    """Attention kernel: PyTorch's fused one (sdpa); the same, with relative positions added inside
    the kernel of global layers on a GPU (in_kernel, needs less memory); or segment-anything's own
    sequence of operations (reference). auto takes sdpa on a GPU and reference on a CPU, where it is
    faster."""


class SpaceConfig(Section):
    """The search space: which dimensions of the encoder are elastic, and how far."""

    file: Path | None = None
    """A `space.yaml`; replaces everything below."""
    preset: Literal["elastic", "published", "wide"] = "elastic"
    """`elastic`: by the rules below; `published`: the space of arXiv 2501.08504; `wide`: its
    removable layers, and every width down to a quarter."""
    elastic_depth: bool = True
    """Layers may be removed."""
    elastic_mlp: bool = True
    """MLP widths vary."""
    elastic_heads: bool = False
    """Numbers of attention heads vary."""
    elastic_embed: bool = False
    """The residual stream's width varies."""
    removable: tuple[int, ...] = (1, 2, 5, 6, 9)
    """Layers that may be removed."""
    removal_probability: float = Field(0.5, gt=0, lt=1)
    """Probability that a removable layer is removed from a random subnet."""
    mlp_fractions: tuple[Fraction, ...] = (0.25, 0.5, 0.75, 1.0)
    """MLP widths as shares of the full width."""
    head_fractions: tuple[Fraction, ...] = (0.5, 0.75, 1.0)
    """Head counts as shares of the full count."""
    embed_fractions: tuple[Fraction, ...] = (0.5, 0.75, 1.0)
    """Residual widths as shares of the full width."""
    width_multiple: PositiveInt = 64
    """MLP and residual widths are rounded to a multiple of this, for fast matrix kernels."""


class OptimConfig(Section):
    """AdamW and its schedule."""

    steps: PositiveInt = 1000
    """Optimizer steps of the whole run."""
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate, reached after `warmup_steps`."""
    warmup_steps: int = Field(100, ge=0)
    """Optimizer steps of linear warm-up."""
    min_lr_ratio: Fraction = 0.01
    """Learning rate at the end of the cosine, as a share of the peak."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay; biases, norms and embeddings have none."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment."""
    clip_norm: float = Field(1.0, ge=0)
    """Largest norm of the whole gradient; 0 does not clip."""
    global_batch: PositiveInt = 4
    """Images of one optimizer step, over all ranks and accumulation steps."""
    accumulate: PositiveInt = 1
    """Micro-batches whose gradients are added before a step, to save memory."""
    trainable: tuple[Literal["encoder", "prompt_encoder", "mask_decoder"], ...] = (
        "encoder",
        "prompt_encoder",
        "mask_decoder",
    )
    """Parts of the model that learn; the others stay as they are."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seeds weights, data order, augmentation, prompts and subnet draws."""


class SandwichConfig(Section):
    """The sandwich rule: the subnets of one optimizer step."""

    random_subnets: int = Field(1, ge=0)
    """Random subnets of each step, besides the largest and the smallest."""
    largest_only_steps: int = Field(0, ge=0)
    """Steps at the start that train the largest subnet alone, for runs from random weights."""
    only: Path | None = None
    """A subnet's JSON file: train it alone, without the sandwich, as fine-tuning before export."""


class LossConfig(Section):
    """What is minimised, on low-resolution masks."""

    mask: Literal["dice_bce", "dice_focal", "dice"] = "dice_bce"
    """Dice, alone or with a per-pixel loss; `dice_bce` weighs object and background equally."""
    dice_weight: float = Field(1.0, ge=0)
    """Weight of the dice loss."""
    pixel_weight: float = Field(1.0, ge=0)
    """Weight of the per-pixel loss."""
    multimask_weight: float = Field(0.5, ge=0)
    """Weight of the best of the three multimask outputs; the single mask has weight 1."""
    iou_weight: float = Field(0.1, ge=0)
    """Weight of the squared error of the predicted IoU."""
    distill: bool = False
    """Smaller subnets also learn from the largest one of the same step (in-place)."""
    distill_embedding_weight: float = Field(1.0, ge=0)
    """Weight of the squared error of the image embedding against the largest subnet's."""
    distill_mask_weight: float = Field(1.0, ge=0)
    """Weight of the cross-entropy of the mask logits against the largest subnet's."""


class EngineConfig(Section):
    """How the step is executed."""

    zero_stage: int = 1
    """DeepSpeed ZeRO stage: 1 shards the optimizer state, 2 also the gradients."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes in bfloat16 with fp32 weights, optimizer state and reductions."""
    checkpoint_activations: bool = False
    """Keep only the input of each encoder layer and compute the rest again in the backward pass:
    less memory, a third more computation."""
    compile: bool = False
    """Compile the halves of a layer for training: one graph a kind of attention and MLP width."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU of this rank where there is one."""
    threads: int = Field(0, ge=0)
    """CPU threads of each rank; 0 shares the host's cores among its ranks."""
    loader_start: Literal["fork", "spawn", "forkserver"] = "forkserver"
    """How loader processes start; fork is unsafe once CUDA or threads are in use."""
    log_every: PositiveInt = 10
    """Optimizer steps between log lines and TensorBoard scalars."""
    log_sample_ids: bool = False
    """Write the ids of every step's images to `sample_ids.jsonl`, to audit the data order."""

    @model_validator(mode="after")
    def _zero_3_is_refused(self) -> EngineConfig:
        if self.zero_stage not in (1, 2):
            reason = (
                "stage 3 gathers whole parameters module by module, which defeats sliced weights "
                "(every subnet would pay for the full ones) and hangs when ranks differ"
                if self.zero_stage == 3
                else "there is no such stage here"
            )
            raise ValueError(f"zero_stage={self.zero_stage}: {reason}; use 1 (the model fits) or 2")
        return self


class CheckpointConfig(Section):
    """When the run is saved and validated."""

    every_steps: PositiveInt = 500
    """Optimizer steps between checkpoints."""
    keep_last: PositiveInt = 3
    """Newest checkpoints kept, besides the best and the pinned ones."""
    pin: tuple[PositiveInt, ...] = ()
    """Steps whose checkpoints are never deleted."""
    validate_every_steps: PositiveInt = 500
    """Optimizer steps between validations."""
    validate_images: PositiveInt = 64
    """Images of the validation set that a validation during training looks at."""
    validate_prompt: Literal["point", "box"] = "box"
    """Prompt of a validation during training."""
    overlay_images: int = Field(4, ge=0)
    """Images whose masks are drawn to TensorBoard at each validation."""


class WatchdogConfig(Section):
    """Signs of life of every rank, and the end of an attempt that hangs."""

    enabled: bool = True
    """End a hanging attempt; off while a debugger holds a rank."""
    heartbeat_s: float = Field(10.0, gt=0)
    """Seconds between two signs of life of a rank."""
    stall_s: float = Field(60.0, gt=0)
    """Least seconds without progress in training that count as a stall."""
    stall_steps: float = Field(10.0, gt=0)
    """A stall lasts at least as long as this many steps (their median)."""
    other_s: float = Field(480.0, gt=0)
    """The same outside of training: start, validation, saving; below a collective's own 600 s."""
