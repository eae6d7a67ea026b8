"""What a run is: sections, roots, files and flags. Imports no torch."""

from supersam.config.cluster import SearchCluster, SlurmSite, TrainCluster
from supersam.config.data import DataConfig, SourceConfig, SyntheticConfig
from supersam.config.design import DesignRun
from supersam.config.errors import UserError, exit_code
from supersam.config.evaluate import EvaluateRun
from supersam.config.export import ExportRun
from supersam.config.io import (
    dump_run,
    dump_yaml,
    load_run,
    merge,
    parse_cli,
    read_yaml,
)
from supersam.config.runs import MonitorRun, ReportRun, ShardRun, StatusRun, TrainRun
from supersam.config.search import Constraint, SearchRun
from supersam.config.sections import (
    CheckpointConfig,
    EngineConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    SandwichConfig,
    SpaceConfig,
    WatchdogConfig,
)
from supersam.config.shipped import DEMO

__all__ = [
    "DEMO",
    "CheckpointConfig",
    "TrainCluster",
    "Constraint",
    "DataConfig",
    "DesignRun",
    "EngineConfig",
    "EvaluateRun",
    "ExportRun",
    "LossConfig",
    "ModelConfig",
    "MonitorRun",
    "OptimConfig",
    "ReportRun",
    "SandwichConfig",
    "SearchCluster",
    "SlurmSite",
    "SearchRun",
    "ShardRun",
    "SourceConfig",
    "SpaceConfig",
    "StatusRun",
    "SyntheticConfig",
    "TrainRun",
    "UserError",
    "WatchdogConfig",
    "dump_run",
    "dump_yaml",
    "exit_code",
    "load_run",
    "merge",
    "parse_cli",
    "read_yaml",
]
