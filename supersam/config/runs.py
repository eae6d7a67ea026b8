"""One root for each entry point: what the command line and the YAML files must add up to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field, PositiveInt, model_validator

from supersam.config.cluster import TrainCluster
from supersam.config.data import DataConfig, SourceConfig
from supersam.config.design import PrioritizeConfig
from supersam.config.files import RUN_FILE
from supersam.config.sections import (
    NAME,
    PART,
    CheckpointConfig,
    EngineConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    SandwichConfig,
    Section,
    SpaceConfig,
    WatchdogConfig,
)

Flat = tyro.conf.arg(name="")


class ShardRun(Section):
    """Images and masks on disk become HDF5 shards."""

    source: Annotated[SourceConfig, Flat] = SourceConfig()
    out: Path | None = None
    """Folder for the shards and their manifest."""
    workers: PositiveInt = 1
    """Converting processes."""
    shard_mib: PositiveInt = 256
    """Size at which a shard is finished."""
    part: str | None = Field(None, pattern=PART)
    """Do a share of the shards, for example 2/8, as one job of an array; the last one finishes."""
    verify: Path | None = None
    """Check a finished folder instead of converting."""
    full: bool = False
    """With --verify: read every byte, not only sizes and tables."""

    @model_validator(mode="after")
    def _converts_or_verifies(self) -> ShardRun:
        if (self.out is None) == (self.verify is None):
            raise ValueError("give either --out DIR to convert or --verify DIR to check")
        needs_root = self.source.kind != "synthetic" and ":" not in self.source.kind
        if self.out is not None and needs_root and self.source.root is None:
            raise ValueError(f"--source {self.source.kind} needs --root DIR, the data set's folder")
        if self.share[0] >= self.share[1]:
            raise ValueError(
                f"--part {self.part} is not one of {self.share[1]} parts; count from 1"
            )
        return self

    @property
    def share(self) -> tuple[int, int]:
        """Which part, counted from 0, of how many."""
        if self.part is None:
            return 0, 1
        part, parts = map(int, self.part.split("/"))
        return part - 1, parts


class TrainRun(Section):
    """Sandwich-rule training of a supernet."""

    name: str = Field("demo", pattern=NAME)
    """Name of the run; its folder is `runs/NAME`."""
    run: Path | None = None
    """Folder of the run; null takes `runs/NAME`."""
    dry_run: bool = False
    """Print the resolved configuration and what it would need, and stop."""
    cluster: Annotated[TrainCluster, Flat] = TrainCluster()
    model: ModelConfig = ModelConfig()
    space: SpaceConfig = SpaceConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    sandwich: SandwichConfig = SandwichConfig()
    prioritize: PrioritizeConfig = PrioritizeConfig()
    loss: LossConfig = LossConfig()
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    watchdog: WatchdogConfig = WatchdogConfig()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.run if self.run is not None else Path("runs") / self.name

    @property
    def largest_only_steps(self) -> int:
        """Steps at the start that train the largest subnet alone."""
        asked = self.sandwich.largest_only_steps
        return self.optim.steps // 2 if asked is None else asked

    @property
    def last_step(self) -> int:
        """What `progress.json` says when all is done."""
        return self.optim.steps

    @property
    def loader_workers(self) -> int:
        """Loader processes of each rank."""
        return self.data.workers

    @property
    def legal_world_sizes(self) -> list[int]:
        """Numbers of ranks that divide the images of a micro-batch."""
        micro = self.optim.global_batch // self.optim.accumulate
        return [n for n in range(1, micro + 1) if micro % n == 0]

    @model_validator(mode="after")
    def _has_data(self) -> TrainRun:
        if self.data.source == "shards" and not self.data.train:
            raise ValueError(
                "no training shards are named; give --data.train DIR (launch/shard.py makes one), "
                "or --data.source synthetic"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainRun:
        batch, accumulate = self.optim.global_batch, self.optim.accumulate
        if batch % accumulate != 0:
            raise ValueError(
                f"--optim.global-batch {batch} is not a multiple of --optim.accumulate {accumulate}"
            )
        return self


class StatusRun(Section):
    """Where runs stand, and why one failed."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of a run, or its name below `runs`; left out, all runs are listed."""
    root: Path = Path("runs")
    """Where the runs lie."""
    why: bool = False
    """Say in one line what happened."""
    follow: bool = False
    """Print a rank's log as it grows, until the run ends."""
    rank: int = Field(0, ge=0)
    """With --follow: whose log."""
    cancel: bool = False
    """End the run, which saves first, and do not requeue it; a second time ends it at once."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = Field(False, alias="json")
    """Print one JSON object on stdout."""

    @model_validator(mode="after")
    def _one_run_to_act_on(self) -> StatusRun:
        asked = [name for name in ("why", "follow", "cancel") if getattr(self, name)]
        if asked and self.run is None:
            raise ValueError(f"--{asked[0]} needs a RUN: its folder, or its name below {self.root}")
        return self

    @property
    def folder(self) -> Path | None:
        """The folder of the run that was asked for: one that holds a run, else one that exists."""
        if self.run is None:
            return None
        places = (self.run, self.root / self.run)
        found = [place for place in places if (place / RUN_FILE).is_file()]
        found += [place for place in places if place.is_dir()]
        given = self.root / self.run if len(self.run.parts) == 1 else self.run
        return next(iter(found), given)


class MonitorRun(Section):
    """TensorBoard on this machine's loopback, and the ssh line to reach it."""

    logdir: Path = Path("runs")
    """A run's folder, or one that holds several."""
    port: int = Field(0, ge=0, le=65535)
    """0 takes a free one."""


class ConfigRun(Section):
    """Shipped configurations: their names, one's text, or the schema of a command's settings."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Configuration to print; left out, all are listed with their files."""
    schema_of: Annotated[str | None, tyro.conf.arg(name="schema")] = Field(None, alias="schema")
    """Print the JSON schema of this command's configuration instead, for an editor."""


class ReportRun(Section):
    """A page about a search, or about several of one supernet."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of searches; several are compared."""
    out: Path | None = None
    """Folder of a comparison. A single search's page lies in its own folder."""
    images: int = Field(3, ge=0)
    """Held-out images shown with the masks of three subnets; 0 loads no model."""

    @model_validator(mode="after")
    def _one_or_several(self) -> ReportRun:
        if not self.folders:
            raise ValueError("name the folder of a search, RUN/results/NAME, or several to compare")
        if len(self.folders) > 1 and self.out is None:
            raise ValueError("several searches need --out DIR, the folder of their comparison")
        if len(self.folders) == 1 and self.out is not None:
            raise ValueError("a single search's page lies in its own folder; drop --out")
        return self
