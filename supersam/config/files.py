"""Names of the files and folders in the folder of a run, search or design, each stated once.

The names are a contract: old folders stay readable, and other people's scripts rely on them.
"""

from __future__ import annotations

from pathlib import Path

# A run's folder.
RUN_FILE = "run.yaml"
"""The resolved run."""
SPACE_FILE = "space.yaml"
"""The search space in force."""
SUBNET_FILE = "subnet.json"
"""Where a run trains one subnet alone: that subnet."""
CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints, `step-000300` each."""
LOGS = "logs"
"""Folder of the logs, one a rank and attempt."""
RESULTS = "results"
"""Folder of evaluations (a file each) and searches (a folder each)."""
DATA = "data"
"""Folder of the shards that the run generated for itself."""
METRICS_FILE = "metrics.jsonl"
"""The scalars of the curves, a line for each step that wrote some."""
TENSORBOARD = "tensorboard"
"""Folder of the curves; made when all is loaded and the first step begins."""
HEARTBEATS = "heartbeats"
"""Folder with the last sign of life of each rank."""
STATUS_FILE = "status.json"
"""Where the run stands, as rank 0 saw it."""
PROGRESS_FILE = "progress.json"
"""The step of the last checkpoint."""
CHECKPOINT_MANIFEST = "MANIFEST.json"
"""In the folder of a checkpoint that is complete."""
STALL_FILE = "stall.json"
"""Which rank hung, where the watchdog ended an attempt."""
STRIKES_FILE = "strikes.jsonl"
"""Beside the run folders: hosts on which a rank hung."""
ATTEMPTS_FILE = "attempts.jsonl"
"""Start and end of each attempt."""
CLAIM_FILE = "claim.json"
"""While a start works in the folder: its host and process."""
CANCEL_FILE = "cancel"
"""Present where the run was asked to save and end."""

# What a Slurm job of a run or search leaves.
JOB_FILE = "job.json"
"""The job's id and when it was submitted."""
JOB_FOLDER = "slurm"
"""Folder of its user alone: submitit's scripts and pickles, and the batch log."""
CODE = "code"
"""The package as it was at submission: later edits do not change a queued job."""
COMMIT_FILE = "COMMIT"
"""Beside that copy: the commit that it was copied from."""

# A search's folder.
SEARCH_YAML = "search.yaml"
"""The resolved search."""
SEARCH_FILE = "search.json"
"""Settings, checkpoint, data, references, the predictor's error."""
JOURNAL_FILE = "journal.jsonl"
"""Each finished subnet, once."""
STARTS_FILE = "starts.jsonl"
"""Each start of the search's Slurm job, and how many trials the journal held then."""
FINAL_FILE = "final.jsonl"
"""The front on images that no proposal saw, a line for each subnet."""
PARETO_JSON = "pareto.json"
PARETO_CSV = "pareto.csv"
REPORT_FILE = "report.html"
SWEEP_YAML = "sweep.yaml"
"""In a sweep's folder: what was asked for."""
SWEEP_JSON = "sweep.json"
SWEEP_CSV = "sweep.csv"
"""The searches of a sweep in a table."""
FIGURES = "figures"
"""Folder of the figures of a design or a report."""

# A design's folder, beside `RUN_FILE`.
EVIDENCE_FILE = "evidence.json"
"""Every number that the space rests on."""
DESIGN_WEIGHTS = "weights.safetensors"
"""The weights with the most important units first."""
DESIGN_CONFIG = "train.yaml"
"""Trains with that space and those weights."""
DESIGN_CACHE = "cache"
"""Folder of what was measured: nothing is measured twice."""


def batch_log(folder: Path, job_id: str) -> Path:
    """The log of a Slurm job's batch step, below the folder of its run or search."""
    return folder / JOB_FOLDER / f"{job_id}_0_log.out"
