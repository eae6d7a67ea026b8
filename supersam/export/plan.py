"""The plan of an export: everything is found and checked before anything is written."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from supersam.config import ExportRun, TrainRun, UserError
from supersam.config.files import SPACE_FILE, SUBNET_FILE
from supersam.data.identity import shared_sources
from supersam.data.shards import ShardReader, open_held_out
from supersam.export.finetune import peak_rate
from supersam.export.model_card import Identity
from supersam.export.onnx import require_onnx
from supersam.export.writer import damaged_files, require_free
from supersam.runs.folder import validation_folders
from supersam.runs.provenance import training_folders, weights_id
from supersam.runs.seen_data import SeenData, seen_in_training
from supersam.runs.subnet_reference import Selection, find_subnet, selection_of
from supersam.runs.weights import WeightSource, find_weights, read_run
from supersam.space import SearchSpace, SubnetSpec, read_space, read_subnet, resolve_shape
from supersam.standalone import CARD_JSON, ENCODER_ONNX

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportPlan:
    """One export."""

    run: ExportRun
    train_run: TrainRun
    space: SearchSpace
    spec: SubnetSpec
    source: WeightSource
    """The supernet's weights."""
    data: tuple[Path, ...]
    """Folders of the evaluation shards; empty where there are none."""
    images: int | None
    """Images to evaluate on, spread evenly; None for all."""
    selection: Selection | None
    """What the subnet was selected on; None where no search selected it."""
    selection_images: int
    """Images of the evaluation shards that the search saw."""
    seen: SeenData | None
    """What training saw of them; None where there are none."""
    identity: Identity
    calibration: tuple[Path, ...] = ()
    """Folders of the shards that show the ranges of activations; empty without --int8."""

    @property
    def int8_settings(self) -> dict[str, Any]:
        """What the eight bits of this export depend on, as plain values."""
        return {
            "data": _resolved(self.calibration),
            "images": self.run.int8_images,
            "max_loss": self.run.int8_max_loss,
        }


def plan_export(run: ExportRun) -> ExportPlan:
    """Find and check what is to be exported. Raises UserError; writes nothing."""
    if run.onnx:
        require_onnx()
    train_run = read_run(run.run)
    if not (run.run / SPACE_FILE).is_file():
        raise UserError(f"{run.run} has no space.yaml; its training has not begun")
    space = read_space(run.run / SPACE_FILE, resolve_shape(train_run.model))
    spec = find_subnet(run.subnet, space, run=run.run)
    if train_run.sandwich.only is not None and spec != read_subnet(run.run / SUBNET_FILE, space):
        raise UserError(
            f"{run.run} trained one subnet alone, and {run.subnet} is another; name that one: "
            f"--subnet {run.run / SUBNET_FILE}"
        )
    source = find_weights(train_run, run.checkpoint)
    selection = selection_of(run.subnet)
    final = () if selection is None else selection.final_folders
    data = tuple(run.data or final or validation_folders(train_run))
    readers = open_held_out(data)  # now, not after a fine-tuning
    total = sum(reader.num_images for reader in readers)
    calibration = _calibration(run, train_run, readers) if run.int8 else ()
    return ExportPlan(
        run=run,
        train_run=train_run,
        space=space,
        spec=spec,
        source=source,
        data=data,
        images=None if run.images is None or run.images >= total else run.images,
        selection=selection,
        selection_images=0 if selection is None else _selected_on(selection, readers),
        seen=_seen(train_run, source, data),
        identity=_identity(run, train_run, source, spec),
        calibration=calibration,
    )


def _calibration(
    run: ExportRun, train_run: TrainRun, evaluated: Sequence[ShardReader]
) -> tuple[Path, ...]:
    """Find the shards that show the ranges of activations, none of them evaluated."""
    if not evaluated:
        raise UserError(
            "--int8 measures what eight bits lose, and the run has no held-out images; name some: "
            "--data DIR"
        )
    folders = tuple(run.int8_data or training_folders(train_run))
    shared = shared_sources(evaluated, [ShardReader(folder) for folder in folders])
    if shared.images > 0:
        raise UserError(
            f"{shared.images} of the images to evaluate are, {shared.how}, also in "
            f"{', '.join(map(str, folders))}, from which --int8 takes the ranges of activations; "
            "name other shards for one of the two: --int8-data DIR or --data DIR"
        )
    return folders


def is_there(plan: ExportPlan) -> bool:
    """Tell whether `--out` already holds exactly this export, undamaged.

    Raises UserError where it holds anything else: nothing is overwritten.
    """
    out = plan.run.out
    if not (out / CARD_JSON).is_file():
        require_free(out)
        return False
    try:
        before = _of_card(plan, json.loads((out / CARD_JSON).read_text(encoding="utf-8")))
        damaged = damaged_files(out)
    except (OSError, ValueError, KeyError) as fault:
        raise UserError(f"{out} holds a damaged export ({fault}); choose another --out") from None
    changed = [
        f"{name}: {before.get(name)} -> {value}"
        for name, value in _of_plan(plan).items()
        if before.get(name) != value
    ]
    if changed:
        raise UserError(
            f"{out} holds another export, and nothing is overwritten. It differs in\n  "
            + "\n  ".join(changed)
            + "\nChoose another --out"
        )
    if damaged:
        raise UserError(f"{out} is damaged ({', '.join(damaged)}); choose another --out")
    if plan.run.onnx and not (out / ENCODER_ONNX).is_file():
        raise UserError(f"{out} holds this export without ONNX; choose another --out for one with")
    return True


def _of_card(plan: ExportPlan, card: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the export that a card describes, named as in `_of_plan`."""
    data = map(Path, card["evaluation_data"])
    settings = {"license": card["license"], "images": card["evaluation_images"]}
    if plan.run.int8:
        settings["int8"] = (card.get("int8") or {}).get("settings")
    return {**card["identity"], **settings, "data": _resolved(data)}


def _of_plan(plan: ExportPlan) -> dict[str, Any]:
    settings: dict[str, Any] = {"license": plan.run.license, "images": plan.images}
    if plan.run.int8:
        settings["int8"] = plan.int8_settings
    return {**asdict(plan.identity), **settings, "data": _resolved(plan.data)}


def _selected_on(selection: Selection, readers: Sequence[ShardReader]) -> int:
    """Count the evaluation images that the search saw."""
    there = [ShardReader(folder) for folder in selection.folders if folder.is_dir()]
    return shared_sources(readers, there).images


def _resolved(folders: Iterable[Path]) -> list[str]:
    return [str(folder.resolve()) for folder in folders]


def _seen(run: TrainRun, source: WeightSource, data: tuple[Path, ...]) -> SeenData | None:
    if not data:
        logger.warning("%s has no validation set: the subnet is not evaluated", run.folder)
        return None
    seen = seen_in_training(run, source, data)
    if seen.seen:
        logger.warning("training saw the evaluation data: %s", seen.detail)
    return seen


def _identity(
    run: ExportRun, train_run: TrainRun, source: WeightSource, spec: SubnetSpec
) -> Identity:
    return Identity(
        run=train_run.name,
        weights="" if source.manifest is None else weights_id(source.manifest.files),
        step=source.step,
        subnet=spec.key(),
        finetune_steps=run.finetune_steps,
        finetune_lr=peak_rate(run, train_run) if run.finetune_steps > 0 else None,
    )
