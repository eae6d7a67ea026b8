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
from supersam.runs.supernet import load_supernet
from supersam.runs.weights import choose_subnet, find_weights, read_run
from supersam.runtime.atomic import write_json
from supersam.runtime.device import choose_device
from supersam.runtime.distributed import World
from supersam.runtime.logging import setup_logging, shown
from supersam.space import read_space, resolve_shape, subnet_cost


def run_evaluate(asked: EvaluateRun) -> int:
    """Score the subnet, print a table or JSON, and keep the result in the run's folder."""
    setup_logging(World.single())
    run = read_run(asked.run)
    space = read_space(asked.run / SPACE_FILE, resolve_shape(run.model))
    spec = choose_subnet(asked.subnet, space)
    folders = asked.data or validation_folders(run)
    readers = open_held_out(folders)
    if not readers:
        raise UserError(f"{asked.run} has no validation set; name held-out shards with --data DIR")
    source = find_weights(run, asked.checkpoint)
    supernet = load_supernet(run, space, source).to(choose_device(asked.device))
    results: dict[str, EvalResult] = {}
    for prompt in asked.prompt:
        dataset = EvalDataset(readers, side=space.shape.image_size, prompt=prompt)
        loader = build_eval_loader(dataset, World.single(), limit=asked.images)
        images = shown(loader, len(loader), what=prompt, unit="image")
        results[prompt] = evaluate(SubnetPredictor(supernet, spec), images, boundary=asked.boundary)
    cost = subnet_cost(spec, space.shape)
    record = {
        "subnet": spec.to_dict(),
        "key": spec.key(),
        "step": source.step,
        "params_m": cost.params_m,
        "flops_g": cost.flops_g,
        "data": [str(folder.resolve()) for folder in folders],
        "images": asked.images,
        "boundary": asked.boundary,
        "prompts": {prompt: result.as_dict() for prompt, result in results.items()},
    }
    _print(asked, record, results)  # first: it may have taken hours, and no disk can lose it
    _keep(asked.run / "results" / _file_name(record), record)
    return 0


def _file_name(record: Mapping[str, Any]) -> str:
    """Of other images, prompts or metrics another name: no evaluation replaces a different one."""
    named = [record[name] for name in ("data", "images", "boundary")]
    text = json.dumps([*named, sorted(record["prompts"])])
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"evaluate-{record['key']}-{digest}-step-{record['step']:06d}.json"


def _print(
    asked: EvaluateRun, record: Mapping[str, Any], results: Mapping[str, EvalResult]
) -> None:
    if asked.json_:
        print(json.dumps(record), flush=True)
        return
    print(
        f"{asked.subnet} at step {record['step']}: {record['params_m']:.2f} M parameters, "
        f"{record['flops_g']:.2f} GFLOPs an image and prompt"
    )
    print(format_table(dict(results)), flush=True)


def _keep(path: Path, record: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        write_json(path, record)
    except OSError as fault:
        raise UserError(
            f"the result above could not be kept as {path}: {fault}; make the folder writable"
        ) from fault
