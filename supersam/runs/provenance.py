"""Where a run's numbers come from: code, versions, starting weights and training data. No torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
from pathlib import Path

import supersam
from supersam import __version__
from supersam.config import TrainRun, UserError
from supersam.config.files import CHECKPOINTS, CODE, COMMIT_FILE, DATA, RUN_FILE
from supersam.config.shipped import CONFIGS
from supersam.data.manifest import read_manifest
from supersam.runs.weights import WeightSource, read_run

_MAX_ANCESTORS = 16


def versions() -> dict[str, str]:
    """Versions of this software and of what its numbers depend on."""
    names = ("torch", "deepspeed", "segment-anything", "numpy", "h5py")
    return {"supersam": __version__, **{n: importlib.metadata.version(n) for n in names}}


def git_commit() -> str:
    """The commit of the code that runs, with a mark for uncommitted changes."""
    copied_from = Path(__file__).parents[2] / COMMIT_FILE
    if copied_from.is_file():
        return copied_from.read_text(encoding="utf-8").strip()
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def provenance_comment() -> str:
    """Comment lines for a YAML file: commit and versions."""
    lines = [f"git commit: {git_commit()}", *(f"{n} {v}" for n, v in versions().items())]
    return "".join(f"# {line}\n" for line in lines)


def describe_start(run: TrainRun) -> str:
    """Say in words where the weights of a run began, through all runs that it continued."""
    words: list[str] = []
    for _ in range(_MAX_ANCESTORS):
        start = run.model.checkpoint
        if start is None:
            return ", ".join([*words, f"random weights of seed {run.optim.seed}"])
        parent = _run_of(start)
        if parent is None:
            return ", ".join([*words, f"`{start.name}`"])
        words.append(f"run `{parent.name}`")
        run = parent
    return ", ".join(words)


def describe_training_data(run: TrainRun, source: WeightSource) -> tuple[dict[str, str], ...]:
    """List folder and fingerprint of each training set of the run and of those it continued."""
    found: dict[str, str] = {}
    prints = [] if source.manifest is None else source.manifest.data
    folders = training_folders(run)
    found.update(dict(zip(map(str, folders), prints, strict=False)))
    for _ in range(_MAX_ANCESTORS):
        parent = None if run.model.checkpoint is None else _run_of(run.model.checkpoint)
        if parent is None:
            break
        run = parent
        for folder in training_folders(run):
            found.setdefault(str(folder), _fingerprint(folder))
    return tuple({"folder": f, "fingerprint": content[:16]} for f, content in found.items())


def training_folders(run: TrainRun) -> list[Path]:
    """Where the training shards of a run are."""
    return list(run.data.train) if run.data.source == "shards" else [run.folder / DATA / "train"]


def weights_id(files: dict[str, str]) -> str:
    """16 hex digits of a checkpoint's weights, from its manifest's hashes of files."""
    weights = {name: digest for name, digest in files.items() if name.startswith("weights-")}
    return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()[:16]


def _run_of(start: Path) -> TrainRun | None:
    """Find the run that `start` is the folder or a checkpoint of; None for a weights file."""
    is_checkpoint = start.parent.name == CHECKPOINTS
    folder = start.parent.parent if is_checkpoint else start
    return read_run(folder) if (folder / RUN_FILE).is_file() else None


def _fingerprint(folder: Path) -> str:
    try:
        return read_manifest(folder).fingerprint
    except UserError:
        return "not here any more"


def snapshot_code(folder: Path) -> Path:
    """Copy this package to `folder`/code, which goes on PYTHONPATH. Returns that folder."""
    package = Path(supersam.__file__).parent
    code = folder / CODE
    if package.is_relative_to(code.absolute()):
        return code  # this is the copy already
    fresh = folder / ".code.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(package, fresh / "supersam", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CONFIGS, fresh / "supersam" / CONFIGS.name, dirs_exist_ok=True)
    (fresh / COMMIT_FILE).write_text(git_commit() + "\n", encoding="utf-8")
    shutil.rmtree(code, ignore_errors=True)
    fresh.rename(code)
    return code
