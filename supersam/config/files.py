"""Names of the files and folders in a run's, a search's and a design's folder, each stated once.

The names are a contract: old folders stay readable, and other people's scripts rely on them.
"""

# A run's folder.
RUN_FILE = "run.yaml"
"""The resolved run."""
SPACE_FILE = "space.yaml"
"""The search space in force."""
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
CANCEL_FILE = "cancel"
"""Present where the run was asked to save and end."""

# What a Slurm job of a run or search leaves.
JOB_FILE = "job.json"
"""The job's id and when it was submitted."""
JOB_FOLDER = "slurm"
"""Folder of its user alone: submitit's scripts and pickles, and the batch log."""

# A search's folder.
SEARCH_YAML = "search.yaml"
"""The resolved search."""
SEARCH_FILE = "search.json"
"""Settings, checkpoint, data, references, the predictor's error."""
JOURNAL_FILE = "journal.jsonl"
"""Each finished subnet, once."""
PARETO_JSON = "pareto.json"
PARETO_CSV = "pareto.csv"
REPORT_FILE = "report.html"
SWEEP_YAML = "sweep.yaml"
"""In a sweep's folder: what was asked for."""
