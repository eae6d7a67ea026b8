"""The design of a search space: sections, and the root of launch/design.py. No torch, no files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, PositiveInt, model_validator

from supersam.config.cluster import DesignCluster
from supersam.config.data import PromptKind
from supersam.config.sections import Extension, Fraction, Section, WatchdogConfig, or_own

ScoreName = Literal["magnitude", "wanda", "taylor", "movement", "random"]
Dimension = Literal["mlp", "heads", "embed"]
MOST_RANKS = 256
DIMENSIONS: tuple[Dimension, ...] = ("mlp", "heads", "embed")


class ImportanceConfig(Section):
    """How important each MLP unit, attention head and embedding channel is."""

    score: Annotated[ScoreName | Extension, or_own(ScoreName)] = "wanda"
    """magnitude: absolute weights; wanda: weights x norm of what they read; taylor: first-order
    change of a loss without the unit; movement: weights that training lets grow; random: the
    control. Or module:function of a Measurement, which gives UnitScores."""
    loss: Literal["task", "embedding"] = "task"
    """Loss of taylor and movement: the training's, or, for taylor, the squared distance to the
    model's own image embedding plus noise, which needs no masks."""
    dimensions: tuple[Dimension, ...] = DIMENSIONS
    """The dimensions that are reordered."""
    seed: int = Field(0, ge=0)
    """Seeds the random score and the noise of the embedding loss."""

    @property
    def fault(self) -> str | None:
        """Why these settings measure nothing; None where they do. Old runs may hold such."""
        if self.score != "movement" or self.loss != "embedding":
            return None
        return (
            "score movement with loss embedding: that loss is at its minimum before the first "
            "step, so that only noise moves; use loss task, or score taylor"
        )


class PrioritizeConfig(ImportanceConfig):
    """Parameter prioritization during training: the most important units come first."""

    when: Literal["off", "start", "epoch", "every_n_steps"] = "off"
    """Before the first step, before every epoch, or before every `every_steps` steps."""
    every_steps: PositiveInt = 500
    """Optimizer steps between two reorderings, for every_n_steps."""
    images: PositiveInt = 32
    """Training images that the scores are measured on, the same each time."""
    batch: PositiveInt = 1
    """Images at a time, whatever the number of ranks. movement takes one step per batch; the other
    scores do not depend on it."""


class CalibrationConfig(Section):
    """The few images that the design looks at."""

    images: PositiveInt = 64
    """Images, spread evenly over the data."""
    batch: PositiveInt = 1
    """Images at a time: the piece of work that a rank takes. Gradients of ViT-B at 1024 px need
    more than 10 GB per image on a CPU."""
    prompts_per_image: PositiveInt = 8
    """Objects, and so prompts, of each image."""
    prompt: PromptKind = "box"
    """Prompt of each object: a point, a box, or one of them at random."""
    box_jitter: Fraction = 0.0
    """Standard deviation of each box side's shift, as a share of the box's size."""
    crop_px: tuple[PositiveInt, PositiveInt] | None = None
    """Smallest and largest side of a square crop, source pixels; null takes that of the run which
    the weights come from, and whole images for a checkpoint file."""
    seed: int = Field(0, ge=0)
    """Draws crops, objects and prompts."""


class ScanConfig(Section):
    """Structured pruning: what the model loses with each layer."""

    by: Literal["miou", "embedding"] = "miou"
    """What greedy removal protects: mIoU on the calibration set, or closeness of the embedding."""
    max_removed: int | None = Field(None, ge=0)
    """Layers that greedy removal takes away at most; null takes half of them."""
    keep_global: int = Field(2, ge=0)
    """Global-attention layers that greedy removal leaves: without any, windows never meet."""


class LimitsConfig(Section):
    """What the search space must satisfy."""

    preset: Literal["evidence", "published", "wide"] = "evidence"
    """evidence: from importance and sensitivity; published: the space of arXiv 2501.08504, by the
    same rule for other encoders, down to -60 % of ViT-B's parameters; wide: every dimension
    elastic, down to a quarter, -91 % of ViT-B."""
    smallest_m: float | None = Field(None, gt=0)
    """Millions of parameters of the whole model that the smallest subnet must not exceed."""
    widths: int = Field(4, ge=1)
    """Choices of every elastic width."""
    elastic_depth: bool = True
    """Layers may be removed."""
    elastic_mlp: bool = True
    """MLP widths vary."""
    elastic_heads: bool = False
    """Numbers of attention heads vary."""
    elastic_embed: bool = False
    """The residual stream's width varies."""
    keep_importance: float = Field(0.6, gt=0, le=1)
    """Share of a layer's importance that its smallest width keeps, where `smallest_m` does not ask
    for less."""
    max_miou_drop: float = Field(0.1, gt=0, le=1)
    """mIoU on the calibration set that all removable layers together may cost, untrained."""
    removal_probability: float = Field(0.5, gt=0, lt=1)
    """Mean probability that a removable layer is removed; harmless layers go more often."""
    width_multiple: PositiveInt = 64
    """MLP and residual widths are multiples of this, for fast matrix kernels."""


class DesignRun(Section):
    """A search space designed from weights and a few calibration images."""

    kind: Annotated[Literal["design"], tyro.conf.Suppress] = "design"
    data: tuple[Path, ...]
    """Folders of shards that the calibration images are taken from."""
    checkpoint: Path
    """Weights: a file in the format of `sam_vit_b_01ec64.pth`, or the folder of a training run."""
    out: Path = Path("space.yaml")
    """The search space; evidence, figures and reordered weights go to a folder beside it."""
    model: str | None = None
    """vit_t, vit_s, vit_b, vit_l or vit_h, to insist on; null takes what the checkpoint holds."""
    image_size: PositiveInt | None = None
    """Side of the square input, pixels, a multiple of 16; null takes the checkpoint's own."""
    calibration: CalibrationConfig = CalibrationConfig()
    importance: ImportanceConfig = ImportanceConfig()
    scan: ScanConfig = ScanConfig()
    limits: LimitsConfig = LimitsConfig()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU of this rank where there is one."""
    threads: int = Field(0, ge=0)
    """CPU threads of each rank. 0: what OMP_NUM_THREADS or SLURM_CPUS_PER_TASK says, else an equal
    part of the host's cores."""
    dry_run: bool = False
    """Print what would be done, and stop."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = Field(False, alias="json")
    """Print the result as one JSON object on stdout."""
    cluster: Annotated[DesignCluster, tyro.conf.arg(name="")] = DesignCluster()

    @model_validator(mode="after")
    def _names_its_data(self) -> DesignRun:
        if not self.data:
            raise ValueError("--data names no shards; launch/shard.py makes some")
        return self

    @property
    def folder(self) -> Path:
        """Where everything but the space itself goes: `space.yaml` has `space-design/`."""
        return self.out.with_name(f"{self.out.stem}-design")

    @property
    def name(self) -> str:
        """Name of the job."""
        return self.folder.name

    @property
    def watchdog(self) -> WatchdogConfig:
        """Off: measurements send no signs of life; a rank that hangs ends the others in time."""
        return WatchdogConfig(enabled=False)

    @property
    def last_step(self) -> int:
        """What `progress.json` says when all is done."""
        return 1

    @property
    def loader_workers(self) -> int:
        """Loader processes of each rank."""
        return 0

    @property
    def legal_world_sizes(self) -> list[int]:
        """Numbers of ranks: the work is measurements of batches, which any number can share."""
        return list(range(1, MOST_RANKS + 1))
