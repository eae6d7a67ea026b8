"""What launch/evaluate.py does: one subnet of a trained run, scored on held-out images."""

from __future__ import annotations

import json
import logging
import sys

from supersam.config import EvaluateRun, UserError
from supersam.data.dataset import EvalDataset
from supersam.data.loader import build_eval_loader
from supersam.data.shards import open_held_out
from supersam.evaluation import EvalResult, SubnetPredictor, evaluate, format_table
from supersam.runtime.atomic import write_json
from supersam.runtime.distributed import World, choose_device
from supersam.space import SearchSpace, SubnetSpec, read_space, resolve_shape, subnet_cost
from supersam.training.run_data import validation_folders
from supersam.training.trained import choose_subnet, find_weights, load_supernet, read_run

logger = logging.getLogger(__name__)


def run_evaluate(asked: EvaluateRun) -> int:
    """Score the subnet, print a table or JSON, and keep the result in the run's folder."""
    run = read_run(asked.run)
    space = read_space(asked.run / "space.yaml", resolve_shape(run.model))
    spec = choose_subnet(asked.subnet, space)
    readers = open_held_out(asked.data or validation_folders(run))
    if not readers:
        raise UserError(f"{asked.run} has no validation set; name held-out shards with --data DIR")
    source = find_weights(run, asked.checkpoint)
    supernet = load_supernet(run, space, source).to(choose_device(asked.device))
    results: dict[str, EvalResult] = {}
    for prompt in asked.prompt:
        dataset = EvalDataset(readers, side=space.shape.image_size, prompt=prompt)
        images = build_eval_loader(dataset, World.single(), limit=asked.images)
        results[prompt] = evaluate(SubnetPredictor(supernet, spec), images, boundary=asked.boundary)
    _report(asked, spec, space, source.step, results)
    return 0


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
