"""What launch/evaluate.py does: one subnet of a trained run, scored on held-out images."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from supersam.config import EvaluateRun, TrainRun, UserError
from supersam.config.files import RESULTS, SPACE_FILE
from supersam.data.sample import EvalImage
from supersam.data.shards import ShardReader, open_held_out
from supersam.evaluation.clicks import ClickDifference, ClickResult, ClickScorer, subtract_clicks
from supersam.evaluation.evaluator import Predictor, score_by_side, score_prompts
from supersam.evaluation.predictor import SubnetPredictor
from supersam.evaluation.priors import Priors, learn_priors
from supersam.evaluation.result import EvalResult, subtract
from supersam.evaluation.table import format_clicks, format_table, remarks
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


@dataclass(frozen=True)
class _Scores:
    """What was measured, and where asked for the difference to the subnet to compare with."""

    results: dict[str, EvalResult]
    """By prompt."""
    differences: dict[str, Difference]
    """By prompt; empty without a subnet to compare with."""
    clicks: ClickResult | None
    """None where no clicks were asked for."""
    less_clicks: ClickDifference | None


def run_evaluate(run: EvaluateRun) -> int:
    """Score the subnet, keep the result in the run's folder, and print a table or JSON."""
    setup_logging(World.single())
    share_cores(run.threads, World.single())
    inputs = _find_inputs(run)
    predictors = _build_predictors(run, inputs)
    priors = learn_priors(training_folders(inputs.train_run))
    scores = _score(run, inputs, predictors, priors)
    record = _describe(run, inputs, scores)
    path = run.run / RESULTS / _file_name(record)
    fault = _keep(path, record)
    _print(run, record, scores)  # also a result that could not be kept
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


def _build_predictors(run: EvaluateRun, inputs: _Inputs) -> list[SubnetPredictor]:
    """The subnet's, and that of the subnet to compare with."""
    device = choose_device(run.device)
    supernet = load_supernet(inputs.train_run, inputs.space, inputs.source).to(device)
    predictors = [SubnetPredictor(supernet, inputs.spec, keep_embedding=True)]
    if inputs.reference is not None:
        if run.against == PRETRAINED:
            start = WeightSource(step=0)
            supernet = load_supernet(inputs.train_run, inputs.space, start).to(device)
        predictors.append(SubnetPredictor(supernet, inputs.reference, keep_embedding=True))
    return predictors


def _score(
    run: EvaluateRun, inputs: _Inputs, predictors: Sequence[SubnetPredictor], priors: Priors | None
) -> _Scores:
    clickers = [ClickScorer(each, clicks=run.clicks) for each in predictors if run.clicks > 0]

    def score(some: Sequence[Predictor], side: int) -> dict[str, list[EvalResult]]:
        def click(images: Iterable[EvalImage]) -> Iterable[EvalImage]:
            for clicker in clickers:
                images = clicker.watch(images) if clicker.predictor in some else images
            return images

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
            watch=click,
        )

    specs = [inputs.spec] if inputs.reference is None else [inputs.spec, inputs.reference]
    sides = [inputs.space.input_px(spec) for spec in specs]
    scored = score_by_side(predictors, sides, score)
    clicks = [clicker.result() for clicker in clickers]
    return _Scores(
        results={prompt: found[0] for prompt, found in scored.items()},
        differences={p: subtract(*found) for p, found in scored.items() if len(found) > 1},
        clicks=clicks[0] if clicks else None,
        less_clicks=subtract_clicks(*clicks) if len(clicks) > 1 else None,
    )


def _describe(run: EvaluateRun, inputs: _Inputs, scores: _Scores) -> dict[str, Any]:
    """The result as plain values."""
    cost = subnet_cost(inputs.spec, inputs.space.shape)
    record: dict[str, Any] = {
        "subnet": inputs.spec.to_dict(),
        "key": inputs.spec.key(),
        "step": inputs.source.step,
        "params_m": cost.params_m,
        "flops_g": cost.flops_g,
        "data": [str(folder.resolve()) for folder in inputs.folders],
        "images": run.images,
        "boundary": run.boundary,
        "prompts": {prompt: result.as_dict() for prompt, result in scores.results.items()},
    }
    if scores.clicks is not None:
        record["clicks"] = scores.clicks.as_dict()
    if run.cut_objects:
        record["cut_objects"] = True
    record["groups"] = "content" if _known_by_content(inputs.readers) else "name"
    if inputs.reference is not None:
        record["against"] = {
            "name": run.against,
            "key": inputs.reference.key(),
            "differences": {prompt: asdict(d) for prompt, d in scores.differences.items()},
        }
        if scores.less_clicks is not None:
            record["against"]["clicks"] = asdict(scores.less_clicks)
    return record


def _file_name(record: Mapping[str, Any]) -> str:
    """Name the file by what was evaluated, so that no evaluation replaces a different one."""
    named = [record[name] for name in ("data", "images", "boundary")]
    named += [sorted(record["prompts"])]
    if "cut_objects" in record:
        named += ["cut objects"]
    if "clicks" in record:
        named += [f"{len(record['clicks']['miou'])} clicks"]
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


def _print(run: EvaluateRun, record: Mapping[str, Any], scores: _Scores) -> None:
    if run.json_:
        print(json.dumps(record), flush=True)
        return
    px = record["subnet"].get("resolution")
    print(
        f"{run.subnet} at step {record['step']}: {record['params_m']:.2f} M parameters, "
        f"{record['flops_g']:.2f} GFLOPs per image"
        f"{'' if px is None else f' of {px} px'} with one prompt"
    )
    reference = run.against or ""
    print(format_table(scores.results, scores.differences or None, reference=reference))
    if scores.clicks is not None:
        print(f"\n{format_clicks(scores.clicks, scores.less_clicks, reference=reference)}")
    for line in remarks(scores.results):
        print(textwrap.fill(line, width=100))
    sys.stdout.flush()
