"""Facts for the model card: where weights and data come from, and the latency on this device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segment_anything.modeling import Sam

from supersam.config import TrainRun, UserError
from supersam.config.files import RUN_FILE
from supersam.config.search import LatencyConfig
from supersam.data.manifest import read_manifest
from supersam.evaluation import SamModelPredictor
from supersam.evaluation.latency import predictor_latency
from supersam.runs.weights import WeightSource, read_run
from supersam.runtime.device import describe_device

_MAX_ANCESTORS = 16


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
    folders = _training_folders(run)
    found.update(dict(zip(map(str, folders), prints, strict=False)))
    for _ in range(_MAX_ANCESTORS):
        parent = None if run.model.checkpoint is None else _run_of(run.model.checkpoint)
        if parent is None:
            break
        run = parent
        for folder in _training_folders(run):
            found.setdefault(str(folder), _fingerprint(folder))
    return tuple({"folder": f, "fingerprint": content[:16]} for f, content in found.items())


def describe_latency(sam: Sam) -> dict[str, Any]:
    """Measure one image with one prompt on the model's device: median, spread, and the device."""
    config = LatencyConfig()
    latency = predictor_latency(
        SamModelPredictor(sam), config, side=sam.image_encoder.img_size, device=sam.device
    )
    return {
        "median_ms": latency.median_ms,
        "iqr_ms": latency.iqr_ms,
        "warmup": config.warmup,
        "repeats": config.repeats,
        "precision": "fp32",
        "device": describe_device(sam.device),
    }


def _run_of(start: Path) -> TrainRun | None:
    """Find the run that `start` is the folder or a checkpoint of; None for a weights file."""
    is_checkpoint = start.parent.name == "checkpoints"
    folder = start.parent.parent if is_checkpoint else start
    return read_run(folder) if (folder / RUN_FILE).is_file() else None


def _training_folders(run: TrainRun) -> list[Path]:
    return list(run.data.train) if run.data.source == "shards" else [run.folder / "data" / "train"]


def _fingerprint(folder: Path) -> str:
    try:
        return read_manifest(folder).fingerprint
    except UserError:
        return "not here any more"
