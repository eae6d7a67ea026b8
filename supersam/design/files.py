"""The files of a design: the space, the reordered weights, a config, the evidence."""

from __future__ import annotations

import logging
import platform
import resource
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from supersam.config import DesignRun, ModelConfig, UserError, dump_run, dump_yaml, load_run
from supersam.config.errors import describe_missing
from supersam.config.files import (
    DESIGN_CONFIG,
    DESIGN_WEIGHTS,
    EVIDENCE_FILE,
    FIGURES,
    PROGRESS_FILE,
    RUN_FILE,
)
from supersam.data.manifest import read_manifest
from supersam.data.sample import Batch
from supersam.design import FunctionProbe, Sensitivity, UnitScores, prioritize_parameters
from supersam.design.calibration import digest_batches
from supersam.design.designer import smallest_m
from supersam.design.figures import draw_figures
from supersam.model import SamSupernet, extract_subnet
from supersam.runs.edits import write_settings
from supersam.runs.provenance import git_commit, provenance_comment, versions
from supersam.runtime.atomic import atomic_file, write_bytes, write_json
from supersam.runtime.device import peak_memory_gib
from supersam.runtime.tensors import save_tensors
from supersam.space import SearchSpace, space_yaml, subnet_cost

logger = logging.getLogger(__name__)
_DRAWS = 1000


@dataclass(frozen=True)
class Evidence:
    """The measurements of a design and the space made from them."""

    scores: UnitScores
    sensitivity: Sensitivity
    space: SearchSpace
    seconds: dict[str, float]
    """Seconds of each part of the work, by its name."""
    num_measured: int
    """Sets of removed layers measured now, not found in the cache."""


def prepare_design_folder(run: DesignRun) -> None:
    """Create the folder and write `run.yaml`.

    Raises UserError for what is missing or too small, and where `--out` is the space of other
    weights or images, or no design's; nothing is written then.
    """
    check_design(run)
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / PROGRESS_FILE).unlink(missing_ok=True)
        write_settings(run.folder, f"{provenance_comment()}{dump_run(run)}")
    except OSError as fault:
        raise UserError(f"cannot write to {run.folder}: {fault}") from fault


def check_design(run: DesignRun) -> None:
    """Raise UserError as `prepare_design_folder`; write nothing."""
    if run.importance.fault is not None:
        raise UserError(f"--importance: {run.importance.fault}")
    images = sum(read_manifest(path).num_images for path in run.data)
    if images < run.calibration.images:
        raise UserError(
            f"--calibration.images {run.calibration.images}, and {_listed(run)} hold {images} "
            f"images; ask for --calibration.images {images}, or name more shards with --data"
        )
    if not run.checkpoint.exists():
        raise UserError(f"checkpoint {run.checkpoint} {describe_missing(run.checkpoint)}")
    if run.out.suffix != ".yaml" or run.out.is_dir():
        raise UserError(f"--out {run.out} is not the name of a file; use {run.out}/space.yaml")
    if run.out.exists():
        _require_same_start(run)


def _require_same_start(run: DesignRun) -> None:
    """A space may be designed again with other limits: trainings keep a copy of theirs."""
    before = run.folder / RUN_FILE
    if not before.is_file():
        raise UserError(f"{run.out} exists and no design made it; choose another --out FILE")
    saved = load_run(DesignRun, before)
    if saved.image_size != run.image_size:
        raise UserError(
            f"{run.out} is a design with --image-size {saved.image_size}, and now --image-size "
            f"{run.image_size} was asked for; choose another --out FILE"
        )
    for name, old, new in (
        ("checkpoint", [saved.checkpoint], [run.checkpoint]),
        ("data", saved.data, run.data),
    ):
        if [path.resolve() for path in old] != [path.resolve() for path in new]:
            raise UserError(
                f"{run.out} is a design with --{name} {' '.join(map(str, old))}, and now --{name} "
                f"{' '.join(map(str, new))} was asked for; choose another --out FILE"
            )


