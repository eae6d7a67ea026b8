"""The sections of a training: model, space, optimizer, losses, engine; frozen, with bounds.

What is read is in `data.py`, where it runs in `cluster.py`. No torch, no files.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Of a run or a search: also the name of a folder."""
PART = r"^[1-9]\d*/[1-9]\d*$"
"""Of several jobs: the second of eight is 2/8."""
_EXTENSION = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
Extension = Annotated[str, Field(pattern=_EXTENSION)]
"""`module:object`: an object of the user's own; see docs/extending.md."""


def or_own(words: object) -> BeforeValidator:
    """Check a setting that is one of the Literal `words`, or `module:object`, in one message."""

    def check(value: Any) -> Any:
        known = [str(word) for word in get_args(words)]
        if not isinstance(value, str) or value in known or re.match(_EXTENSION, value):
            return value
        close = difflib.get_close_matches(value, known, n=1)
        remedy = f"did you mean {close[0]}? " if close else ""
        raise ValueError(
            f"{value!r} is not known; {remedy}known are {', '.join(known)}, and module:object of "
            "your own"
        )

    return BeforeValidator(check)


MaskLoss = Literal["dice_bce", "dice_focal", "dice"]


class Section(BaseModel):
    """A frozen part of a configuration; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,  # the flag parser prints errors raw
    )


class ModelConfig(Section):
    """The Segment Anything model that becomes the supernet."""

    name: str = "vit_t"
    """vit_t, vit_s, vit_b, vit_l, vit_h; or any word when all sizes below are given."""
    checkpoint: Path | None = None
    """Weights to start from: a file in the format of `sam_vit_b_01ec64.pth`, or the folder of
    another run of the same model or of one of its checkpoints; null draws random ones."""
    image_size: PositiveInt | None = None
    """Side of the square input, pixels, a multiple of 16; null takes the named model's. Where a
    `checkpoint` was made for another size, its positions are interpolated."""
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
    """Attention kernel: Triton kernels that add relative positions themselves (in_kernel, on a GPU,
    2 to 5 times faster there and needs less memory); PyTorch's fused one (sdpa); or
    segment-anything's own sequence of operations, of the mask decoder too (reference). auto takes
    in_kernel on a GPU and reference on a CPU, where it is faster."""


class SpaceConfig(Section):
    """The search space: which dimensions of the encoder are elastic, and how far."""

    file: Path | None = None
    """A `space.yaml`; replaces everything below but `resolutions`."""
    preset: Literal["elastic", "published", "wide"] = "elastic"
    """`elastic`: by the rules below; `published`: the space of arXiv 2501.08504, down to -60 % of
    ViT-B's parameters; `wide`: its removable layers, and every width down to a quarter: -91 % of
    ViT-B, -77 % of vit_s, -52 % of vit_t, whose mask decoder alone is 40 %."""
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
    resolutions: tuple[PositiveInt, ...] = ()
    """Sides of the square input, pixels, that subnets may have, in any space: multiples of 16, none
    larger than the model's `image_size`, at which images are loaded and the largest subnet works.
    Empty keeps that size for all, or what `file` says."""


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
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of an exponential moving average of the weights, which is validated, evaluated and
    exported in their place; 0.999 averages about 1,000 steps, 0 keeps none."""
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
    sampling: Literal["genes", "size"] = "genes"
    """How random subnets are drawn. genes: each layer and width by itself, which hardly leaves the
    middle sizes; size: spread evenly over the parameters from the smallest to the widest."""
    largest_only_steps: int | None = Field(None, ge=0)
    """Steps at the start that train the largest subnet alone: subnets cut from a model that has
    learned the task are better at equal compute. null takes half of `optim.steps`, 0 none."""
    growing_steps: int = Field(0, ge=0)
    """Steps after those over which the space opens evenly, from its widest choices and all layers
    to the whole of it: the smallest subnet of a step shrinks until then. 0 trains the whole space
    from the first sandwich step on."""
    only: str | None = None
    """Train this subnet alone, without the sandwich, as fine-tuning before export: largest,
    smallest, medium, a JSON file of a subnet, or SEARCH#knee|best|cheapest|N of a search's
    front."""


