"""The registry of commands: what each is called, reads and runs. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union

import tyro
from pydantic import BaseModel

from supersam.config.design import DesignRun
from supersam.config.evaluate import EvaluateRun
from supersam.config.export import ExportRun
from supersam.config.predict import PredictRun
from supersam.config.runs import ConfigRun, MonitorRun, ReportRun, ShardRun, StatusRun, TrainRun
from supersam.config.search import SearchRun
from supersam.config.shipped import DEMO


@dataclass(frozen=True)
class Command:
    """One command of the command line."""

    run_type: type[BaseModel]
    """Its configuration: flags and files are read into it."""
    action: str
    """MODULE:FUNCTION that takes the configuration and returns an exit code."""
    summary: str
    """What it does, in a few words."""
    default_config: Path | None = None
    """Configuration file of a command line without `--config`."""
    recall: bool = False
    """Whether `--run DIR` alone continues with that run's own configuration."""
    slurm_action: str | None = None
    """As `action`, for a configuration that asks for a Slurm job; None: `action` takes it too."""

    def action_for(self, run: Any) -> str:
        """What takes `run`, a configuration of this command."""
        if self.slurm_action is not None and run.cluster.asks_for_slurm:
            return self.slurm_action
        return self.action


COMMANDS = {
    "shard": Command(
        ShardRun, "supersam.data.command:run_shard", "convert images and masks to HDF5 shards"
    ),
    "design": Command(
        DesignRun, "supersam.cluster.launcher:submit", "design a search space from given weights"
    ),
    "train": Command(
        TrainRun,
        "supersam.cluster.launcher:submit",
        "train a supernet; without arguments, the demo",
        default_config=DEMO,
        recall=True,
    ),
    "search": Command(
        SearchRun,
        "supersam.search.command:run_search_here",
        "find the best subnets of a run",
        slurm_action="supersam.cluster.search.job:submit_search",
    ),
    "evaluate": Command(
        EvaluateRun, "supersam.evaluation.command:run_evaluate", "score a subnet on held-out images"
    ),
    "export": Command(
        ExportRun, "supersam.export.command:run_export", "write a subnet as a folder of its own"
    ),
    "predict": Command(
        PredictRun, "supersam.evaluation.predict:run_predict", "segment one image with a subnet"
    ),
    "report": Command(
        ReportRun, "supersam.search.report.page:run_report", "write the page about a search"
    ),
    "status": Command(
        StatusRun, "supersam.status.show:show", "show runs and searches, and why one ended"
    ),
    "monitor": Command(
        MonitorRun, "supersam.status.tensorboard:monitor", "serve TensorBoard on this host"
    ),
    "config": Command(
        ConfigRun,
        "supersam.status.configs:show_config",
        "list and print configurations and schemas",
    ),
}


def write_completion(words: Sequence[str]) -> None:
    """Do what `words` ask for, one of tyro's flags for shell completion, for all commands at once.

    Exits: `--tyro-print-completion SHELL` prints the script, `--tyro-write-completion SHELL FILE`
    writes it; SHELL is bash, zsh or tcsh.
    """
    kinds = tuple(
        Annotated[command.run_type, tyro.conf.subcommand(name)]
        for name, command in COMMANDS.items()
    )
    either: Any = Union[kinds]  # noqa: UP007 - of a tuple
    tyro.cli(either, prog="supersam", args=list(words))
