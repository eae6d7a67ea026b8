"""What launch/evaluate.py does: one subnet of a trained run, scored on held-out images."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from supersam.config import EvaluateRun, TrainRun, UserError
from supersam.config.files import RESULTS, SPACE_FILE
from supersam.data.shards import ShardReader, open_held_out
from supersam.evaluation.evaluator import Predictor, score_by_side, score_prompts
from supersam.evaluation.predictor import SubnetPredictor
from supersam.evaluation.priors import Priors, learn_priors
from supersam.evaluation.result import EvalResult, subtract
from supersam.evaluation.table import format_table, remarks
from supersam.runs.folder import validation_folders
from supersam.runs.provenance import training_folders
from supersam.runs.subnet_reference import find_subnet
from supersam.runs.supernet import load_supernet
from supersam.runs.weights import WeightSource, find_weights, read_run
from supersam.runtime.atomic import write_json
from supersam.runtime.bootstrap import Difference
from supersam.runtime.device import choose_device
from supersam.runtime.distributed import World, share_cores
from supersam.runtime.logging import setup_logging
from supersam.runtime.next_command import export_folder, next_line
from supersam.space import SearchSpace, SubnetSpec, read_space, resolve_shape, subnet_cost

logger = logging.getLogger(__name__)

PRETRAINED = "pretrained"
"""With --against: the largest subnet with the weights that training began from."""


@dataclass(frozen=True)
class _Inputs:
    """What is evaluated, found and checked."""

    train_run: TrainRun
    space: SearchSpace
    spec: SubnetSpec
    source: WeightSource
    folders: tuple[Path, ...]
    readers: Sequence[ShardReader]
    reference: SubnetSpec | None
    """The subnet to compare with."""


def run_evaluate(run: EvaluateRun) -> int:
    """Score the subnet, keep the result in the run's folder, and print a table or JSON."""
    setup_logging(World.single())
    share_cores(run.threads, World.single())
    inputs = _find_inputs(run)
    predictors = _build_predictors(run, inputs)
    priors = learn_priors(training_folders(inputs.train_run))
    results: dict[str, EvalResult] = {}
    differences: dict[str, Difference] = {}
    for prompt, scored in _score(run, inputs, predictors, priors).items():
        results[prompt], *others = scored
        for other in others:
            differences[prompt] = subtract(results[prompt], other)
    record = _describe(run, inputs, results, differences)
    path = run.run / RESULTS / _file_name(record)
    fault = _keep(path, record)
    _print(run, record, results, differences)  # also a result that could not be kept
    if fault is not None:
        raise fault
    if not run.json_:
        print(f"kept as {path}\n{_next_line(run)}", flush=True)
    return 0


def _next_line(run: EvaluateRun) -> str:
    if run.subnet == "largest":
        return next_line("search", "--run", run.run)
    out = export_folder(run.run, run.subnet)
    return next_line("export", "--run", run.run, "--subnet", run.subnet, "--out", out)


def _find_inputs(run: EvaluateRun) -> _Inputs:
    train_run = read_run(run.run)
    space = read_space(run.run / SPACE_FILE, resolve_shape(train_run.model))
    spec = find_subnet(run.subnet, space, run=run.run)
    reference = None
    if run.against == PRETRAINED:
        reference = space.largest()
    elif run.against is not None:
        reference = find_subnet(run.against, space, run=run.run, option="--against")
    folders = tuple(run.data or validation_folders(train_run))
    readers = open_held_out(folders)
    if not readers:
        raise UserError(f"{run.run} has no validation set; name held-out shards with --data DIR")
    if not _known_by_content(readers):
        logger.warning(
            "the shards of %s do not hold their source images: images are grouped by name, and "
            "objects that a tile's frame cuts are scored; make the shards anew to change both",
            ", ".join(map(str, folders)),
        )
    source = find_weights(train_run, run.checkpoint)
    return _Inputs(train_run, space, spec, source, folders, readers, reference)


def _known_by_content(readers: Sequence[ShardReader]) -> bool:
    return all(reader.origins().by_content for reader in readers)


def _build_predictors(run: EvaluateRun, inputs: _Inputs) -> list[Predictor]:
    """The subnet's, and that of the subnet to compare with."""
    device = choose_device(run.device)
    supernet = load_supernet(inputs.train_run, inputs.space, inputs.source).to(device)
    predictors: list[Predictor] = [SubnetPredictor(supernet, inputs.spec, keep_embedding=True)]
    if inputs.reference is not None:
        if run.against == PRETRAINED:
            start = WeightSource(step=0)
            supernet = load_supernet(inputs.train_run, inputs.space, start).to(device)
        predictors.append(SubnetPredictor(supernet, inputs.reference, keep_embedding=True))
    return predictors


def _score(
    run: EvaluateRun, inputs: _Inputs, predictors: Sequence[Predictor], priors: Priors | None
) -> dict[str, list[EvalResult]]:
    """Return by prompt the result of each predictor."""

    def score(some: Sequence[Predictor], side: int) -> dict[str, list[EvalResult]]:
        return score_prompts(
            some,
            inputs.readers,
            run.prompts,
            side=side,
            limit=run.images,
            workers=run.workers,
            cut_objects=run.cut_objects,
            boundary=run.boundary,
            priors=priors,
        )

    specs = [inputs.spec] if inputs.reference is None else [inputs.spec, inputs.reference]
    return score_by_side(predictors, [inputs.space.input_px(spec) for spec in specs], score)


def _describe(
    run: EvaluateRun,
    inputs: _Inputs,
    results: Mapping[str, EvalResult],
    differences: Mapping[str, Difference],
) -> dict[str, Any]:
    """The result as plain values."""
    cost = subnet_cost(inputs.spec, inputs.space.shape)
    record = {
        "subnet": inputs.spec.to_dict(),
        "key": inputs.spec.key(),
        "step": inputs.source.step,
        "params_m": cost.params_m,
        "flops_g": cost.flops_g,
        "data": [str(folder.resolve()) for folder in inputs.folders],
        "images": run.images,
        "boundary": run.boundary,
        "prompts": {prompt: result.as_dict() for prompt, result in results.items()},
    }
    if run.cut_objects:
        record["cut_objects"] = True
    record["groups"] = "content" if _known_by_content(inputs.readers) else "name"
    if inputs.reference is not None:
        record["against"] = {
            "name": run.against,
            "key": inputs.reference.key(),
            "differences": {prompt: asdict(found) for prompt, found in differences.items()},
        }
    return record


def _file_name(record: Mapping[str, Any]) -> str:
    """Name the file by what was evaluated, so that no evaluation replaces a different one."""
    named = [record[name] for name in ("data", "images", "boundary")]
    named += [sorted(record["prompts"])]
    if "cut_objects" in record:
        named += ["cut objects"]
    if "against" in record:
        named += [record["against"]["name"], record["against"]["key"]]
    digest = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:8]
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


def _print(
    run: EvaluateRun,
    record: Mapping[str, Any],
    results: Mapping[str, EvalResult],
    differences: Mapping[str, Difference],
) -> None:
    if run.json_:
        print(json.dumps(record), flush=True)
        return
    px = record["subnet"].get("resolution")
    print(
        f"{run.subnet} at step {record['step']}: {record['params_m']:.2f} M parameters, "
        f"{record['flops_g']:.2f} GFLOPs per image"
        f"{'' if px is None else f' of {px} px'} with one prompt"
    )
    print(format_table(results, differences or None, reference=run.against or ""))
    for line in remarks(results):
        print(textwrap.fill(line, width=100))
    sys.stdout.flush()