class LossConfig(Section):
    """The loss that is minimised, on low-resolution masks."""

    mask: Annotated[MaskLoss | Extension, or_own(MaskLoss)] = "dice_bce"
    """Dice, alone or with a per-pixel loss; `dice_bce` weighs object and background equally. Or
    module:function of logits (..., s, s) and target in [0, 1], which gives each mask's loss."""
    dice_weight: float = Field(1.0, ge=0)
    """Weight of the dice loss."""
    pixel_weight: float = Field(1.0, ge=0)
    """Weight of the per-pixel loss."""
    multimask_weight: float = Field(0.5, ge=0)
    """Weight of the best of the three multimask outputs; the single mask has weight 1."""
    iou_weight: float = Field(0.1, ge=0)
    """Weight of the squared error of the predicted IoU."""
    label_weight: float = Field(1.0, ge=0)
    """Weight of all of the above, which compare with annotated masks; 0 learns from `teacher`
    alone."""
    distill: bool = False
    """Smaller subnets also learn from the largest one of the same step (in-place); with `teacher`,
    all of them learn from that instead."""
    teacher: Path | None = None
    """Another model of the family, frozen, from which every subnet also learns: its image
    embedding, all its masks and its IoU estimates. A file in the format of `sam_vit_b_01ec64.pth`,
    or the folder of a run or of one of its checkpoints; of any size."""
    distill_embedding_weight: float | None = Field(None, ge=0)
    """Weight of the squared error of the image embedding against the teacher's. null takes 1 with a
    frozen teacher and 0 with the largest subnet of the step, which shares its weights with those
    that learn from it: drawn to its embedding, small subnets can keep it from looking at the
    image."""
    distill_mask_weight: float = Field(1.0, ge=0)
    """Weight of how far the masks are from the teacher's, in [0, 1]: of the single mask, and of a
    frozen teacher's other masks by `multimask_weight`."""

    @property
    def embedding_weight(self) -> float:
        """`distill_embedding_weight`, or what stands for null."""
        if self.distill_embedding_weight is not None:
            return self.distill_embedding_weight
        return 0.0 if self.teacher is None else 1.0

    @model_validator(mode="after")
    def _learns_from_something(self) -> LossConfig:
        if self.label_weight == 0 and self.teacher is None:
            raise ValueError(
                "--loss.label-weight 0 leaves the largest subnet nothing to learn from; name a "
                "frozen teacher with --loss.teacher CHECKPOINT"
            )
        return self


class EngineConfig(Section):
    """How the step is executed."""

    zero_stage: int = 1
    """DeepSpeed ZeRO stage: 1 shards the optimizer state, 2 also the gradients."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """bf16 computes in bfloat16 with fp32 weights, optimizer state and reductions; auto does so
    where the GPU or CPU has instructions for it, as others take ten times as long."""
    checkpoint_activations: bool = False
    """Keep only the input of each encoder layer and compute the rest again in the backward pass:
    less memory, a third more computation."""
    compile: bool = False
    """On a GPU, compile for training the halves of a layer, one graph per kind of attention and MLP
    width, and the mask decoder: a step of ViT-B was 1.3 times as fast on an H200, and each start
    compiles anew what no cache on the node holds. A CPU never compiles."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU of this rank where there is one."""
    threads: Annotated[int, tyro.conf.arg(aliases=("--threads",))] = Field(0, ge=0)
    """CPU threads of each rank. 0: what OMP_NUM_THREADS or SLURM_CPUS_PER_TASK says, else an equal
    part of the host's cores."""
    loader_start: Literal["fork", "spawn", "forkserver"] = "forkserver"
    """How loader processes start; fork is unsafe once CUDA or threads are in use."""
    log_every: PositiveInt = 10
    """Optimizer steps between log lines and TensorBoard scalars."""
    metric_writer: Extension | None = None
    """module:object that also gets every scalar: called with the run's folder, it returns something
    with scalars(values, step) and close()."""
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
            raise ValueError(
                f"--engine.zero-stage {self.zero_stage}: {reason}; use 1 (the model fits) or 2"
            )
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
    """Least seconds without progress that count as a stall at the start, in a validation or while
    saving; less than the 600 s after which a collective gives up."""
