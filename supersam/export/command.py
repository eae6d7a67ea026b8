"""Run launch/export.py: check, fine-tune if asked, write, compare, measure, describe."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from segment_anything.modeling import Sam

from supersam.config import ExportRun
from supersam.data.sample import EvalImage
from supersam.data.shards import ShardReader
from supersam.evaluation import SamModelPredictor, SubnetPredictor
from supersam.evaluation.latency import describe_latency
from supersam.export.accuracy import measure_accuracy
from supersam.export.check import check_images, max_difference
from supersam.export.finetune import finetune, prepare_finetune
from supersam.export.int8 import describe_int8, note_in_config, quantize_export
from supersam.export.model_card import ModelCard, card_text
from supersam.export.onnx import Parity, export_onnx
from supersam.export.onnx_predictor import OnnxPredictor
from supersam.export.plan import ExportPlan, is_there, plan_export
from supersam.export.writer import export_subnet
from supersam.model import SamSupernet
from supersam.runs.provenance import (
    describe_start,
    describe_training_data,
    git_commit,
    versions,
)
from supersam.runs.supernet import load_supernet
from supersam.runs.weights import find_weights
from supersam.runtime.atomic import write_bytes
from supersam.runtime.device import choose_device
from supersam.runtime.distributed import World, share_cores
from supersam.runtime.logging import setup_logging
from supersam.runtime.next_command import next_line
from supersam.runtime.table import count
from supersam.space import subnet_cost
from supersam.standalone import CARD, CARD_JSON, ENCODER_INT8_ONNX
from supersam.training.trainer import InterruptedRunError

logger = logging.getLogger(__name__)


def run_export(run: ExportRun) -> int:
    """Export the subnet, and print where it is and how good. Returns the exit code."""
    setup_logging(World.single())
    share_cores(run.threads, World.single())
    plan = plan_export(run)
    if is_there(plan):
        logger.info("%s holds this export already", run.out)
        return _announce(run)
    try:
        supernet = _trained_supernet(plan)
    except InterruptedRunError as stop:
        print(f"{stop}; run the same command to go on", file=sys.stderr)
        return 128 + stop.signal
    export_subnet(supernet, plan.spec, run.out, complete=partial(_complete, plan, supernet))
    return _announce(run)


def _trained_supernet(plan: ExportPlan) -> SamSupernet:
    """Load the run's supernet, after fine-tuning the subnet alone if the settings say so."""
    train_run, source, run = plan.train_run, plan.source, plan.run
    if run.finetune_steps > 0:
        train_run = prepare_finetune(train_run, source, plan.spec, run)
        finetune(train_run)
        setup_logging(World.single())  # the training's log file is its own
        source = find_weights(train_run, "last")
    return load_supernet(train_run, plan.space, source).to(choose_device(run.device))


def _complete(plan: ExportPlan, supernet: SamSupernet, folder: Path, sam: Sam) -> dict[str, Any]:
    """Compare, evaluate and measure; write the ONNX files and the card. Returns the card.

    Raises UserError where eight bits lose more than the limit.
    """
    device = supernet.pixel_mean.device
    sam = sam.to(device)
    readers = [ShardReader(path) for path in plan.data]
    images = check_images(readers, plan.space.input_px(plan.spec))
    ours = SamModelPredictor(sam, keep_embedding=True)
    difference = max_difference(ours, SubnetPredictor(supernet, plan.spec), images)
    logger.info("differs from the supernet by at most %g in a mask logit", difference)
    onnx = _write_onnx(sam, folder, images).to_dict() if plan.run.onnx else None
    encoder = quantize_export(plan, sam, folder) if plan.run.int8 else None
    sam.to(device)  # the ONNX files were written and compared on the CPU
    quantized = None if encoder is None else OnnxPredictor(folder, ENCODER_INT8_ONNX)
    accuracy = measure_accuracy(plan, ours, supernet, readers, int8=quantized)
    int8 = None if encoder is None else describe_int8(plan, encoder, accuracy)
    if int8 is not None:
        note_in_config(folder, int8)
    card = ModelCard(
        name=f"{plan.train_run.name}-{plan.spec.key()}",
        identity=plan.identity,
        license=plan.run.license,
        spec=plan.spec,
        cost=subnet_cost(plan.spec, plan.space.shape),
        space=plan.space.to_dict(),
        shape=asdict(plan.space.shape),
        start=describe_start(plan.train_run),
        averaged=_decay(plan),
        training_data=describe_training_data(plan.train_run, plan.source),
        evaluation_data=tuple(map(str, plan.data)),
        evaluation_images=plan.images,
        selected_on=None if plan.selection is None else tuple(map(str, plan.selection.folders)),
        selection_images=plan.selection_images,
        seen_in_training=plan.seen.detail if plan.seen is not None and plan.seen.seen else None,
        not_compared=plan.seen.detail if plan.seen and plan.seen.seen is None else None,
        metrics={prompt: result.as_dict() for prompt, result in accuracy.metrics.items()},
        less_largest={prompt: asdict(found) for prompt, found in accuracy.less_largest.items()},
        max_difference_from_supernet=difference,
        latency=describe_latency(sam),
        onnx=onnx,
        int8=int8,
        versions={**versions(), "git": git_commit()},
    )
    write_bytes(folder / CARD, card_text(card).encode())
    return card.to_dict()


def _decay(plan: ExportPlan) -> float | None:
    """Return the decay of the weights' moving average; None where they are not averaged."""
    decay, manifest = plan.train_run.optim.ema, plan.source.manifest
    is_kept = manifest is not None and manifest.has_average
    return decay if decay > 0 and (is_kept or plan.run.finetune_steps > 0) else None


def _write_onnx(sam: Sam, folder: Path, images: list[EvalImage]) -> Parity:
    parity = export_onnx(sam, folder, images)
    logger.info("ONNX against PyTorch: %s", json.dumps(parity.to_dict()))
    return parity


def _announce(run: ExportRun) -> int:
    card = json.loads((run.out / CARD_JSON).read_text(encoding="utf-8"))
    if run.json_:
        print(json.dumps(card))
        return 0
    metrics = card["metrics"]
    scores = ", ".join(f"{p} mIoU {found['miou']:.4f}" for p, found in metrics.items())
    where = ""
    if scores and card["evaluation_images"] is not None:
        share = count(card["evaluation_images"], "image")
        where = f" on {share}, spread evenly; --images None takes all"
    print(f"{run.out}: {card['cost']['params_m']:.2f} M parameters, "
          f"{scores or 'not evaluated'}{where}")  # fmt: skip
    print(f"model card: {run.out / CARD}")
    words = ("IMAGE", "--export", run.out, "--auto", "--out", "masks.png")
    print(next_line("predict", *words), flush=True)
    return 0
