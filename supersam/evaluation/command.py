"""What launch/evaluate.py does: one subnet of a trained run, scored on held-out images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supersam.config import EvaluateRun, UserError
from supersam.config.files import SPACE_FILE
from supersam.data.dataset import EvalDataset
from supersam.data.loader import build_eval_loader
from supersam.data.shards import open_held_out
from supersam.evaluation import EvalResult, SubnetPredictor, evaluate, format_table
from supersam.runs.folder import validation_folders
from supersam.runs.subnet_reference import find_subnet
from supersam.runs.supernet import load_supernet
from supersam.runs.weights import find_weights, read_run
from supersam.runtime.atomic import write_json
from supersam.runtime.device import choose_device
from supersam.runtime.distributed import World
from supersam.runtime.logging import setup_logging, shown
from supersam.space import read_space, resolve_shape, subnet_cost


def run_evaluate(run: EvaluateRun) -> int:
    """Score the subnet, keep the result in the run's folder, and print a table or JSON."""
    setup_logging(World.single())
    train_run = read_run(run.run)
    space = read_space(run.run / SPACE_FILE, resolve_shape(train_run.model))
    spec = find_subnet(run.subnet, space, run=run.run)
    folders = run.data or validation_folders(train_run)
    readers = open_held_out(folders)
    if not readers:
        raise UserError(f"{run.run} has no validation set; name held-out shards with --data DIR")
    source = find_weights(train_run, run.checkpoint)
    supernet = load_supernet(train_run, space, source).to(choose_device(run.device))
    results: dict[str, EvalResult] = {}
    for prompt in run.prompt:
        dataset = EvalDataset(readers, side=space.shape.image_size, prompt=prompt)
        loader = build_eval_loader(dataset, World.single(), limit=run.images, workers=run.workers)
        images = shown(loader, len(loader), what=prompt, unit="image")
        results[prompt] = evaluate(SubnetPredictor(supernet, spec), images, boundary=run.boundary)
    cost = subnet_cost(spec, space.shape)
    record = {
        "subnet": spec.to_dict(),
        "key": spec.key(),
        "step": source.step,
        "params_m": cost.params_m,
        "flops_g": cost.flops_g,
        "data": [str(folder.resolve()) for folder in folders],
        "images": run.images,
        "boundary": run.boundary,
        "prompts": {prompt: result.as_dict() for prompt, result in results.items()},
    }
    fault = _keep(run.run / "results" / _file_name(record), record)
    _print(run, record, results)  # though it could not be kept: it may have taken hours
    if fault is not None:
        raise fault
    return 0


def _file_name(record: Mapping[str, Any]) -> str:
    """Of other images, prompts or metrics another name: no evaluation replaces a different one."""
    named = [record[name] for name in ("data", "images", "boundary")]
    text = json.dumps([*named, sorted(record["prompts"])])
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"evaluate-{record['key']}-{digest}-step-{record['step']:06d}.json"


def _keep(path: Path, record: Mapping[str, Any]) -> UserError | None:
    """Write the record; returns what went wrong, to be told once the result is printed."""
    try:
        path.parent.mkdir(exist_ok=True)
        write_json(path, record)
    except OSError as fault:
        return UserError(
            f"the result above could not be kept as {path}: {fault}; make the folder writable"
        )
    return None


def _print(run: EvaluateRun, record: Mapping[str, Any], results: Mapping[str, EvalResult]) -> None:
    if run.json_:
        print(json.dumps(record), flush=True)
        return
    print(
        f"{run.subnet} at step {record['step']}: {record['params_m']:.2f} M parameters, "
        f"{record['flops_g']:.2f} GFLOPs per image with one prompt"
    )
    print(format_table(dict(results)), flush=True)