def describe_design(run: DesignRun) -> str:
    """Say what would be done, for `--dry-run`. Writes nothing. Raises as `check_design`."""
    check_design(run)
    batches = -(-run.calibration.images // run.calibration.batch)
    return "\n".join(
        [
            dump_run(run),
            f"space: {run.out}; everything else: {run.folder}",
            f"each set of removed layers is {batches} batches, shared among all ranks",
        ]
    )


def write_design(
    run: DesignRun,
    model: ModelConfig,
    supernet: SamSupernet,
    calibration: list[Batch],
    evidence: Evidence,
) -> dict[str, Any]:
    """Reorder the weights and write all files, the space last. Returns the summary."""
    folder, space = run.folder, evidence.space
    largest_m = subnet_cost(space.largest(), space.shape).params_m
    probe = FunctionProbe(supernet, calibration[0])
    prioritize_parameters(supernet, evidence.scores, dimensions=run.importance.dimensions)
    change = probe.compare()
    weights = folder / DESIGN_WEIGHTS
    _write_weights(supernet, weights)
    config = {
        "model": model.model_dump(mode="json", exclude_none=True) | {"checkpoint": str(weights)},
        "space": {"file": str(run.out)},
    }
    write_bytes(folder / DESIGN_CONFIG, dump_yaml(config).encode())
    draw_figures(
        folder / FIGURES,
        space,
        evidence.scores,
        evidence.sensitivity,
        score=run.importance.score,
    )
    summary = {
        "space": str(run.out),
        "removable": list(space.removable),
        "removal": [p for p in space.removal if p > 0],
        "num_subnets": space.num_subnets(),
        "smallest_m": round(smallest_m(space), 3),
        "largest_m": round(largest_m, 3),
        "smallest_is_smaller_by": round(1 - smallest_m(space) / largest_m, 3),
        "calibration_miou": round(evidence.sensitivity.whole.miou, 4),
        "function_change": change.embedding,
        "seconds": {name: round(value, 1) for name, value in evidence.seconds.items()},
        "memory_gib": round(peak_memory_gib(), 2),
    }
    write_json(
        folder / EVIDENCE_FILE,
        summary | {"function_change": asdict(change)} | _details(run, calibration, evidence),
    )
    write_bytes(run.out, space_yaml(space).encode())
    write_json(folder / PROGRESS_FILE, {"step": run.last_step})
    return summary


def _write_weights(supernet: SamSupernet, path: Path) -> None:
    """All weights under segment-anything's names: `model.checkpoint` takes the file."""
    state = extract_subnet(supernet, supernet.space.largest()).state_dict()
    with atomic_file(path) as temporary:
        save_tensors(state, temporary)


def _details(run: DesignRun, calibration: list[Batch], evidence: Evidence) -> dict[str, Any]:
    scores = evidence.scores
    return {
        "commit": git_commit(),
        "versions": versions(),
        "hardware": {
            "machine": platform.machine(),
            "processor": platform.processor(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        },
        "configuration": run.model_dump(mode="json", by_alias=True),
        "calibration": {
            "sha256": digest_batches(calibration),
            "sample_ids": [i for batch in calibration for i in batch.sample_ids.tolist()],
        },
        "shape": asdict(evidence.space.shape),
        "sensitivity": asdict(evidence.sensitivity),
        "sets_measured": evidence.num_measured,
        "scores_before_reordering": {
            "mlp": scores.mlp.tolist(),
            "heads": scores.heads.tolist(),
            "embed": scores.embed.tolist(),
        },
        "design": evidence.space.to_dict(),
        "random_subnets": _sizes(evidence.space),
    }


def _sizes(space: SearchSpace) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    costs = [subnet_cost(space.sample(rng), space.shape) for _ in range(_DRAWS)]
    shares = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
    return {
        "draws": _DRAWS,
        "quantiles": list(shares),
        "params_m": np.quantile([cost.params_m for cost in costs], shares).tolist(),
        "flops_g": np.quantile([cost.flops_g for cost in costs], shares).tolist(),
    }


def _listed(run: DesignRun) -> str:
    return ", ".join(str(path) for path in run.data)
