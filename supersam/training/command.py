"""What launch/evaluate.py does: one subnet of a trained run, scored on held-out images."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from supersam.config import EvaluateRun, TrainRun, UserError, load_run
from supersam.data.dataset import EvalDataset
from supersam.data.loader import build_eval_loader
from supersam.data.shards import ShardReader
from supersam.evaluation import EvalResult, SubnetPredictor, evaluate, format_table
from supersam.model import SamSupernet, resolve_shape
from supersam.runtime.atomic import write_json
from supersam.runtime.distributed import World, choose_device
from supersam.space import SearchSpace, SubnetSpec, read_space, subnet_cost
from supersam.training.checkpoint import CheckpointManager, read_tensors, verify
from supersam.training.run_data import validation_folders
from supersam.training.session import build_supernet

logger = logging.getLogger(__name__)


def run_evaluate(asked: EvaluateRun) -> int:
    """Score the subnet, print a table or JSON, and keep the result in the run's folder."""
    run = _read_run(asked.run)
    space = read_space(asked.run / "space.yaml", resolve_shape(run.model))
    spec = _choose_subnet(asked.subnet, space)
    readers = [ShardReader(path) for path in asked.data or validation_folders(run)]
    if not readers:
        raise UserError(f"{asked.run} has no validation set; name held-out shards with --data DIR")
    supernet, step = _load_weights(asked, run, space)
    results: dict[str, EvalResult] = {}
    for prompt in asked.prompt:
        dataset = EvalDataset(readers, side=space.shape.image_size, prompt=prompt)
        images = build_eval_loader(dataset, World.single(), limit=asked.images)
        results[prompt] = evaluate(SubnetPredictor(supernet, spec), images, boundary=asked.boundary)
    _report(asked, spec, space, step, results)
    return 0


def _read_run(folder: Path) -> TrainRun:
    if not (folder / "run.yaml").is_file():
        raise UserError(f"{folder} is no run: it has no run.yaml; name a folder under runs/")
    return load_run(TrainRun, folder / "run.yaml").model_copy(update={"run": folder})


def _choose_subnet(name: str, space: SearchSpace) -> SubnetSpec:
    fixed = {
        "largest": space.largest,
        "medium": space.medium,
        "smallest": space.smallest,
    }
    if name in fixed:
        return fixed[name]()
    path = Path(name)
    if not path.is_file():
        raise UserError(f"--subnet {name}: not one of {', '.join(fixed)}, and no such file")
    try:
        spec = SubnetSpec.read(path)
    except ValueError as fault:
        raise UserError(str(fault)) from fault
    reason = space.misfit(spec)
    if reason is not None:
        raise UserError(f"{path} is not in this run's search space: {reason}")
    return spec


def _load_weights(asked: EvaluateRun, run: TrainRun, space: SearchSpace) -> tuple[SamSupernet, int]:
    """The supernet at the checkpoint that was asked for, and its step."""
    supernet = build_supernet(run, space).to(choose_device(asked.device)).eval()
    if asked.checkpoint == "initial":
        return supernet, 0
    checkpoints = CheckpointManager(asked.run, run.checkpoint, World.single())
    found = checkpoints.latest()
    if found is None:
        raise UserError(f"{asked.run} has no checkpoint yet; train it first")
    path, manifest = found
    if asked.checkpoint != "last":
        best = manifest.state.best_step
        step = best if asked.checkpoint == "best" else _step_number(asked.checkpoint)
        path = checkpoints.path(step or 0)
        if not path.is_dir():
            there = ", ".join(p.name for p in checkpoints.all())
            raise UserError(f"{asked.run} has no checkpoint {asked.checkpoint!r}; it has {there}")
        manifest = verify(path)
    supernet.load_state_dict(read_tensors(path, manifest, "weights"))
    return supernet, manifest.state.step


def _step_number(text: str) -> int:
    if not text.isdigit():
        raise UserError(f"--checkpoint {text!r}: use last, best, initial or a step number")
    return int(text)


def _report(
    asked: EvaluateRun,
    spec: SubnetSpec,
    space: SearchSpace,
    step: int,
    results: dict[str, EvalResult],
) -> None:
    cost = subnet_cost(spec, space.shape)
    record = {
        "subnet": spec.to_dict(),
        "key": spec.key(),
        "step": step,
        "params_m": cost.params_m,
        "flops_g": cost.flops_g,
        "data": [str(path) for path in asked.data],
        "images": asked.images,
        "prompts": {prompt: result.as_dict() for prompt, result in results.items()},
    }
    folder = asked.run / "results"
    folder.mkdir(exist_ok=True)
    write_json(folder / f"evaluate-{spec.key()}-step-{step:06d}.json", record)
    if asked.json_:
        print(json.dumps(record))
        return
    print(
        f"{asked.subnet} at step {step}: {cost.params_m:.2f} M parameters, "
        f"{cost.flops_g:.2f} GFLOPs an image and prompt",
        file=sys.stdout,
    )
    print(format_table(results))
